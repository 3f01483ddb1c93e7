"""Latency and throughput of one network on every engine at hand, interleaved in one process.

Opponents compute the same spiking function: the framework's own eval, our dense path, ONNX Runtime, and OpenVINO where
it is installed. Nothing is timed before its spikes or outputs have been compared with the model's.
"""

import importlib
import importlib.util
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spikeprune.core.errors import InvalidValue, RunFailed
from spikeprune.model.adapter import adapter_for
from spikeprune.record.bench import EngineTime, Measurement
from spikeprune.runtime import native
from spikeprune.runtime.compile import CompiledSNN, compile, cost
from spikeprune.runtime.compile.network import LoweredNetwork, interpret
from spikeprune.runtime.compile.packing import packings
from spikeprune.runtime.interchange import onnx_model

FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd")
Runner = Callable[[Tensor], Any]


def _onnxruntime(model: bytes, threads: int) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x.numpy()})[0]


def _openvino(model: bytes, threads: int) -> Runner:
    openvino: Any = importlib.import_module("openvino")  # optional, and without types
    core = openvino.Core()
    core.set_property("CPU", {"INFERENCE_NUM_THREADS": threads})
    request = core.compile_model(core.read_model(model=model), "CPU").create_infer_request()
    return lambda x: request.infer({0: x.numpy()})[0]


def _framework(model: nn.Module) -> Runner:
    adapter = adapter_for(model)

    def run(x: Tensor) -> Tensor:
        adapter.reset(model)
        with torch.no_grad():
            return model(x)

    return run


def assert_same_spikes(model: nn.Module, compiled: CompiledSNN, x: Tensor) -> None:
    """Compares a compiled model's spikes with the model's, layer by layer, up to the first layer where a tie fell.

    Raises: RunFailed if more than max(2, 1e-5) of that layer's spikes differ.
    """
    adapter = adapter_for(model)
    spikes: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _, __, result: spikes.__setitem__(name, result)

    hooks = [module.register_forward_hook(keep(name)) for name, module in adapter.neurons(model).items()]
    try:
        _framework(model)(x)
    finally:
        adapter.reset(model)
        for hook in hooks:
            hook.remove()
    traced = compiled.trace(x)
    for name, expected in spikes.items():
        differ = int((traced[name] != expected).sum())
        if differ > max(2, 1e-5 * expected.numel()):
            raise RunFailed(f"{differ} of {expected.numel()} spikes of {name!r} differ from the model's; not timed")
        if differ:
            return


def flipped(model: CompiledSNN, other: CompiledSNN, x: Tensor) -> float:
    """Share of all spikes in which two compiled models differ."""
    one, two = model.trace(x), other.trace(x)
    return sum(int((one[name] != two[name]).sum()) for name in one) / sum(spikes.numel() for spikes in one.values())


def call_time(runner: Runner, x: Tensor, clock: Callable[[], float], least: float) -> float:
    """Seconds of one call, over as many calls as fill `least` seconds."""
    calls, start = 0, clock()
    while True:
        runner(x)
        calls += 1
        spent = clock() - start
        if spent >= least:
            return spent / calls


def measure(
    model: nn.Module,
    example: Tensor,
    *,
    batches: Sequence[int] = (1, 32),
    threads: int = 1,
    repeats: int = 5,
    least: float = 0.05,
    opponents: bool = True,
    int16: bool = True,
    shrunk: nn.Module | None = None,
) -> Measurement:
    """Medians and spread of every engine at each batch size.

    With one thread the clock is the process's CPU time, so that a busy machine disturbs little; with more it is the
    wall clock. Runners take turns within a repeat; `speedup` is the median over repeats of the ratio within a repeat.

    Args:
        model: in eval mode, masks applied.
        example: [N, C, H, W]; its first image is repeated to make batches.
        batches: batch sizes.
        threads: threads for every engine alike.
        repeats: rounds; `least` seconds are spent on each runner in a round.
        opponents: also ONNX Runtime and OpenVINO, where installed.
        shrunk: a physically smaller network, compiled and timed too.

    Returns: the machine and a row for each engine and batch size, typed and as a dict (`found["rows"]`).

    Raises: RunFailed if a compiled model's spikes are not the model's.
    """
    if threads < 1 or repeats < 1:
        raise InvalidValue(f"threads and repeats must be 1 or more, got {threads} and {repeats}")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    try:
        compiled = compile(model, example[:2])
        runners: dict[str, Runner] = {
            "framework": _framework(model),
            "dense": CompiledSNN(compiled.network, engine="dense"),
            "compiled fp32": compiled,
        }
        if int16:
            runners["compiled int16"] = compile(model, example[:2], "int16")
        if shrunk is not None:
            runners["shrunk"] = compile(shrunk, example[:2])
        rows: list[EngineTime] = []
        for N in batches:
            x = example[torch.arange(N) % len(example)].contiguous()
            assert_same_spikes(model, compiled, x)
            here = dict(runners)
            if opponents:
                here |= exported_runners(compiled, x, threads)
            rows += _rows(here, x, N, repeats, clock, least)
    finally:
        torch.set_num_threads(before)
    return Measurement(
        cpu=native.cpu_name(),
        flags=tuple(flag for flag in FLAGS if flag in native.cpu_features()),
        isa=native.isa(),
        threads=threads,
        clock="cpu" if threads == 1 else "wall",
        rows=tuple(rows),
    )


