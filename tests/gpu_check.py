"""Everything that must hold on a GPU, in one run without network: correctness, overhead, speed, memory.

    python tests/gpu_check.py [--cpu] [--device cuda:1] [--minutes 8]

Needs a checkout, its dependencies, and a CUDA torch; `--cpu` runs the same checks on the CPU. Each check prints one
line, `ok` or `WRONG`; measurements print their number. The exit status is the number of wrong ones.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))

import spikeprune as sp
from nets import batch, conv_net
from spikeprune.methods.registry import method_class

UPDATES = sp.Cubic(to=0.9, begin=0, end=8, every=2)


class Checks:
    """Runs the checks one by one, until the time is over."""

    def __init__(self, device: torch.device, seconds: float) -> None:
        self.device, self.ends, self.wrong = device, time.perf_counter() + seconds, 0

    def check(self, name: str, function: Callable[[torch.device], str | None]) -> None:
        """Runs one check, which returns what to print of it, and raises if something is wrong."""
        if time.perf_counter() > self.ends:
            print(f"left out  {name}: no time", flush=True)
            return
        began = time.perf_counter()
        try:
            said = function(self.device) or ""
            kind = "ok"
        except Exception as error:  # one wrong check does not stop the others
            kind, said = "WRONG", f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
            self.wrong += 1
        print(f"{kind:<9} {name} ({time.perf_counter() - began:.1f} s) {said}", flush=True)


def sync(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device, first: int, count: int) -> None:
    for step in range(first, first + count):
        x, y = (t.to(device) for t in batch(step))
        optimizer.zero_grad()
        F.cross_entropy(model(x).mean(0), y).backward()
        optimizer.step()
        functional.reset_net(model)


def trained(
    device: torch.device, method: Any = "criticality", to_first: bool = True, schedule: Any = UPDATES, **settings: Any
) -> Any:
    """A small network after 10 steps with a Pruner, and the Pruner."""
    model = conv_net()
    if to_first:
        model.to(device)
    pruner = sp.Pruner(model, method, schedule, **settings)
    model.to(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    pruner.attach(optimizer)
    steps(model, optimizer, device, 1, 10)
    return model, pruner, optimizer


def zeros_hold(model: nn.Module, pruner: sp.Pruner, optimizer: torch.optim.Optimizer) -> None:
    parameters = dict(model.named_parameters())
    for name, mask in pruner.masks.items():
        assert mask.device == parameters[name].device, f"the mask of {name} lies elsewhere"
        assert not parameters[name][~mask].any(), f"{name} has dead weights that are not 0"
        for key, value in optimizer.state[parameters[name]].items():
            if isinstance(value, Tensor) and value.shape == mask.shape:
                assert not value[~mask].any(), f"{key} of {name} is not 0 for dead weights"


def every_method(device: torch.device) -> str:
    done = []
    for name in ("magnitude", "criticality", "gradient", "random", "firing-rate", "bn-scale", "anti-criticality"):
        if method_class(name).channels:
            halves = sp.Cubic(to=0.5, begin=0, end=8, every=2)
            model, pruner, optimizer = trained(device, name, schedule=halves, pattern="channel")
            wanted = 5
        else:
            model, pruner, optimizer = trained(device, name)
            wanted = 76
        assert pruner.alive == wanted, f"{name} keeps {pruner.alive} of {pruner.prunable}, not {wanted}"
        zeros_hold(model, pruner, optimizer)
        done.append(name)
    return ", ".join(done)


def synapses(device: torch.device) -> None:
    model, pruner, optimizer = trained(device, sp.Criticality(unit="synapse"))
    zeros_hold(model, pruner, optimizer)
    assert sum(r.regrown for r in pruner.rounds) > 0


def patterns(device: torch.device) -> None:
    for settings in ({"allocate": "erk"}, {"allocate": "lamp"}, {"pattern": "2:4"}, {"budget": "synops"}):
        schedule = sp.OneShot(0.5, every=2)
        model = conv_net().to(device)
        optimizer = torch.optim.AdamW(model.parameters(), 0.01)
        pruner = sp.Pruner(model, "magnitude", schedule, **settings).attach(optimizer)
        steps(model, optimizer, device, 1, 3)
        zeros_hold(model, pruner, optimizer)


def channels(device: torch.device) -> None:
    model = conv_net().to(device)
    x = batch(1)[0].to(device)
    masks = sp.prune(model, "magnitude", 0.5, data=[x], pattern="channel")
    small, _ = sp.shrink(model.eval(), masks, x)
    with torch.no_grad():
        functional.reset_net(model)
        assert torch.allclose(model(x), small(x), atol=1e-4)


def moved_after(device: torch.device) -> None:
    model, pruner, optimizer = trained(device, to_first=False)
    zeros_hold(model, pruner, optimizer)
    assert pruner.alive == 76


def like_the_cpu(device: torch.device) -> str:
    """Masks of the first mask update, from the same weights: only rounding may tell them apart."""
    masks = []
    for where in (torch.device("cpu"), device):
        model = conv_net().to(where)
        masks.append(sp.prune(model, "magnitude", 0.7))
    same = sum(int((masks[0][n] == masks[1][n].cpu()).sum()) for n in masks[0])
    assert same == 768, f"magnitude: {same} of 768 alike"
    x, y = batch(1)
    found = []
    for where in (torch.device("cpu"), device):
        model = conv_net().to(where)
        found.append(sp.prune(model, "gradient", 0.7, data=[(x.to(where), y.to(where))], loss=_loss))
    same = sum(int((found[0][n] == found[1][n].cpu()).sum()) for n in found[0])
    assert same >= 760, f"gradient: {same} of 768 alike"
    return f"gradient: {same} of 768 alike"


def _loss(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output.mean(0), target)


def resume(device: torch.device) -> None:
    def fresh() -> tuple[nn.Module, torch.optim.Optimizer, sp.Pruner]:
        model = conv_net().to(device)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        return model, optimizer, sp.Pruner(model, "criticality", UPDATES).attach(optimizer)

    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        model, optimizer, pruner = fresh()
        steps(model, optimizer, device, 1, 5)
        states = [part.state_dict() for part in (model, optimizer, pruner)]
        copied = torch.load(_saved(states), weights_only=True)
        steps(model, optimizer, device, 6, 5)
        again, other, second = fresh()
        for part, state in zip((again, other, second), copied, strict=True):
            part.load_state_dict(state)
        steps(again, other, device, 6, 5)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(pruner.masks[n], second.masks[n]) for n in pruner.masks), "masks differ after a resume"
    assert all(torch.allclose(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def _saved(states: Any) -> Any:
    import io

    file = io.BytesIO()
    torch.save(states, file)
    file.seek(0)
    return file


def counts(device: torch.device) -> None:
    model, pruner, _ = trained(device)
    x = batch(1)[0]
    there = sp.count(model, [x.to(device)], pruner.masks)
    here = sp.count(model.cpu(), [x], {n: m.cpu() for n, m in pruner.masks.items()})
    assert there.pruned.alive == here.pruned.alive
    assert there.dense.macs == here.dense.macs
    assert abs(there.pruned.synops - here.pruned.synops) <= 0.02 * max(here.pruned.synops, 1)


def squeezed(device: torch.device) -> None:
    model = conv_net().to(device).eval()
    data = [batch(k)[0].to(device) for k in range(4)]
    found = sp.squeeze(model, data, sparsity=0.8, images=16)
    assert abs(found.sparsity - 0.8) < 0.01
    parameters = dict(model.named_parameters())
    assert all(not parameters[n][~m.to(device)].any() for n, m in found.masks.items())


def scaler(device: torch.device) -> str | None:
    """A step that GradScaler skips does not count; autocast and foreach optimizers hold the zeros."""
    if device.type != "cuda":
        return "of a GPU: not tried"
    for fused in (False, True):
        model = conv_net().to(device)
        optimizer = torch.optim.AdamW(model.parameters(), 0.01, fused=fused)
        pruner = sp.Pruner(model, "criticality", UPDATES).attach(optimizer)
        scale = torch.amp.GradScaler("cuda", init_scale=2.0**40)  # the first steps overflow
        taken = 0
        for step in range(1, 40):
            x, y = (t.to(device) for t in batch(step))
            optimizer.zero_grad()
            with torch.autocast("cuda", torch.float16):
                loss = F.cross_entropy(model(x).mean(0).float(), y)
            scale.scale(loss).backward()
            before = scale.get_scale()
            scale.step(optimizer)
            scale.update()
            taken += scale.get_scale() >= before
            functional.reset_net(model)
        assert pruner.alive == 76
        assert pruner._steps.done == taken, f"{pruner._steps.done} steps counted, {taken} were taken"
        zeros_hold(model, pruner, optimizer)
    return None


def fuse_says_so(device: torch.device) -> str | None:
    """`sp.fuse` is a CPU kernel: on a GPU a fused network runs its own forward and gives the same."""
    model, plain = conv_net().to(device), conv_net().to(device)
    sp.fuse(model)
    x = batch(1)[0].to(device)
    assert torch.allclose(model(x), plain(x), atol=1e-5)
    return "a CPU kernel; on a GPU the network runs SpikingJelly's own" if device.type == "cuda" else None


def ranks(device: torch.device) -> str | None:
    """DDP over nccl with as many processes as GPUs; the CPU's twin is tests/integration/test_distributed.py."""
    if device.type != "cuda" or torch.cuda.device_count() < 2:
        return "one device: not tried"
    import tempfile

    import torch.multiprocessing as mp

    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_rank, (folder,), nprocs=2, start_method="spawn")
        first, second = (torch.load(f"{folder}/{rank}.pt", map_location="cpu") for rank in (0, 1))
    assert all(torch.equal(first[n], second[n]) for n in first)
    return "2 ranks hold the same masks"


