"""Random small networks through every door: `python tests/fuzz_networks.py --count 2000 --seed 2026`.

`fuzz_draw.network` draws each network from its number alone. Its outputs in eager mode are compared with those of the
fused, compiled, saved and loaded, and shrunk network, of the NIR graph run by its own equations, and of the ONNX file
in onnxruntime; its synaptic operations with a count by brute force. A door may refuse; it may not differ.

A door is shown another input, often a quiet one, than those that are compared. Samples on which a potential lies
within rounding of its threshold are told by networks with slightly other weights, and left out.

With `--json FILE` each chunk of networks is written down as it ends: a stopped run goes on, and several processes
(`--share 1/2`, `--share 2/2`) fill one file. `--page` writes the totals of tests/fuzz-totals.json into the docs.
"""

import argparse
import copy
import fcntl
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))

import torch

import spikeprune as sp
from fuzz_draw import KINDS, Drawn, network
from gallery.oracle import operations
from spikeprune.core.errors import UserError
from spikeprune.model.adapter import find_adapter

CHUNK = 20
OUTCOMES = ("ok", "refused", "differs", "error")
TOTALS = Path(__file__).parent / "fuzz-totals.json"
PAGE = Path(__file__).parents[1] / "docs" / "supported.md"
HEADING = "## Random networks\n"


class Differs(Exception):
    """A result that is not what it should be."""


def eager(model, x):
    adapter = find_adapter(model)
    if adapter is not None:
        adapter.reset(model)
    with torch.no_grad():
        out = model(x)
    if adapter is not None:
        adapter.reset(model)
    return out


def by_sample(drawn, out):
    """[N, values] of an output: [N, classes], or with time as in the input."""
    if out.dim() == 2:
        return out
    return drawn.steps(out).transpose(0, 1).flatten(1)


def steady(drawn, model, x):
    """The output, and the samples whose output stays where all weights change by about 2e-6 of themselves."""
    wanted = by_sample(drawn, eager(model, x))
    kept = torch.ones(len(wanted), dtype=torch.bool)
    for seed in range(3):
        other, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in other.parameters():
                p.mul_(1 + 2e-6 * torch.randn(p.shape, generator=generator))
        kept &= ~_far(by_sample(drawn, eager(other, x)), wanted)
    return wanted, kept


def _far(found, wanted):
    return ((found - wanted).abs() > 1e-3 * wanted.abs().max() + 1e-4).any(1)


def compare(drawn, model, x, found):
    wanted, kept = steady(drawn, model, x)
    found = by_sample(drawn, found)
    if found.shape != wanted.shape:
        raise Differs(f"shape {tuple(found.shape)}, not {tuple(wanted.shape)}")
    far = _far(found.float(), wanted) & kept
    if bool(far.any()):
        raise Differs(f"{int(far.sum())} of {len(far)} samples, up to {float((found - wanted).abs().max()):g}")


def fused(drawn, folder):
    model = drawn.model
    other = sp.fuse(copy.deepcopy(model))
    for x in drawn.inputs:
        compare(drawn, model, x, eager(other, x))
    if drawn.kind != KINDS[0]:  # nothing else runs in the kernel
        return
    x, gradients = drawn.inputs[0].double(), []
    for each in (copy.deepcopy(model), sp.fuse(copy.deepcopy(model))):
        each.double().train()
        out = each(x)
        (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)).sum().backward()
        gradients.append([p.grad for p in each.parameters()])
    for (name, _), one, two in zip(model.named_parameters(), *gradients, strict=True):
        if (one is None) != (two is None) or (one is not None and not torch.allclose(one, two, 1e-6, 1e-8)):
            raise Differs(f"the gradient of {name}")


def compiled(drawn, folder):
    made = sp.compile(drawn.model, drawn.example)
    made.save(folder / "net.compiled")
    loaded = sp.load(folder / "net.compiled")
    for x in drawn.inputs:
        found = made(x)
        if not torch.equal(found, loaded(x)):
            raise Differs("the loaded network differs from the saved one")
        compare(drawn, drawn.model, x, found)


def shrunk(drawn, folder):
    model = copy.deepcopy(drawn.model)
    masks = sp.prune(model, "magnitude", 0.3, data=[drawn.example], pattern="channel")
    small = sp.shrink(model, masks, drawn.example)[0]
    for x in drawn.inputs:
        compare(drawn, model, x, eager(small, x))


def counted(drawn, folder):
    x = drawn.inputs[1]
    found = sp.count(drawn.model, [x], time=drawn.time)
    wanted = operations(drawn.model, x)[0] / x.shape[drawn.samples]
    if found.samples != x.shape[drawn.samples] or abs(found.dense.synops - wanted) > 1e-6 * max(wanted, 1):
        raise Differs(f"{found.dense.synops:g} synaptic operations of {found.samples} samples, not {wanted:g}")


def nir(drawn, folder):
    import nir as reader

    from nir_run import Simulator

    graph = reader.read(sp.export_nir(drawn.model, folder / "net.nir", drawn.example))
    x, how = drawn.inputs[0], drawn.model.out
    y = Simulator(graph).run(drawn.steps(x)).float()
    if how == "all":
        y = y.movedim(0, {"first": 0, "batch-first": 1, "last": -1}[drawn.time])
    else:  # the file's reader reduces over time; a division by T is in the file where the model has it last
        wanted = eager(drawn.model, x)
        ways = {"sum": [y.sum(0)], "last": [y[-1]], "mean": [y.mean(0), y.sum(0)]}[how]
        y = min(ways, key=lambda way: float((way - wanted).abs().max()))
    compare(drawn, drawn.model, x, y)


