"""Which framework reads which NIR file: `python tests/nir_readers.py` writes the table into docs/supported.md.

Each network of the gallery that goes to NIR is exported and read back by SpikingJelly, snnTorch and Norse. What was
read runs step by step on the example or a multiple of it, and its output is compared with that of the network. A cell
is "ok" or the number of a reason; the list below the table gives the reasons.
"""

import contextlib
import io
import logging
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))

import nir
import torch
from torch import Tensor

import spikeprune as sp
from gallery.nets import ENTRIES, Entry
from gallery.run import SUPPORTED, answer
from spikeprune.core.errors import UserError

HEADING = "## Readers of the NIR files\n"
DT = 1e-4  # seconds of a step in the files
_UNKNOWN = re.compile(r"Unknown node type <class '[\w.]*\.(\w+)'>.*")  # of SpikingJelly and snnTorch
SCALES = (1.0, 1.5, 2.0, 3.0)  # of the example: the input is the one whose outputs differ most


def spikingjelly(graph: nir.NIRGraph) -> torch.nn.Module:
    from spikingjelly.activation_based import functional, nir_exchange

    net = nir_exchange.import_from_nir(graph)
    functional.set_step_mode(net, "s")
    return net


def snntorch(graph: nir.NIRGraph) -> torch.nn.Module:
    from snntorch.import_nir import import_from_nir

    return import_from_nir(graph)


def norse(graph: nir.NIRGraph) -> torch.nn.Module:
    """Raises: ValueError if Norse leaves nodes out. It does so without a word where it knows no module for one."""
    import norse.torch

    kinds_of = {name.replace(".", "_"): type(node).__name__ for name, node in graph.nodes.items()}
    try:
        net: Any = norse.torch.from_nir(graph, ignore_warnings=True, dt=DT)
    except KeyError as error:  # an edge to a node that was left out
        raise ValueError(f"knows no {kinds_of[error.args[0]]}") from error
    left_out = sorted(kinds_of.keys() - {node.name for node in net.graph.node_list})
    if left_out:
        raise ValueError(f"leaves out {kinds_of[left_out[0]]} without an error")
    return net


def run(net: torch.nn.Module, frames: Tensor) -> Tensor:
    """The outputs [T, ...] of a network that was just imported; its state starts at rest."""
    state, out = None, []
    for frame in frames:
        y = net(frame) if state is None else net(frame, state)
        y, state = y if isinstance(y, tuple) else (y, None)
        out.append(y[0] if isinstance(y, tuple) else y)
    return torch.stack(out)


READERS: dict[str, Callable[[nir.NIRGraph], torch.nn.Module]] = {
    "SpikingJelly": spikingjelly,
    "snnTorch": snntorch,
    "Norse": norse,
}
TAKES_SAMPLES = {"SpikingJelly"}  # its Flatten leaves the first axis, that of the samples, alone


def outputs(content: bytes, reader: str, frames: Tensor) -> Tensor:
    """The outputs [T, N, ...] of a file in a reader for frames [T, N, ...].

    Readers other than SpikingJelly get the samples one by one, without an axis for them. Each sample has a network of
    its own, because some readers keep the state of their neurons from one sample to the next.
    """

    def made() -> torch.nn.Module:
        return READERS[reader](graph_of(content)).eval()

    if reader in TAKES_SAMPLES:
        return run(made(), frames)
    return torch.stack([run(made(), sample) for sample in frames.unbind(1)], 1)


def files(entry: Entry) -> tuple[bytes, Tensor, Tensor] | None:
    """The file of a network, other frames [T, N, ...] and the network's output for them; None if it is refused."""
    net, x = entry.network().eval(), entry.example()
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = sp.export_nir(net, Path(folder) / "net.nir", x)
        except UserError:
            return None
        content = path.read_bytes()
    x = max((scale * x for scale in SCALES), key=lambda scaled: float(answer(net, scaled).std()))
    frames = x.movedim({"first": 0, "batch-first": 1, "last": -1}[entry.time], 0)
    return content, frames, answer(net, x)


def graph_of(content: bytes) -> nir.NIRGraph:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.nir"
        path.write_bytes(content)
        return nir.read(path)


def read(content: bytes, reader: str, frames: Tensor, wanted: Tensor) -> str:
    """ "ok", or why the reader's output is not the network's: what the reader says, or "differs"."""
    try:
        with warnings.catch_warnings(), torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            found = outputs(content, reader, frames).float()
    except Exception as error:  # readers refuse a file by any exception
        return _UNKNOWN.sub(r"knows no \1", " ".join(str(error).split())[:110])
    ways = [found, found.sum(0), found.mean(0), found[-1]]  # NIR holds no sum over time
    if any(way.shape == wanted.shape and torch.allclose(way, wanted, rtol=1e-3, atol=1e-4) for way in ways):
        return "ok"
    return f"the output differs{' (r is not 1)' if 'r is not 1' in kinds(content) else ''}"


def kinds(content: bytes) -> list[str]:
    """Kinds of nodes in a file, and "r is not 1" where a neuron scales its input current."""
    nodes: list[Any] = list(graph_of(content).nodes.values())
    found = {type(node).__name__ for node in nodes} - {"Input", "Output"}
    scaled = any(hasattr(node, "r") and abs(float(torch.as_tensor(node.r).max()) - 1) > 1e-6 for node in nodes)
    return sorted(found) + (["r is not 1"] if scaled else [])


def page() -> str:
    said: dict[str, int] = {}
    lines = ["| network | nodes | " + " | ".join(READERS) + " |", "|---|---|" + "---|" * len(READERS)]
    good = dict.fromkeys(READERS, 0)
    for name, entry in ENTRIES.items():
        made = files(entry)
        if made is None:
            continue
        if float(made[2].std()) < 1e-3:
            raise SystemExit(f"{name} gives the same output everywhere, so a comparison would say nothing")
        texts = {reader: read(made[0], reader, *made[1:]) for reader in READERS}
        print(f"{name:20s} {texts}", flush=True)
        for reader, text in texts.items():
            good[reader] += text == "ok"
        marks = [
            "ok" if text == "ok" else f"[{said.setdefault(text, len(said) + 1)}]" for reader, text in texts.items()
        ]
        lines.append(f"| {name} | {', '.join(kinds(made[0]))} | " + " | ".join(marks) + " |")
    counts = ", ".join(f"{reader} {number}" for reader, number in good.items())
    notes = [f"{number}. {re.sub(r'[<>|]', ' ', text)}" for text, number in said.items()]
    return "\n".join([*lines, "", f"Of {len(lines) - 2} files ok: {counts}.", "", *notes])


def main() -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    text = page()
    before, _, after = SUPPORTED.read_text().partition(HEADING)
    rest = after.partition("\n## ")
    words = (
        "This table is printed by `python tests/nir_readers.py`. It has the networks that go to NIR. A reader is ok\n"
        "if it gives the network's output. A number in brackets is the reason why it does not.\n"
        "[The guide](guide/deploying.md#reading-a-nir-file) says how each reader is fed.\n\n"
    )
    SUPPORTED.write_text(f"{before.rstrip()}\n\n{HEADING}\n{words}{text}\n" + "".join(rest[1:]))


if __name__ == "__main__":
    main()
