"""Numbers that are the same on every machine, and digests: what the comparisons with the authors' code share."""

import argparse
import hashlib
import json
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

NUMBERS = Path(__file__).parent / "numbers"


def uniform(shape: tuple[int, ...], seed: int) -> Tensor:
    """Float64 in (-1, 1) from integers alone, so that no random generator and no libm has a part in it."""
    count = 1
    for size in shape:
        count *= size
    x = torch.arange(1, count + 1, dtype=torch.int64) + seed * 7_919
    for _ in range(3):
        x = ((x * 48_271 + 11) ^ (x >> 7)) % 2_147_483_647
    return (x.double() / 2_147_483_647 * 2 - 1).reshape(shape)


def mask_digest(masks: Mapping[str, Tensor]) -> str:
    """A digest of masks by sorted name."""
    bits = b"".join((masks[n] != 0).to(torch.uint8).flatten().numpy().tobytes() for n in sorted(masks))
    return hashlib.sha256(bits).hexdigest()[:16]


def value_digest(values: Mapping[str, Tensor], digits: int = 9) -> dict[str, float]:
    """Name -> the rounded sum of |x| of each tensor; sorted."""
    return {n: round(float(values[n].detach().abs().sum()), digits) for n in sorted(values)}


def run_on_the_cpu(checkout: Path) -> None:
    """Lets authors' code be imported on a CPU: their folder first, `.cuda()` without effect, old modules as stubs."""
    sys.path.insert(0, str(checkout))
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    torch.nn.Module.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    stubs: dict[str, dict[str, Any]] = {
        "IPython": {"embed": None},
        "spikingjelly.clock_driven": {"functional": None, "layer": None, "surrogate": _Surrogate, "neuron": _Neuron},
    }
    for name, content in stubs.items():
        stub = types.ModuleType(name)
        vars(stub).update(content)
        sys.modules[name] = stub


class _Surrogate:
    @staticmethod
    def Sigmoid() -> None:
        """A default argument of a class that is never made."""

    ATan = Sigmoid


class _Neuron:
    class LIFNode(torch.nn.Module):
        """The base of a class that is never made."""

    BaseNode = torch.nn.Module


def compared(about: str | None, file: Path, setting: Any, theirs: Any, ours: Any) -> int:
    """The command line of a comparison: theirs beside ours, update by update; 1 if a mask differs.

    Args:
        theirs: checkout -> {"updates": [{"masks": digest, ...}, ...], ...}.
        ours: the same of this library, without an argument.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found, mine = theirs(arguments.checkout), ours()
    equal = [a["masks"] == b["masks"] for a, b in zip(found["updates"], mine["updates"], strict=True)]
    for number, (a, b) in enumerate(zip(found["updates"], mine["updates"], strict=True), 1):
        print(number, "equal" if equal[number - 1] else "DIFFERENT", "theirs", a, "ours", b, sep="\n  ")
    print(f"{sum(equal)} of {len(equal)} mask updates are equal")
    if arguments.write:
        file.write_text(json.dumps({"setting": setting, "equal": equal, "theirs": found}, indent=1) + "\n")
    return int(not all(equal))
