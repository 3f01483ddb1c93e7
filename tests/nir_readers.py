"""Which framework reads which NIR file: `python tests/nir_readers.py` writes the table into docs/supported.md.

Each network of the gallery that goes to NIR is exported, read back by SpikingJelly, snnTorch and Norse, run step by
step on another input, and compared with the network that was exported. A cell is "ok", the number of a reason why the
reader does not take the file, or the reason why it computes something else.
"""

import contextlib
import io
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

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


def spikingjelly(graph: nir.NIRGraph, frames: Tensor) -> Tensor:
    from spikingjelly.activation_based import functional, nir_exchange

    net = nir_exchange.import_from_nir(graph)
    functional.set_step_mode(net, "s")
    functional.reset_net(net)
    return _by_steps(net, frames)


def snntorch(graph: nir.NIRGraph, frames: Tensor) -> Tensor:
    from snntorch.import_nir import import_from_nir

    return _by_samples(import_from_nir(graph), frames)


def norse(graph: nir.NIRGraph, frames: Tensor) -> Tensor:
    import norse.torch

    return _by_samples(norse.torch.from_nir(graph, ignore_warnings=True, dt=DT), frames)


def _by_steps(net: torch.nn.Module, frames: Tensor) -> Tensor:
    state, out = None, []
    for frame in frames:
        y = net(frame) if state is None else net(frame, state)
        y, state = y if isinstance(y, tuple) else (y, None)
        out.append(y[0] if isinstance(y, tuple) else y)
    return torch.stack(out)


def _by_samples(net: torch.nn.Module, frames: Tensor) -> Tensor:
    """Samples one by one, without an axis for them: a Flatten of NIR knows none."""
    return torch.stack([_by_steps(net, sample) for sample in frames.unbind(1)], 1)


READERS: dict[str, Callable[[nir.NIRGraph, Tensor], Tensor]] = {
    "SpikingJelly": spikingjelly,
    "snnTorch": snntorch,
    "Norse": norse,
}


def files(entry: Entry) -> tuple[bytes, Tensor, Tensor] | None:
    """The file of a network, frames [T, N, ...] and what the network makes of them; None if it is refused."""
    net, x = entry.network().eval(), entry.example()
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = sp.export_nir(net, Path(folder) / "net.nir", x)
        except UserError:
            return None
        content = path.read_bytes()
    frames = x.movedim({"first": 0, "batch-first": 1, "last": -1}[entry.time], 0)
    return content, frames, answer(net, x)


def graph_of(content: bytes) -> nir.NIRGraph:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.nir"
        path.write_bytes(content)
        return nir.read(path)


def read(content: bytes, reader: str, frames: Tensor, wanted: Tensor) -> str:
    """ "ok", "differs", or what the reader says."""
    try:
        with warnings.catch_warnings(), torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            found = READERS[reader](graph_of(content), frames).float()
    except Exception as error:  # whatever a reader raises is its way to say no
        return f"{type(error).__name__}: {' '.join(str(error).split())[:110]}"
    ways = [found, found.sum(0), found.mean(0), found[-1]]  # time is reduced by who reads the file
    same = (way.shape == wanted.shape and torch.allclose(way, wanted, rtol=1e-3, atol=1e-3) for way in ways)
    return "ok" if any(same) else f"differs ({', '.join(kinds(content))})"


def kinds(content: bytes) -> list[str]:
    """What is in a file that a reader may not know: kinds of nodes, and r != 1."""
    nodes = list(graph_of(content).nodes.values())
    found = {type(node).__name__ for node in nodes} - {"Input", "Output"}
    scaled = any(hasattr(node, "r") and abs(float(torch.as_tensor(node.r).max()) - 1) > 1e-6 for node in nodes)
    return sorted(found) + (["r is not 1"] if scaled else [])


def page() -> str:
    said: dict[str, int] = {}
    lines = ["| network | nodes | " + " | ".join(READERS) + " |", "|---|---|" + "---|" * len(READERS)]
    good = dict.fromkeys(READERS, 0)
    twice = 0
    for name, entry in ENTRIES.items():
        made = files(entry)
        if made is None:
            continue
        marks = []
        for reader in READERS:
            text = read(made[0], reader, *made[1:])
            good[reader] += text == "ok"
            text = f"{reader}: {text}" if text != "ok" else text
            marks.append("ok" if text == "ok" else f"[{said.setdefault(text, len(said) + 1)}]")
            print(f"{name:20s} {text}", flush=True)
        twice += marks.count("ok") >= 2
        lines.append(f"| {name} | {', '.join(kinds(made[0]))} | " + " | ".join(marks) + " |")
    count = len(lines) - 2
    tail = [
        f"Of {count} files ok: {', '.join(f'{r} {n}' for r, n in good.items())}; {twice} in two or more of them.",
        "",
    ]
    tail += [f"{number}. {text.replace('|', ' ')}" for text, number in said.items()]
    return "\n".join([*lines, "", *tail])


def main() -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    text = page()
    before, _, after = SUPPORTED.read_text().partition(HEADING)
    rest = after.partition("\n## ")
    words = "The table is printed by `python tests/nir_readers.py`.\n\n"
    SUPPORTED.write_text(f"{before.rstrip()}\n\n{HEADING}\n{words}{text}\n" + "".join(rest[1:]))


if __name__ == "__main__":
    main()