def onnx(drawn, folder):
    import onnxruntime

    path = sp.export_onnx(drawn.model, folder / "net.onnx", drawn.example)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x = drawn.inputs[0]
    compare(drawn, drawn.model, x, torch.from_numpy(session.run(None, {"x": x.numpy()})[0]))


DOORS = {"counted": counted, "fused": fused, "compiled": compiled, "shrunk": shrunk, "NIR": nir, "ONNX": onnx}
RARE = ("NIR", "ONNX")  # every tenth network, unless all are asked for


def outcome(drawn: Drawn, door: str) -> tuple[str, str]:
    """("ok" | "refused" | "differs" | "error", words) of one network at one door."""
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            DOORS[door](drawn, Path(folder))
    except UserError as refusal:
        return "refused", str(refusal)
    except Differs as fault:
        return "differs", f"{drawn.kind}: {fault}"
    except Exception as error:  # what this program looks for
        return "error", f"{drawn.kind}: {type(error).__name__}: {str(error)[:200]}"
    return "ok", ""


def run(numbers, seed, doors, everything, said):
    """Door -> outcome -> how many, of some networks; faults are printed."""
    found = {door: Counter() for door in doors}
    for number in numbers:
        drawn = network(number, seed)
        for door in doors:
            if door in RARE and not everything and (number // len(KINDS)) % 10:
                continue
            what, words = outcome(drawn, door)
            found[door][what] += 1
            if what == "refused":
                said[door, words[:110]] += 1
            elif what != "ok":
                print(f"network {number} {door}: {what} {words}", flush=True)
    return {door: dict(counts) for door, counts in found.items()}


class Totals:
    """What is known of the chunks of one seed, in a file that several processes may write."""

    def __init__(self, path, seed):
        self.path, self.seed = path, seed
        self.chunks = self._read() if path is not None else {}

    def _read(self):
        if not self.path.exists():
            return {}
        content = json.loads(self.path.read_text())
        if content["seed"] != self.seed:
            raise SystemExit(f"{self.path} is of seed {content['seed']}; pass --seed {content['seed']} or another file")
        return content["chunks"]

    def add(self, first, found):
        self.chunks[str(first)] = found
        if self.path is None:
            return
        folder = os.open(self.path.absolute().parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            self.chunks = self._read() | {str(first): found}
            ordered = dict(sorted(self.chunks.items(), key=lambda item: int(item[0])))
            text = json.dumps({"seed": self.seed, "chunk": CHUNK, "chunks": ordered}, indent=0)
            fresh = Path(f"{self.path}.{os.getpid()}")
            fresh.write_text(text + "\n")
            fresh.replace(self.path)
        finally:
            os.close(folder)

    def sums(self):
        """Door -> outcome -> how many, of all chunks."""
        found = {}
        for chunk in self.chunks.values():
            for door, counts in chunk.items():
                found.setdefault(door, Counter()).update(counts)
        return found


def page(content):
    """The part of docs/supported.md about these networks."""
    totals = Totals(None, content["seed"])
    totals.chunks = content["chunks"]
    networks = CHUNK * len(totals.chunks)
    lines = [
        f"{networks:,} random small networks (`python tests/fuzz_networks.py --count {networks} --seed {totals.seed} "
        "--json FILE`), compared with the network in eager mode; a count is compared with one by brute force. NIR and "
        "ONNX take every tenth. `tests/fuzz_draw.py` lists what is drawn.",
        "",
        "| door | networks | " + " | ".join(OUTCOMES) + " |",
        "|---|---|" + "---|" * len(OUTCOMES),
    ]
    for door, counts in totals.sums().items():
        lines.append(f"| {door} | {sum(counts.values())} | " + " | ".join(str(counts[w]) for w in OUTCOMES) + " |")
    return "\n" + "\n".join(lines) + "\n"


def write_page(to=PAGE, totals=TOTALS):
    kept = to.read_text().partition(HEADING)[0].rstrip()
    if totals.exists():
        kept += f"\n\n{HEADING}{page(json.loads(totals.read_text()))}"
    to.write_text(kept.rstrip() + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--share", default="1/1", help="2/3: the second of three processes that share the networks")
    parser.add_argument("--json", type=Path, help="the file of totals; a run that was stopped goes on from it")
    parser.add_argument("--all", action="store_true", help="NIR and ONNX for all networks, not for every tenth")
    parser.add_argument("--doors", nargs="+", choices=list(DOORS), default=list(DOORS))
    parser.add_argument("--page", action="store_true", help="writes the committed totals into the docs, nothing else")
    given = parser.parse_args()
    if given.page:
        return write_page()
    torch.set_num_threads(1)
    totals, said, started = Totals(given.json, given.seed), Counter(), time.perf_counter()
    own, shares = map(int, given.share.split("/"))
    for first in range(given.first, given.first + given.count, CHUNK):
        if (first // CHUNK) % shares == own - 1 and str(first) not in totals.chunks:
            last = min(first + CHUNK, given.first + given.count)
            totals.add(first, run(range(first, last), given.seed, given.doors, given.all, said))
    for door, counts in totals.sums().items():
        print(f"{door:9s}", "  ".join(f"{what} {counts[what]}" for what in OUTCOMES))
    for (door, words), count in said.most_common(12):
        print(f"{count:5d} x {door}: {words}")
    print(f"seed {given.seed}, {time.perf_counter() - started:.0f} s")
    return int(any(counts[what] for counts in totals.sums().values() for what in ("differs", "error")))


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    sys.exit(main())
