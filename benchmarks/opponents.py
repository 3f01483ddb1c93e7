"""One small convolutional network written in SpikingJelly, snnTorch and Norse, and compiled: who is how fast?

    python benchmarks/opponents.py [--sparsities 0 0.95] [--batches 1 32] [--repeats 5] [--out FILE]

28x28 images, T=5: conv 1-32, LIF, pool, conv 32-64, LIF, pool, Linear, mean over time. The static first convolution is
computed once in each. LIF: v_pre = v/2 + x/2, threshold 1, hard reset. Spikes of every layer are compared before
anything is timed. ONNX Runtime and OpenVINO get the exported network. One thread, CPU seconds, medians of interleaved
runs in one process; `speedup` is of the compiled network over each of the others.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import norse.torch as norse
import snntorch
import torch
import torch.nn.functional as F
from common import keep, machine, one_thread
from spikingjelly.activation_based import layer, neuron
from spikingjelly.activation_based.functional import reset_net
from torch import Tensor, nn

from spikeprune.runtime import bench
from spikeprune.runtime.compile import compile

T = 5
Spikes = list[Tensor]
Runner = Callable[[Tensor], Any]


class Jelly(nn.Module):
    """SpikingJelly, multi-step: the network that is compiled, and whose weights the others get."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = layer.Conv2d(1, 32, 3, padding=1, bias=False)
        self.first = neuron.LIFNode(tau=2.0, detach_reset=True, step_mode="m")
        self.pool = layer.MaxPool2d(2, step_mode="m")
        self.conv = layer.Conv2d(32, 64, 3, padding=1, bias=False, step_mode="m")
        self.second = neuron.LIFNode(tau=2.0, detach_reset=True, step_mode="m")
        self.flatten = nn.Flatten(2)
        self.head = layer.Linear(64 * 49, 10, step_mode="m")

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).unsqueeze(0).repeat(T, 1, 1, 1, 1)
        x = self.pool(self.first(x))
        x = self.pool(self.second(self.conv(x)))
        return self.head(self.flatten(x)).mean(0)


def loop(
    model: Jelly, scale: float, first: Any, second: Any, spikes: Spikes | None = None
) -> Callable[[Tensor], Tensor]:
    """A step loop as snnTorch and Norse tutorials write it; a cell takes (input, state) and gives (spikes, state)."""
    stem, conv = model.stem.weight * scale, model.conv.weight * scale
    head, bias = model.head.weight, model.head.bias

    def run(x: Tensor) -> Tensor:
        v, w, total = None, None, torch.zeros(())
        current = F.conv2d(x, stem, padding=1)
        for _ in range(T):
            s, v = first(current, v)
            r, w = second(F.conv2d(F.max_pool2d(s, 2), conv, padding=1), w)
            if spikes is not None:
                spikes.extend((s, r))
            total = total + F.linear(F.max_pool2d(r, 2).flatten(1), head, bias)
        return total / T

    return run


def snntorch_cells() -> tuple[Any, Any]:
    # mem = mem / 2 + x, so its weights are halved: exact, as 1/2 is a power of two.
    def cell() -> Any:
        leaky = snntorch.Leaky(beta=0.5, threshold=1.0, reset_mechanism="zero", reset_delay=False)
        return lambda x, mem: leaky(x, torch.zeros_like(x) if mem is None else mem)

    return cell(), cell()


def norse_cells() -> tuple[Any, Any]:
    p = norse.LIFBoxParameters(tau_mem_inv=torch.as_tensor(500.0), v_th=torch.as_tensor(1.0))  # times dt = 0.001: 1/2
    return norse.LIFBoxCell(p=p), norse.LIFBoxCell(p=p)


def check(name: str, found: Spikes, model: Jelly, x: Tensor) -> None:
    """Raises: RuntimeError if more than ties differ from SpikingJelly's spikes."""
    expected: dict[str, Tensor] = {}
    hooks = [
        getattr(model, part).register_forward_hook(lambda _, __, out, part=part: expected.__setitem__(part, out))
        for part in ("first", "second")
    ]
    reset_net(model)
    model(x)
    for hook in hooks:
        hook.remove()
    for place, part in enumerate(("first", "second")):
        theirs = torch.stack(found[place::2])
        differ = int((theirs != expected[part]).sum())
        if differ > max(2, 1e-5 * theirs.numel()) or not theirs.any():
            raise RuntimeError(f"{name}: {differ} of {theirs.numel()} spikes of {part!r} differ; not timed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.0, 0.95])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/opponents.json"))
    options = parser.parse_args()
    one_thread()
    found: dict[str, Any] = {"machine": machine(), "repeats": options.repeats, "rows": []}
    for sparsity in options.sparsities:
        torch.manual_seed(0)
        model = Jelly().eval()
        for weight in (model.stem.weight, model.conv.weight, model.head.weight):
            weight.data *= 3 / (1 - sparsity) ** 0.5  # so that neurons fire, also on what is left
            cut = weight.abs().flatten().kthvalue(max(1, int(sparsity * weight.numel()))).values
            weight.data *= weight.abs() > (cut if sparsity else -1)
        for batch in options.batches:
            x = torch.rand(batch, 1, 28, 28)
            with torch.no_grad():
                found["rows"].append(row(model, x, sparsity, options.repeats))
            keep(options.out, found)


def row(model: Jelly, x: Tensor, sparsity: float, repeats: int) -> dict[str, Any]:
    cells = {"snntorch": (0.5, snntorch_cells), "norse": (1.0, norse_cells)}
    for name, (scale, make) in cells.items():
        spikes: Spikes = []
        loop(model, scale, *make(), spikes)(x)
        check(name, spikes, model, x)
    compiled = compile(model, x[:2])
    bench.assert_same_spikes(model, compiled, x)

    def jelly(x: Tensor) -> Tensor:
        reset_net(model)
        return model(x)

    runners: dict[str, Runner] = {"compiled": compiled, "spikingjelly": jelly}
    runners |= {name: loop(model, scale, *make()) for name, (scale, make) in cells.items()}
    runners |= bench.exported_runners(compiled, x, 1)
    times: dict[str, list[float]] = {name: [] for name in runners}
    for run in runners.values():
        run(x)
    for _ in range(repeats):
        for name, run in runners.items():
            times[name].append(bench.call_time(run, x, time.process_time, 0.1))
    entry = {
        "sparsity": sparsity, "batch": len(x), "ms": {n: 1e3 * statistics.median(t) for n, t in times.items()},
        "speedup": {
            name: statistics.median(a / b for a, b in zip(t, times["compiled"], strict=True))
            for name, t in times.items() if name != "compiled"
        },
    }  # fmt: skip
    factors = ", ".join(f"{factor:.2f}x over {name}" for name, factor in entry["speedup"].items())
    print(f"sparsity {sparsity}, batch {len(x)}: compiled {entry['ms']['compiled']:.3f} ms; {factors}", flush=True)
    return entry


if __name__ == "__main__":
    main()