def exported_runners(compiled: CompiledSNN, x: Tensor, threads: int) -> dict[str, Runner]:
    """ONNX Runtime and OpenVINO, where they are installed, on the compiled network's function at x's shape.

    Raises: RunFailed if one of them computes something else.
    """
    makers = {"onnxruntime": _onnxruntime, "openvino": _openvino}
    found = [name for name in makers if importlib.util.find_spec(name) is not None]
    if not found or importlib.util.find_spec("onnx") is None:
        return {}
    exported = onnx_model(compiled.network, x, any_batch=False)
    runners = {name: makers[name](exported, threads) for name in found}
    values = interpret(compiled.network, x, True)[compiled.network.output]
    for name, runner in runners.items():
        # One tie at a threshold spreads through a deep network, so only gross differences are an error.
        distance = (torch.as_tensor(runner(x)) - values).abs().mean()
        if not math.isfinite(float(distance)) or distance > 0.2 * values.abs().mean() + 0.05:
            raise RunFailed(f"{name} does not compute the model's function (mean distance {distance:.3g}); not timed")
    return runners


def _rows(
    runners: dict[str, Runner], x: Tensor, N: int, repeats: int, clock: Callable[[], float], least: float
) -> list[EngineTime]:
    for runner in runners.values():
        runner(x)
    spent: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(repeats):
        for name, runner in runners.items():
            spent[name].append(call_time(runner, x, clock, least))
    ours = [name for name in runners if name.startswith("compiled") or name == "shrunk"]
    rivals = [name for name in runners if name not in ours]
    rows: list[EngineTime] = []
    for name, times in spent.items():
        fastest = min(rivals, key=lambda rival: statistics.median(spent[rival]))
        ratios = [rival / own for rival, own in zip(spent[fastest], times, strict=True)]
        rows.append(
            EngineTime(
                batch=N,
                engine=name,
                median_ms=1e3 * statistics.median(times),
                low_ms=1e3 * min(times),
                high_ms=1e3 * max(times),
                images_per_s=N / statistics.median(times),
                speedup=statistics.median(ratios) if name in ours else None,
                opponent=fastest if name in ours else None,
            )
        )
    return rows


def roofline(compiled: CompiledSNN, milliseconds: float, N: int) -> dict[str, float]:
    """How near a batch's time comes to this machine's peak of masked additions.

    A masked addition adds a weight where one bit of its input is set: one for each kept weight, output position and
    step of the layers that run at every step; two where the input is a mean of spikes, which comes in as two bits
    (its third, set where all of a window fire, is read by events and not counted). Peak is measured now.

    Returns: `adds`, `peak_adds_per_ns`, `share` = adds / peak / time, and `share_of_weights`, which counts one
        addition for a weight whatever its input.
    Raises: InvalidValue without a C++ compiler, where there is no such peak.
    """
    if compiled._library is None:
        raise InvalidValue("the roofline is that of the C++ kernels, and no compiler was found to build them")
    network = compiled.network
    static = network.static(network.still)
    packed = packings(network)
    adds = weights = 0
    for layer in network.layers:
        if layer.op.weighted and layer.output not in static:
            planes = packed[layer.inputs[0]].planes if layer.inputs[0] in packed else ((1.0, 1),)
            here = int(torch.count_nonzero(layer.tensors["weight"])) * math.prod(layer.shape[1:]) * N * network.T
            weights += here
            adds += here * (2 if planes[0][1] > 1 else 1)
    peak = cost.peak_adds(compiled._library)
    possible = peak * milliseconds * 1e6
    return {
        "adds": float(adds), "peak_adds_per_ns": peak, "share": adds / possible, "share_of_weights": weights / possible
    }  # fmt: skip


def share_of_multiplies(network: LoweredNetwork) -> float:
    """Kept over all multiplies of the conv and linear layers, those computed once per image counted once."""
    static = network.static(network.still)
    kept = every = 0
    for layer in network.layers:
        if layer.op.weighted:
            weight = layer.tensors["weight"]
            times = math.prod(layer.shape[1:]) * (1 if layer.output in static else network.T)
            kept += int(torch.count_nonzero(weight)) * times
            every += weight.numel() * times
    return kept / every
