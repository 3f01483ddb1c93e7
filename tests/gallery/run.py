"""Takes every architecture of the gallery through every door: `python tests/gallery/run.py [name ...]`.

Without names the table is written into docs/supported.md. A cell is "ok", a refusal in the library's own words, or a
fault: "ERROR" for a raw exception, "WRONG" for a result that differs from what it should be. There may be no fault.
"""

import copy
import logging
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor, nn

import spikeprune as sp
from gallery.nets import ENTRIES, Entry
from gallery.oracle import operations
from spikeprune.core.errors import UserError
from spikeprune.model.adapter import find_adapter
from spikeprune.model.discover import Discovered
from spikeprune.model.wrappers import eager

SUPPORTED = Path(__file__).parents[2] / "docs" / "supported.md"


class Wrong(Exception):
    """A result that is not what it should be."""


def check(condition: object, what: str) -> None:
    if not bool(condition):
        raise Wrong(what)


def reset(net: nn.Module) -> nn.Module:
    (find_adapter(eager(net)) or Discovered()).reset(eager(net))
    return net


def answer(net: nn.Module, x: Tensor) -> Tensor:
    reset(net)
    with torch.no_grad():
        out = net(x)
    reset(net)
    return out


def criticality(unit: str) -> Callable[[Entry], None]:
    def run(entry: Entry) -> None:
        net = entry.network()
        pruner = sp.Pruner(net, sp.Criticality(regrow=sp.Constant(0.2), unit=unit), sp.OneShot(0.6))
        pruner.observe([entry.example()])
        pruner.cut()
        alive = round(pruner.prunable * 0.4)
        check(abs(pruner.alive - alive) <= 1, f"{pruner.alive} alive, not {alive}")
        parameters = dict(eager(net).named_parameters())
        check(all(bool((parameters[n][~m] == 0).all()) for n, m in pruner.masks.items()), "a dead weight is not 0")
        check(pruner.rounds[0]["regrown"] > 0, "nothing was regrown")
        fed = [row.neuron for row in pruner.table()]
        # A depthwise convolution, a readout and the gates of an LSTM feed no neuron.
        check(sum(neuron is not None for neuron in fed) >= len(fed) // 2, f"layers feed {fed}")

    return run


def squeeze(entry: Entry) -> None:
    net = entry.network().eval()
    found = sp.squeeze(net, [(entry.example(), torch.zeros(3, dtype=torch.long))], 0.5, rounds=2, images=3)
    alive = sum(int((eager(net).get_parameter(n) != 0).sum()) for n in found.masks)
    check(alive <= sum(int(m.sum()) for m in found.masks.values()), "a dead weight is not 0")
    check(bool(torch.isfinite(answer(net, entry.example())).all()), "the output is not finite")


def trained(entry: Entry, stop: int | None) -> tuple[nn.Module, sp.Pruner]:
    """Six steps of training, with a restart from saved states after `stop` of them."""
    x = entry.example()
    schedule = sp.Cubic(to=0.6, begin=0, end=5, every=1)

    def made() -> tuple[nn.Module, torch.optim.Optimizer, sp.Pruner]:
        net = entry.network()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
        return net, optimizer, sp.Pruner(net, sp.Criticality(regrow=sp.Constant(0.2)), schedule).attach(optimizer)

    net, optimizer, pruner = made()
    for step in range(6):
        if step == stop:
            saved = copy.deepcopy((net.state_dict(), optimizer.state_dict(), pruner.state_dict()))
            pruner.finish()
            net, optimizer, pruner = made()
            net.load_state_dict(saved[0])
            optimizer.load_state_dict(saved[1])
            pruner.load_state_dict(saved[2])
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
        reset(net)
    return net, pruner


def resume(entry: Entry) -> None:
    (one, first), (two, second) = trained(entry, None), trained(entry, 3)
    check(all(torch.equal(second.masks[n], m) for n, m in first.masks.items()), "other masks after a restart")
    state = two.state_dict()
    check(all(torch.equal(state[n], v) for n, v in one.state_dict().items()), "other weights after a restart")


def count(entry: Entry) -> None:
    net, x = entry.network(), entry.example()
    found = sp.count(net, [x], time=entry.time)
    samples = x.shape[1] if entry.time == "first" else x.shape[0]
    check(found.samples == samples, f"{found.samples} samples, not {samples}")
    reset(net)
    wanted, products = (count / samples for count in operations(eager(net), x))
    check(abs(found.dense.synops - wanted) < 1e-6 * max(wanted, 1), f"{found.dense.synops:g} not {wanted:g}")
    check(found.products == products, f"{found.products:g} multiplies of activations, not {products:g}")


def shrink(entry: Entry) -> None:
    net, x = entry.network().eval(), entry.example()
    masks = sp.prune(net, "magnitude", 0.3, data=[x], pattern="channel")
    small, _ = sp.shrink(net, masks, x)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (net, small))
    check(after < before, "nothing became smaller")
    same(answer(net, x), answer(small, x))


