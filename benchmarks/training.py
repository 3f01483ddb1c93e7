"""Training speed and memory: fused against plain SpikingJelly and against the same network with ReLU, and fine-tuning
over the weights alive against masked dense training.

    python benchmarks/training.py [speed] [memory] [sparse] [--repeats 5] [--threads 1]

Speed is CPU time of a step (`time.process_time`), medians of repeats that take turns in one process; only ratios mean
something on a shared machine. Memory is the largest resident set of a fresh process minus what it held after its
imports. bfloat16 rows appear only where the processor computes in it (avx512_bf16 or amx).
"""

import argparse
import copy
import gc
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch._dynamo  # the first optimizer imports it; no part of what training takes
from spikingjelly.activation_based import functional
from torch import Tensor, nn

from spikeprune.model.adapter import adapter_for
from spikeprune.runtime.bench import FLAGS
from spikeprune.runtime.fuse import fuse
from spikeprune.runtime.fuse import model as fused_model
from spikeprune.runtime.fuse.events import convolution
from spikeprune.runtime.native import cpu_features, cpu_name
from spikeprune.runtime.sparse_train import densify, sparsify
from spikeprune.zoo import build
from spikeprune.zoo.readout import LOSSES


def with_relu(model: nn.Module) -> nn.Module:
    """The network with every neuron replaced by a ReLU: the floor of dense training."""
    neurons = set(adapter_for(model).neurons(model).values())
    for module in list(model.modules()):
        for name, child in module.named_children():
            if child in neurons:
                setattr(module, name, nn.ReLU())
    return model


def step(model: nn.Module, x: Tensor, target: Tensor, optimizer: torch.optim.Optimizer, masks: dict) -> float:
    """One optimizer step, masked if there are masks; returns its CPU time in seconds."""
    began = time.process_time()
    optimizer.zero_grad()
    functional.reset_net(model)
    LOSSES[model.readout](model(x), target).backward()
    for parameter, mask in masks.items():
        parameter.grad.mul_(mask)
    optimizer.step()
    for parameter, mask in masks.items():
        parameter.data.mul_(mask)
    return time.process_time() - began


def no_convolution(*_: object) -> None:
    """In place of the convolution by spikes: the layer's own runs."""


class Contest:
    """Networks of one shape that take turns."""

    def __init__(self, batch: int, repeats: int) -> None:
        self.batch, self.repeats = batch, repeats
        self.rivals: dict[str, tuple] = {}

    def add(self, name: str, net: nn.Module, masks: dict[str, Tensor] | None = None) -> None:
        channels_last = "channels last" in name
        if channels_last:
            net.to(memory_format=torch.channels_last)
        x = torch.rand(self.batch, *net.image_shape, generator=torch.Generator().manual_seed(0))
        x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
        parameters = dict(net.named_parameters())
        by_parameter = {parameters[n]: m.float() for n, m in (masks or {}).items()}
        self.rivals[name] = net, x, torch.arange(self.batch) % 10, optimizer, by_parameter

    def run(self) -> dict[str, list[float]]:
        times: dict[str, list[float]] = {name: [] for name in self.rivals}
        gc.disable()
        for repeat in range(self.repeats + 2):  # the first two warm caches and let the fused ones see their pairs
            for name, rival in self.rivals.items():
                # Dense stands for convolutions that know nothing of spikes.
                fused_model.convolution = no_convolution if "dense" in name else convolution
                seconds = step(*rival)
                if repeat > 1:
                    times[name].append(seconds)
        gc.enable()
        return times


def table(title: str, times: dict[str, list[float]], batch: int) -> dict[str, float]:
    print(f"\n{title}")
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, values in times.items():
        spread = f"{min(values) * 1e3:.0f}-{max(values) * 1e3:.0f}"
        print(
            f"  {name:38s} {medians[name] * 1e3:8.1f} ms ({spread}), {batch / medians[name]:8.1f} images per CPU-second"
        )
    return medians


def fastest(medians: dict[str, float], kind: str) -> float:
    return min(value for name, value in medians.items() if name.startswith(kind))


def goal(what: str, value: float, bound: float, at_least: bool) -> None:
    met = value >= bound if at_least else value <= bound
    print(f"  -> {what}: {value:.2f}x (goal {'>=' if at_least else '<='} {bound}x) {'met' if met else 'MISSED'}")


