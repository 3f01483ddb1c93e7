"""Prints as JSON what a change of structure must not change: digests of masks, weights and outputs, and counts.

    python tests/same_behaviour.py --write FILE    # on the checkout to compare with
    python tests/same_behaviour.py --check FILE    # on the changed one: names the entries that differ, exits 1
    python tests/same_behaviour.py --only imp      # a part of it: entries whose name contains this word

The checkout is the one that `import spikeprune` finds (set PYTHONPATH). Only the command line and names of `sp` are
used, so the same script runs on old and new checkouts. It takes about two minutes of one core. Sums of floats depend
on the processor and on the version of PyTorch: the head of a file tells where it was made, and digests are to be
compared only where the head is the same. `tests/fixtures/behaviour-0.1.0.json` was made by version 0.1.0.
"""

import argparse
import contextlib
import hashlib
import json
import os
import platform
import runpy
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from spikingjelly.activation_based import functional  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import spikeprune as sp  # noqa: E402

SHORT = "--epochs 3 --model digits-conv --data.limit 260 --batch 32 --precision fp32 --baseline false"
SMALL = SHORT.replace("--model digits-conv", "--model mlp")
RUNS = {
    "magnitude": f"{SHORT} --method magnitude",
    "magnitude, dense run too": f"{SHORT} --method magnitude --baseline true",
    "magnitude, uniform": f"{SHORT} --method magnitude --allocate uniform --sparsity 0.9",
    "magnitude, lamp, linear": f"{SHORT} --method magnitude --allocate lamp --prune.schedule linear",
    "magnitude, macs": f"{SHORT} --method magnitude --budget macs --sparsity 0.8",
    "magnitude, adamw": f"{SHORT} --method magnitude --optim.name adamw --lr 0.002 --fuse false",
    "magnitude, mlp": f"{SMALL} --method magnitude",
    "magnitude, channel": f"{SHORT} --method magnitude --pattern channel --sparsity 0.5",
    "magnitude, 2:4": f"{SHORT} --method magnitude --pattern 2:4 --sparsity 0.5",
    "criticality": f"{SHORT} --method criticality",
    "criticality, synapse": f"{SHORT} --method criticality --unit synapse",
    "criticality, value, sampled": f"{SHORT} --method criticality --curve value --space mean --pick sample --seed 3",
    "criticality, after, new": f"{SHORT} --method criticality --measure after --candidates new --batches 2",
    "criticality, never dense": f"{SHORT} --method criticality --start random --prune.schedule constant --T 2",
    "criticality, no regrowth": f"{SHORT} --method criticality --regrow 0",
    "criticality, channel": f"{SHORT} --method criticality --pattern channel --sparsity 0.5 --regrow_schedule constant",
    "criticality, finetune": f"{SHORT} --method criticality --pattern channel --sparsity 0.5 --prune.finetune 1ep",
    "criticality, 2:4": f"{SHORT} --method criticality --pattern 2:4 --sparsity 0.5",
    # Fused, these fail in 0.1.0 where scores tie: a mask laid out channels last has no flat view.
    "grad-r": f"{SHORT} --method grad-r --fuse false",
    "stds": f"{SHORT} --method stds --fuse false",
    "criticality, crop": f"{SHORT} --method criticality --data.crop 1 --data.cutout 2 --data.flip true",
    **{
        name: f"{SHORT} --method {name}"
        for name in (
            "admm", "anti-criticality", "dense", "early-bird", "eb-et", "gradient", "granet",
            "imp", "imp-et", "last-magnitude", "ndsnn", "random", "random-prune", "rcmo", "rigl", "set",
            "snfs", "snip",
        )
    },
    **{
        name: f"{SHORT} --method {name} --pattern channel --sparsity 0.5"
        for name in ("bn-scale", "bn-scale-rate", "firing-rate", "membrane", "pca", "taylor", "weight-norm")
    },
}  # fmt: skip
FIGURES = ("accuracy", "parameters", "alive", "bytes", "macs", "synops", "energy_pj", "firing_rate")
ROUND = ("step", "target", "cut", "kept", "regrown", "rescued", "survived", "layers")
LINE = ("epoch", "phase", "lr", "sparsity", "train_loss", "train_accuracy", "val_loss", "val_accuracy")
COST = ("epochs", "train_macs", "train_macs_effective", "search_epochs")

