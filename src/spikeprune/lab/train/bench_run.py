"""Time a finished run's network on every engine at hand, after their outputs were compared."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from spikeprune.core.errors import InvalidValue, UserError
from spikeprune.data import batches as batches_of
from spikeprune.host.machine import version
from spikeprune.lab.train.code import NO_CODE, Code
from spikeprune.lab.train.finished import Finished, finished
from spikeprune.lab.train.folder import read_safetensors
from spikeprune.lab.train.network import TimedNetwork
from spikeprune.lab.train.structured import cut_out, example_of
from spikeprune.record.bench import BenchInputs, BenchRecord
from spikeprune.record.schema import SCHEMA
from spikeprune.runtime import bench
from spikeprune.runtime.compile import CompiledSNN, compile
from spikeprune.zoo.readout import predict

_PACKAGES = ("spikeprune", "torch", "spikingjelly", "onnxruntime", "openvino")
# More different images than that say nothing new about time; larger batches repeat them.
_IMAGES = 256


class _FromImages(nn.Module):
    """A model of sequences [T, N, ...] as one that takes images and shows each T times."""

    def __init__(self, model: nn.Module, T: int) -> None:
        super().__init__()
        self.model = model
        self.T = T

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.unsqueeze(0).repeat(self.T, *[1] * x.dim()))


def bench_run(
    path: str | Path,
    *,
    batches: Sequence[int] = (1, 32),
    repeats: int = 5,
    threads: str | None = None,
    root: str | None = None,
    code: Code = NO_CODE,
) -> BenchRecord:
    """Latency and throughput of a run's network: the framework, dense engines, compiled, int16 and shrunk.

    Args:
        batches: batch sizes.
        repeats: interleaved rounds; see `spikeprune.runtime.bench.measure`.
        threads: "1" (CPU time), "all" (wall clock), or None for both.
        root: where the data lies now; absent data is replaced by random inputs.
        code: what the user says about the code that the folder names.

    Returns: what bench.json holds; `accuracy` has the record's own as "model".
    Raises: UserError if the folder is no finished run, a file in it is damaged, or the network cannot be compiled;
        RunFailed if an engine's outputs are not the model's.
    """
    _check(batches, repeats, threads)
    run = finished(path, root, code)
    if run.data.time_first:
        raise UserError(
            f"bench times networks of still images, and {run.recipe.data.name} holds recordings; "
            "`spikeprune export RUN --to compiled` works for them"
        )
    model, x = _from_images(run.network), run.examples(_IMAGES)
    small, why_not = _shrunk(run)
    shrunk = None if small is None else _from_images(small)
    compiled, rounded = compile(model, x[:2]), compile(model, x[:2], "int16")
    expected = _classes(run.network(x).detach())
    same = {"compiled fp32": compiled, "compiled int16": rounded}
    if shrunk is not None:
        same["shrunk"] = compile(shrunk, x[:2])
    timings = [
        bench.measure(model, x, batches=batches, threads=count, repeats=repeats, shrunk=shrunk)
        for count in _thread_counts(threads)
    ]
    return BenchRecord(
        schema=SCHEMA,
        name=run.record.name,
        model=run.recipe.model,
        T=run.network.ran or run.recipe.T,
        sparsity=run.record.sparsity,
        multiplies_kept=bench.share_of_multiplies(compiled.network),
        inputs=BenchInputs(kind=run.inputs, count=len(x), shape=tuple(x.shape[1:]), why_random=run.why_random),
        cpu=timings[0].cpu,
        flags=timings[0].flags,
        isa=timings[0].isa,
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        versions={name: version(name) for name in _PACKAGES},
        repeats=repeats,
        same_class={name: _share(expected, _classes(engine(x))) for name, engine in same.items()},
        accuracy=None if run.why_random else _accuracy(run, same),
        scored=None if run.why_random else len(run.data.test),
        int16_flipped=bench.flipped(compiled, rounded, x),
        not_shrunk=why_not,
        timings=tuple(timing.timed for timing in timings),
    )


def _check(batches: Sequence[int], repeats: int, threads: str | None) -> None:
    if not batches or min(batches) < 1 or repeats < 1:
        raise InvalidValue(f"batch sizes and repeats must be 1 or more, got {list(batches)} and {repeats}")
    if threads not in (None, "1", "all"):
        raise InvalidValue(f"threads must be 1 or all, got {threads!r}; without --threads both are measured")


def _thread_counts(threads: str | None) -> list[int]:
    every = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return sorted({"1": {1}, "all": {every}}.get(threads or "", {1, every}))


def _from_images(network: TimedNetwork) -> nn.Module:
    return _FromImages(network.model, network.T).eval() if network.takes == "sequence" else network.model


def _shrunk(run: Finished) -> tuple[TimedNetwork | None, str | None]:
    """The physically smaller network, or why there is none to time beside."""
    if run.record.channels is not None:
        return None, "the run has cut its channels out already: every row is of the small network"
    masks = read_safetensors(run.folder.masks)
    try:
        small, plan = cut_out(run.network, masks, example_of(run.network, run.data, torch.device("cpu")))
    except InvalidValue as error:
        return None, str(error)
    return (small, None) if plan.cuts else (None, "no channel is dead as a whole")


def _accuracy(run: Finished, engines: dict[str, CompiledSNN]) -> dict[str, float]:
    """Accuracy of each engine on the run's test images. The model's accuracy is taken from the record."""
    right = dict.fromkeys(engines, 0)
    for x, target in batches_of(run.data, "test", _IMAGES):
        for name, engine in engines.items():
            right[name] += int((_classes(engine(x)) == target).sum())
    return {"model": run.record.accuracy} | {name: hits / len(run.data.test) for name, hits in right.items()}


def _classes(logits: Tensor) -> Tensor:
    return predict(logits if logits.dim() == 3 else logits.unsqueeze(0))


def _share(expected: Tensor, found: Tensor) -> float:
    return float((expected == found).double().mean())