def speed(repeats: int) -> None:
    """A step of the fused network against plain SpikingJelly and against ReLU."""
    for name, T, size, batch in (
        ("digits-conv", 4, 8, 128),
        ("fashion-conv", 4, 28, 128),
        ("vgg16-weights", 5, 32, 16),
    ):
        torch.manual_seed(0)
        plain = build(name, T=T, size=size)
        contest = Contest(batch, repeats)
        for form in ("", ", channels last"):
            contest.add("SpikingJelly" + form, copy.deepcopy(plain))
            contest.add("fused" + form, fuse(copy.deepcopy(plain)))
            contest.add("ReLU" + form, with_relu(copy.deepcopy(plain)))
        medians = table(f"{name}, T={T}, batch {batch}, fp32: one training step", contest.run(), batch)
        ours = fastest(medians, "fused")
        if name.startswith("vgg"):
            goal("fused over ReLU, time", ours / fastest(medians, "ReLU"), 1.10, at_least=False)
            print(f"  -> SpikingJelly over fused, time: {fastest(medians, 'SpikingJelly') / ours:.2f}x")
        else:
            goal("throughput over SpikingJelly", medians["SpikingJelly"] / ours, 2.0, at_least=True)
            goal("throughput over SpikingJelly channels last",
                 medians["SpikingJelly, channels last"] / ours, 2.0, at_least=True)  # fmt: skip


def random_masks(model: nn.Module, alive: float) -> dict[str, Tensor]:
    """Uniform masks, applied."""
    made = torch.Generator().manual_seed(1)
    masks = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() in (2, 4):
            masks[name] = torch.rand(parameter.shape, generator=made) < alive
            parameter.data.mul_(masks[name])
    return masks


def sparse(repeats: int) -> None:
    """A masked step of VGG-16 at T = 5 by share of weights alive, which for uniform masks is that of multiplies."""
    for alive in (0.02, 0.05, 0.10, 0.20):
        torch.manual_seed(0)
        plain = build("vgg16-weights", T=5, size=32)
        masks = random_masks(plain, alive)
        contest = Contest(16, repeats)
        for form in ("", ", channels last"):
            contest.add("masked dense, fused" + form, fuse(copy.deepcopy(plain)), masks)
        contest.add("masked, by spikes, fused, channels last", fuse(copy.deepcopy(plain)), masks)
        ours = fuse(copy.deepcopy(plain))
        report = sparsify(ours, masks)
        contest.add("sparse, fused", ours, masks)
        medians = table(
            f"vgg16-weights, T=5, batch 16, fp32, {alive:.0%} of multiplies kept (uniform masks), "
            f"{sum(row.sparse for row in report)} of {len(report)} layers sparse: one fine-tuning step",
            contest.run(), 16,
        )  # fmt: skip
        densify(ours)
        ratio = fastest(medians, "masked dense") / fastest(medians, "sparse")
        if alive <= 0.05:
            goal("speed over masked dense", ratio, 2.5, at_least=True)
        else:
            print(f"  -> speed over masked dense: {ratio:.2f}x")
        by_spikes = fastest(medians, "masked, by spikes")
        print(f"  -> speed over masked dense by spikes (sp.fuse as it is): {by_spikes / medians['sparse, fused']:.2f}x")


def resident() -> int:
    """The largest resident set of this process so far, in bytes.

    Linux hands the figure of `getrusage` on to child processes, so a child would begin at its parent's peak; the one in
    /proc begins anew with each program.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def one_memory(kind: str) -> None:
    """In a process of its own: three training steps of VGG-16 at batch 16; prints the growth in MiB."""
    before = resident()
    torch.manual_seed(0)
    net = build("vgg16-weights", T=5, size=32)
    if kind.startswith("fused"):
        fuse(net)
    contest = Contest(16, 1)
    contest.add(kind, net)
    contest.run()
    print((resident() - before) / 2**20)


def memory() -> None:
    """Growth of the resident set over import, plain SpikingJelly against fused."""
    print("\nvgg16-weights, T=5, batch 16, fp32: growth of the resident set over three training steps")
    found = {}
    for kind in ("SpikingJelly", "SpikingJelly, channels last", "fused", "fused, channels last"):
        command = [sys.executable, __file__, "--one-memory", kind]
        found[kind] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
        print(f"  {kind:38s} {found[kind]:8.0f} MiB")
    goal("memory over SpikingJelly", fastest(found, "fused") / fastest(found, "SpikingJelly"), 0.35, at_least=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], "speed", "memory", "sparse"], default=[])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one-memory", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.one_memory:
        return one_memory(arguments.one_memory)
    features = cpu_features()
    print(f"{cpu_name()}; {' '.join(flag for flag in FLAGS if flag in features)}; torch {torch.__version__}, "
          f"{arguments.threads} thread(s), CPU time")  # fmt: skip
    if not features & {"avx512_bf16", "amx_bf16"}:
        print("bf16 rows: not applicable, this processor does not compute in bfloat16")
    parts = arguments.parts or ["speed", "memory", "sparse"]
    if "speed" in parts:
        speed(arguments.repeats)
    if "memory" in parts:
        memory()
    if "sparse" in parts:
        sparse(arguments.repeats)


if __name__ == "__main__":
    main()