Entries = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="FILE", help="write here and not to stdout")
    parser.add_argument("--check", type=Path, metavar="FILE", help="compare with what was written here")
    parser.add_argument("--only", default="", metavar="WORD", help="only entries whose name contains it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"made by": head(), "entries": dict(sorted(entries(arguments.only)))}
    text = json.dumps(found, indent=1, sort_keys=True) + "\n"
    if arguments.check is not None:
        return check(json.loads(arguments.check.read_text()), json.loads(text), arguments.only)
    if arguments.write is None:
        print(text, end="")
    else:
        arguments.write.write_text(text)
    return 0


def check(before: Mapping[str, Any], now: Mapping[str, Any], only: str) -> int:
    """Prints what differs; 1 if anything does."""
    for key, value in before["made by"].items():
        if now["made by"][key] != value and key != "spikeprune":
            print(f"note: {key} was {value} and is {now['made by'][key]}; digests of floats may differ for that alone")
    old = dict(_leaves({name: value for name, value in before["entries"].items() if only in name}))
    new = dict(_leaves(now["entries"]))
    differ = [key for key in {**old, **new} if old.get(key) != new.get(key) or (key in old) != (key in new)]
    for key in differ:
        print(f"differs: {key}: was {old.get(key, 'not there')}, is {new.get(key, 'not there')}")
    print(f"{len(old) + len(new.keys() - old.keys())} values compared, {len(differ)} differ")
    return 1 if differ or not old else 0


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _leaves(part, f"{place} / {key}" if place else key)
    else:
        yield place, value


def head() -> dict[str, str]:
    """Where the digests were made: all that they may depend on beside the code."""
    cpu = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor() or platform.machine(),
    )
    return {
        "spikeprune": sp.__version__,
        "torch": torch.__version__,
        "processor": cpu,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": platform.system(),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).is_file() else []


def entries(only: str) -> Iterator[tuple[str, Any]]:
    """Every entry: the runs, each in a process of its own, then what the library's calls give."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        wanted = {f"run: {name}": words for name, words in RUNS.items() if only in f"run: {name}"}
        if wanted:
            _command(["run", "digits", *SHORT.split(), "--epochs", "1", "--out", str(out / "first")])
        for number, (name, words) in enumerate(wanted.items()):
            yield name, _run(words.split(), out / str(number))
    for name, call in LIBRARY.items():
        if only in name:
            torch.manual_seed(0)
            yield name, call()


def _command(words: list[str]) -> None:
    """`python -m spikeprune WORDS` in this process, its output dropped. Raises: RuntimeError if it fails."""
    sys.argv = ["spikeprune", *words]
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            runpy.run_module("spikeprune", run_name="__main__")
        except SystemExit as ended:
            if ended.code:
                raise RuntimeError(f"spikeprune {' '.join(words)} ended with {ended.code}") from None


def _run(words: list[str], out: Path) -> Entries:
    """One run in a child, which a fork spares the imports."""
    said = out.with_suffix(".txt")
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
            _command(["run", "digits", *words, "--out", str(out)])
        except BaseException as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise SystemExit(f"the run failed: {said.read_text()}")
    (folder,) = out.iterdir()
    return _of_folder(folder)


def _of_folder(folder: Path) -> Entries:
    record = json.loads((folder / "record.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    tensors = {
        path.stem: _digests(load_file(path)) for path in sorted(folder.glob("*.safetensors")) if path.stem != "small"
    }
    return {
        "folder": folder.name,
        **tensors,
        "rounds": _digest_of([{key: one[key] for key in ROUND} for one in record["rounds"]]),
        "kept": " ".join(f"{one['step']}:{one['kept']}+{one['regrown']}" for one in record["rounds"]),
        "metrics": _digest_of([{key: line[key] for key in LINE} for line in lines]),
        **{side: {key: record[side][key] for key in FIGURES} for side in ("dense", "pruned")},
        "sparsity": record["sparsity"],
        "best_epoch": record["best_epoch"],
        "cost": {key: record["cost"][key] for key in COST},
        "data": record["data"]["checksum"],
        "stages": _digest_of([record.get("channels"), record.get("stages")]),
    }


def _digest_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The digest of each tensor (type, shape and bytes), and under `all` the digest of these and their order."""
    each = {name: digest(value) for name, value in tensors.items()}
    return {"all": _digest_of(sorted(each.items())), **each}


def digest(value: Tensor) -> str:
    """SHA-256 of a tensor's type, shape and bytes."""
    plain = value.detach().cpu().contiguous()
    start = f"{plain.dtype} {list(plain.shape)} ".encode()
    return hashlib.sha256(start + plain.flatten().view(torch.uint8).numpy().tobytes()).hexdigest()


# The library's calls.
NETWORKS = {"digits-conv-wide": (1, 8, 4), "resnet19-channels": (3, 16, 2)}  # name -> channels, size, T


def _network(name: str) -> tuple[nn.Module, Tensor]:
    """A zoo network whose neurons fire, and a batch."""
    channels, size, T = NETWORKS[name]
    torch.manual_seed(1)
    model = sp.model(name, classes=10, T=T, size=size)
    x = torch.rand(4, channels, size, size)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, 0.0, 0.8)
    return _calibrated(model, x), x