def _rank(rank: int, folder: str) -> None:
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = DistributedDataParallel(conv_net().to(rank), device_ids=[rank])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruner = sp.Pruner(model, "criticality", UPDATES).attach(optimizer)
    steps(model, optimizer, torch.device("cuda", rank), 100 * rank, 10)
    torch.save({n: m.cpu() for n, m in pruner.masks.items()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


# ---- measurements ---------------------------------------------------------------------------------------------------


def workload(device: torch.device) -> tuple[nn.Module, Tensor, Tensor]:
    """VGG-16 at batch 64 on a GPU; a small network on the CPU, where only the code is tried."""
    torch.manual_seed(0)
    if device.type == "cuda":
        model, size, count = sp.model("vgg16-weights", classes=10, T=4, size=32), 32, 64
    else:
        model, size, count = sp.model("digits-conv", classes=10, T=4, size=8), 8, 32
    x = torch.rand(count, model.image_shape[0], size, size, device=device)
    return model.to(device), x, torch.randint(10, (count,), device=device)


def timed(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, repeats: int) -> Iterator[float]:
    for _ in range(repeats):
        sync(x.device)
        began = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(model(x).mean(0), y).backward()
        optimizer.step()
        functional.reset_net(model)
        sync(x.device)
        yield time.perf_counter() - began


def overhead(device: torch.device) -> str:
    """The Pruner's share of a step between mask updates, interleaved with the same step without it."""
    model, x, y = workload(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    list(timed(model, optimizer, x, y, 3))
    plain, pruned = [], []
    pruner = sp.Pruner(model, "criticality", sp.Cubic(to=0.9, begin=0, end=10**6, every=10**5))
    for _ in range(10):
        plain += timed(model, optimizer, x, y, 2)
        pruner.attach(optimizer)
        next(iter(timed(model, optimizer, x, y, 1)))  # the first traces the model
        pruned += timed(model, optimizer, x, y, 2)
        pruner._steps.detach()
    a, b = statistics.median(plain), statistics.median(pruned)
    return f"{a * 1e3:.2f} ms a step, with the Pruner {b * 1e3:.2f} ms: {b / a - 1:+.1%}"


def update_time(device: torch.device) -> str:
    model, x, y = workload(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    pruner = sp.Pruner(model, "criticality", sp.Cubic(to=0.95, begin=0, end=40, every=4)).attach(optimizer)
    times = list(timed(model, optimizer, x, y, 40))
    with_update = [t for k, t in enumerate(times[4:], 5) if k % 4 == 0]
    others = [t for k, t in enumerate(times[4:], 5) if k % 4 in (1, 2)]
    gap = statistics.median(with_update) - statistics.median(others)
    return f"a mask update of {pruner.prunable:,} weights adds {gap * 1e3:.1f} ms to its step"


def speed(device: torch.device) -> str:
    """Training steps with each backend of SpikingJelly that is there."""
    found = []
    for backend in ("torch", "triton", "cupy"):
        model, x, y = workload(device)
        try:
            if backend != "torch":
                functional.set_backend(model, backend)
            optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
            pruner = sp.Pruner(model, "criticality", sp.Cubic(to=0.9, begin=0, end=8, every=4)).attach(optimizer)
            list(timed(model, optimizer, x, y, 9))
            times = list(timed(model, optimizer, x, y, 10))
            assert abs(pruner.sparsity - 0.9) < 1e-3, f"with {backend}: sparsity {pruner.sparsity}"
            found.append(f"{backend} {len(x) / statistics.median(times):,.0f} images/s")
        except Exception as error:
            if backend == "torch":
                raise
            found.append(f"{backend} not there ({type(error).__name__})")
    return ", ".join(found)


def memory(device: torch.device) -> str | None:
    if device.type != "cuda":
        return "of a GPU: not tried"
    peaks = []
    for pruned in (False, True):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        model, x, y = workload(device)
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
        if pruned:
            sp.Pruner(model, "criticality", sp.Cubic(to=0.9, begin=0, end=8, every=4)).attach(optimizer)
        list(timed(model, optimizer, x, y, 9))
        peaks.append(torch.cuda.max_memory_allocated(device) / 2**20)
        del model, optimizer
    return f"{peaks[0]:.0f} MiB without, {peaks[1]:.0f} MiB with the Pruner at its mask updates"


CHECKS = {
    "methods meet the target, zeros hold": every_method,
    "synapse criticality": synapses,
    "allocations, 2:4, synops": patterns,
    "channels and shrink": channels,
    "the model moves after the Pruner is made": moved_after,
    "masks like those of the CPU": like_the_cpu,
    "resume": resume,
    "counts like those of the CPU": counts,
    "squeeze": squeezed,
    "GradScaler and autocast": scaler,
    "sp.fuse": fuse_says_so,
    "ranks over nccl": ranks,
    "overhead of the Pruner": overhead,
    "time of a mask update": update_time,
    "training speed": speed,
    "memory": memory,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="run the same checks on the CPU")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=8)
    options = parser.parse_args()
    if not options.cpu and not torch.cuda.is_available():
        print("this torch sees no GPU; --cpu runs the checks on the CPU", file=sys.stderr)
        return 1
    device = torch.device("cpu" if options.cpu else options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}; torch {torch.__version__}; CUDA {torch.version.cuda}; Python {sys.version.split()[0]}")
    checks = Checks(device, options.minutes * 60)
    for title, function in CHECKS.items():
        checks.check(title, function)
    print(f"{checks.wrong} wrong of {len(CHECKS)}")
    return checks.wrong


if __name__ == "__main__":
    sys.exit(main())