def same(one: Tensor, two: Tensor) -> None:
    check(one.shape == two.shape, f"shape {tuple(two.shape)}, not {tuple(one.shape)}")
    check(torch.allclose(one, two, rtol=1e-3, atol=1e-4), f"the outputs differ by {float((one - two).abs().max()):g}")


def fuse(entry: Entry) -> None:
    net, x = entry.network().eval(), entry.example()
    wanted = answer(net, x)
    fused = sp.fuse(net)
    same(wanted, answer(fused, x))


def compile_(entry: Entry) -> None:
    net, x = entry.network().eval(), entry.example()
    compiled = sp.compile(net, x)
    same(answer(net, x), compiled(x))


def nir(entry: Entry) -> None:
    import nir as reader

    net, x = entry.network().eval(), entry.example()
    with tempfile.TemporaryDirectory() as folder:
        file = sp.export_nir(net, Path(folder) / "net.nir", x)
        check(len(reader.read(file).nodes) > 3, "hardly any node")


def onnx(entry: Entry) -> None:
    import onnxruntime

    net, x = entry.network().eval(), entry.example()
    with tempfile.TemporaryDirectory() as folder:
        file = sp.export_onnx(net, Path(folder) / "net.onnx", x)
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    same(answer(net, x), torch.from_numpy(out))


DOORS: dict[str, Callable[[Entry], None]] = {
    "neuron": criticality("neuron"),
    "synapse": criticality("synapse"),
    "squeeze": squeeze,
    "resume": resume,
    "count": count,
    "channels": shrink,
    "fuse": fuse,
    "compile": compile_,
    "NIR": nir,
    "ONNX": onnx,
}


def cell(entry: Entry, door: str) -> str:
    """What one architecture gives at one door."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            DOORS[door](entry)
    except Wrong as wrong:
        return f"WRONG {wrong}"
    except UserError as refusal:
        text = str(refusal)
        return (
            text if 20 <= len(text) <= 400 and "\n" not in text.strip() else f"ERROR refusal of {len(text)} characters"
        )
    except Exception as error:  # what this program looks for
        return f"ERROR {type(error).__name__}: {str(error)[:120]}"
    return "ok"


def table(rows: dict[str, dict[str, str]]) -> str:
    """The page: a table of ok and numbers of refusals, and what they say."""
    said: dict[str, int] = {}
    lines = ["| network | idiom | " + " | ".join(DOORS) + " |", "|---|---|" + "---|" * len(DOORS)]
    for name, row in rows.items():
        marks = [_mark(text, said) for text in row.values()]
        lines.append(f"| {name} | {ENTRIES[name].idiom} | " + " | ".join(marks) + " |")
    counts = [f"{door} {sum(row[door] == 'ok' for row in rows.values())}" for door in DOORS]
    notes = [f"{number}. {re.sub(r'[<>|]', ' ', text)}" for text, number in said.items()]
    return "\n".join([*lines, "", f"Of {len(rows)} networks ok: {', '.join(counts)}.", "", *notes, ""])


def _mark(text: str, said: dict[str, int]) -> str:
    words = re.sub(r"^\w+ has no", "The model has no", text)  # the same words whatever the model's class
    return "ok" if text == "ok" else f"[{said.setdefault(words, len(said) + 1)}]"


_HEAD = """# What is supported

This table is printed by `python tests/gallery/run.py`. Each row is a small network in an idiom of public code, each
column a thing that spikeprune does with it; no network has an adapter of its own. "neuron" and "synapse" are pruning by
criticality of that unit, "count" is compared with a count by brute force, "channels" is channel pruning with
`sp.shrink`. A number in brackets is a refusal, and the list below the table gives its words.

"""


def main(names: list[str]) -> int:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    rows, faults = {}, 0
    for name in names or list(ENTRIES):
        started = time.perf_counter()
        rows[name] = {door: cell(ENTRIES[name], door) for door in DOORS}
        bad = {door: text for door, text in rows[name].items() if text.startswith(("WRONG", "ERROR"))}
        faults += len(bad)
        marks = "".join("." if text == "ok" else "X" if door in bad else "-" for door, text in rows[name].items())
        print(f"{name:20s} {marks} {time.perf_counter() - started:5.1f} s", flush=True)
        for door, text in rows[name].items():
            if door in bad or names:
                print(f"    {door:9s} {text}", flush=True)
    if not names:
        # The sections behind the table are of tests/fuzz_networks.py and tests/nir_readers.py.
        behind = "".join(SUPPORTED.read_text().partition("\n## ")[1:])
        SUPPORTED.write_text(_HEAD + table(rows) + behind)
    print(table(rows).rpartition("Of ")[2].partition("\n")[0], "faults:", faults)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