def _calibrated(model: nn.Module, x: Tensor) -> nn.Module:
    """The model in eval mode, its normalisation by the statistics of this batch, so that the neurons fire."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    model.train()(x)
    functional.reset_net(model)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


def _sparse(name: str) -> tuple[nn.Module, Tensor, Mapping[str, Tensor]]:
    model, x = _network(name)
    masks = sp.prune(model, "magnitude", sparsity=0.7, allocate="uniform")
    return _calibrated(model, x), x, masks


def _compiled(name: str, precision: str) -> Callable[[], Entries]:
    def call() -> Entries:
        model, x, _ = _sparse(name)
        compiled = sp.compile(model, x, precision=precision)
        with tempfile.TemporaryDirectory() as folder:
            compiled.save(f"{folder}/network")
            again = sp.load(f"{folder}/network")
        functional.reset_net(model)
        with torch.no_grad():
            dense = model(x)
        functional.reset_net(model)
        return {
            "output": digest(compiled(x)),
            "one image": digest(compiled(x[:1])),
            "loaded": digest(again(x)),
            "plain": digest(dense),
            "spikes": _digests(compiled.trace(x)),
            "plan": [[row.layer, row.kind, row.engine] for row in compiled.plan()],
        }

    return call


def _trained(name: str, fused: bool, method: Callable[[], Any]) -> Callable[[], Entries]:
    """Four steps of a user's own loop, with two mask updates in them."""

    def call() -> Entries:
        model, x = _network(name)
        model.train()
        if fused:
            sp.fuse(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
        pruner = sp.Pruner(model, method(), sp.Cubic(to=0.8, begin=0, end=4, every=2), seed=5).attach(optimizer)
        y = torch.arange(4) % 10
        outputs: list[Tensor] = []
        for _ in range(4):
            out = model(x)
            optimizer.zero_grad()
            F.cross_entropy(out.mean(0) if out.dim() == 3 else out, y).backward()
            optimizer.step()
            functional.reset_net(model)
            outputs.append(out)
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        state = pruner.state_dict()
        found = {
            "outputs": digest(torch.stack(outputs)),
            "gradients": _digests(gradients),
            "model": _digests(model.state_dict()),
            "masks": _digests(pruner.masks),
            "optimizer": _digest_of(_plain(optimizer.state_dict())),
            "pruner": {key: _digest_of(_plain(value)) for key, value in state.items()},
            "rounds": _digest_of([{key: one[key] for key in ROUND} for one in pruner.rounds]),
            "density": pruner.density,
        }
        pruner.finish()
        return found

    return call


def _plain(value: Any) -> Any:
    """Tensors as their digests, so that it can be written as JSON."""
    if isinstance(value, Tensor):
        return digest(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, str | int | float | bool | None):
        return value
    return [_plain(part) for part in value] if isinstance(value, Iterable) else repr(value)


def _counted(name: str) -> Callable[[], Entries]:
    def call() -> Entries:
        model, x, masks = _sparse(name)
        found = sp.count(model, [x[:2], x[2:]], masks)
        sides = {"dense": found.dense, "pruned": found.pruned}
        keys = FIGURES[1:]
        return {
            **{side: {key: getattr(part, key) for key in keys} for side, part in sides.items()},
            "layers": {
                name: _digest_of([[getattr(part, key) for key in keys] for part in (layer.dense, layer.pruned)])
                for name, layer in found.layers.items()
            },
        }

    return call


def _shrunk(name: str) -> Callable[[], Entries]:
    def call() -> Entries:
        model, x = _network(name)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        masks = sp.prune(model, "magnitude", sparsity=0.5, data=[x], pattern="channel")
        small, plan = sp.shrink(model, masks, x, optimizer)
        with tempfile.TemporaryDirectory() as folder:
            plan.save(f"{folder}/plan.json")
            text = Path(f"{folder}/plan.json").read_text()
        with torch.no_grad():
            out = small(x)
        return {
            "masks": _digests(masks),
            "model": _digests(small.state_dict()),
            "output": digest(out),
            "plan": _digest_of(json.loads(text)),
        }

    return call


def _pruned_once() -> Entries:
    """One shot, over allocations, patterns and budgets."""
    found: Entries = {}
    cases: list[dict[str, Any]] = [
        *({"allocate": allocate} for allocate in ("global", "uniform", "erk", "lamp")),
        *({"pattern": pattern} for pattern in ("2:4", "1:4")),
        *({"budget": budget} for budget in ("parameters", "macs", "synops")),
        {"exclude": ["head"]},
        {"pattern": "channel"},
        {"pattern": "channel", "budget": "macs"},
        {"pattern": "channel", "allocate": "uniform"},
    ]
    for case in cases:
        model, x = _network("digits-conv-wide")
        sparsity = {"2:4": 0.5, "1:4": 0.75}.get(case.get("pattern", ""), 0.6)
        masks = sp.prune(model, "magnitude", sparsity=sparsity, data=[x], **case)
        found[" ".join(f"{key}={value}" for key, value in case.items())] = _digests(masks)
    return found


ONE_SHOT = {
    **dict.fromkeys(("magnitude", "snip", "random-prune"), "weight"),
    **dict.fromkeys(("firing-rate", "membrane", "taylor", "weight-norm"), "channel"),
}


def _loss(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(out.mean(0), y)


def _one_shot_methods() -> Entries:
    """One shot, over methods that read evidence."""
    found: Entries = {}
    for name, pattern in ONE_SHOT.items():
        model, x = _network("digits-conv-wide")
        batches = [(x, torch.arange(4))]
        masks = sp.prune(model, name, sparsity=0.8, data=batches, loss=_loss, pattern=pattern, seed=7)
        found[name] = _digests(masks)
    return found


def _sensitivity() -> Entries:
    model, x = _network("digits-conv-wide")
    return {"table": _digest_of(_plain(sp.sensitivity(model, [(x, torch.arange(4))])))}


def _names() -> Entries:
    """Names that users write: none may be lost. New ones make no difference."""
    model, _ = _network("resnet19-channels")
    return {
        **{f"method {name}": True for name in sp.methods()},
        **{f"schedule {name}": True for name in sp.schedules()},
        **{f"model {name}": True for name in sp.models()},
        **{f"dataset {name}": True for name in sp.datasets()},
        **{f"sp.{name}": True for name in sp.__all__},
        "state_dict": _digest_of(list(model.state_dict())),
    }


LIBRARY: dict[str, Callable[[], Entries]] = {
    **{f"compile: {name}, {p}": _compiled(name, p) for name in NETWORKS for p in ("fp32", "int16")},
    **{
        f"train: {name}, {label}, {'fused' if fused else 'plain'}": _trained(name, fused, method)
        for name in NETWORKS
        for label, method in {
            "criticality": lambda: sp.Criticality(regrow=0.2),
            "gradient": lambda: sp.Gradient(regrow=0.2),
        }.items()
        for fused in (True, False)
    },
    **{f"count: {name}": _counted(name) for name in NETWORKS},
    **{f"shrink: {name}": _shrunk(name) for name in NETWORKS},
    "prune: magnitude": _pruned_once,
    "prune: methods": _one_shot_methods,
    "sensitivity": _sensitivity,
    "names": _names,
}


if __name__ == "__main__":
    sys.exit(main())
