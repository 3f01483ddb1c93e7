"""Latency and throughput of one network on every engine at hand, interleaved in one process.

Opponents compute the same spiking function: the framework's own eval, our dense path, ONNX Runtime, and OpenVINO where
it is installed. Nothing is timed before its spikes or outputs have been compared with the model's.
"""

import importlib
import importlib.util
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spikeprune.core.errors import InvalidValue, RunFailed
from spikeprune.pruner.adapter import adapter_for
from spikeprune.runtime import native
from spikeprune.runtime.compile import CompiledSNN, compile, cost
from spikeprune.runtime.compile import layers as L
from spikeprune.runtime.compile.layers import Layer, Network

FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd")
Runner = Callable[[Tensor], Any]


class _Exportable(nn.Module):
    """The network as plain PyTorch operations on shapes that are fixed, for exporters."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.static = network.static(True)

    def forward(self, x: Tensor) -> Tensor:
        values = {0: x}
        for layer in self.network.layers:
            inputs = [values[value] for value in layer.inputs]
            static = all(value in self.static for value in layer.inputs)
            if layer.kind == "neuron":
                values[layer.output] = _fire(inputs[0], layer, static, self.network.T)
            else:
                values[layer.output] = L.compute(layer, inputs, static, self.network.T)
        return values[self.network.output]


def _fire(x: Tensor, layer: Layer, static: bool, T: int) -> Tensor:
    p = {name: L.channelwise(value, x.dim() - (1 if static else 2)) for name, value in layer.tensors.items()}
    v, spikes = p["start"], []
    for t in range(T):
        v_pre = p["decay"] * v + (p["gain"] * (x if static else x[t]) + p["shift"])
        fired = v_pre > p["threshold"] if layer.options["strict"] else v_pre >= p["threshold"]
        spikes.append(fired.to(x.dtype))
        v = v_pre - p["threshold"] * spikes[-1] if layer.options["soft"] else torch.where(fired, p["reset"], v_pre)
    return torch.stack(spikes)


def _exported(network: Network, x: Tensor) -> bytes:
    # The older exporter needs `onnx` alone and writes shapes out; it warns of its age, and of the loop over T.
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "model.onnx"
        module = _Exportable(network).eval()
        torch.onnx.export(module, (x,), str(path), dynamo=False, input_names=["x"], opset_version=17)
        return path.read_bytes()


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


def _times(runner: Runner, x: Tensor, clock: Callable[[], float], least: float) -> float:
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
) -> dict[str, Any]:
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

    Returns: {"cpu", "flags", "isa", "threads", "clock", "rows"}; a row has batch, engine, median_ms, low_ms, high_ms,
        images_per_s, speedup (of the compiled engines over the fastest opponent, else None).

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
        rows: list[dict[str, Any]] = []
        for N in batches:
            x = example[torch.arange(N) % len(example)].contiguous()
            assert_same_spikes(model, compiled, x)
            here = dict(runners)
            if opponents:
                here |= _exported_runners(compiled, x, threads)
            rows += _rows(here, x, N, repeats, clock, least)
    finally:
        torch.set_num_threads(before)
    return {
        "cpu": native.cpu_name(), "flags": [flag for flag in FLAGS if flag in native.cpu_features()],
        "isa": native.isa(), "threads": threads, "clock": "cpu" if threads == 1 else "wall", "rows": rows,
    }  # fmt: skip


def _exported_runners(compiled: CompiledSNN, x: Tensor, threads: int) -> dict[str, Runner]:
    makers = {"onnxruntime": _onnxruntime, "openvino": _openvino}
    found = [name for name in makers if importlib.util.find_spec(name) is not None]
    if not found or importlib.util.find_spec("onnx") is None:
        return {}
    exported = _exported(compiled.network, x)
    runners = {name: makers[name](exported, threads) for name in found}
    values = L.interpret(compiled.network, x, True)[compiled.network.output]
    for name, runner in runners.items():
        # One tie at a threshold spreads through a deep network, so only gross differences are an error.
        distance = (torch.as_tensor(runner(x)) - values).abs().mean()
        if not math.isfinite(float(distance)) or distance > 0.2 * values.abs().mean() + 0.05:
            raise RunFailed(f"{name} does not compute the model's function (mean distance {distance:.3g}); not timed")
    return runners


def _rows(
    runners: dict[str, Runner], x: Tensor, N: int, repeats: int, clock: Callable[[], float], least: float
) -> list[dict[str, Any]]:
    for runner in runners.values():
        runner(x)
    spent: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(repeats):
        for name, runner in runners.items():
            spent[name].append(_times(runner, x, clock, least))
    ours = [name for name in runners if name.startswith("compiled") or name == "shrunk"]
    rivals = [name for name in runners if name not in ours]
    rows: list[dict[str, Any]] = []
    for name, times in spent.items():
        fastest = min(rivals, key=lambda rival: statistics.median(spent[rival]))
        ratios = [rival / own for rival, own in zip(spent[fastest], times, strict=True)]
        rows.append(
            {
                "batch": N, "engine": name, "median_ms": 1e3 * statistics.median(times), "low_ms": 1e3 * min(times),
                "high_ms": 1e3 * max(times), "images_per_s": N / statistics.median(times),
                "speedup": statistics.median(ratios) if name in ours else None,
                "opponent": fastest if name in ours else None,
            }
        )  # fmt: skip
    return rows


def roofline(compiled: CompiledSNN, milliseconds: float, N: int) -> dict[str, float]:
    """How near a batch's time comes to this machine's peak of masked additions.

    Counts one addition per kept weight, output position and step, of all layers that see more than one image's worth
    of steps (what is computed once per image is left out); peak is measured now.

    Raises: InvalidValue without a C++ compiler, where there is no such peak.
    """
    if compiled._library is None:
        raise InvalidValue("the roofline is that of the C++ kernels, and no compiler was found to build them")
    network = compiled.network
    static = network.static(network.still)
    adds = sum(
        int(torch.count_nonzero(layer.tensors["weight"])) * math.prod(layer.shape[1:])
        for layer in network.layers
        if layer.kind in ("conv", "linear") and layer.output not in static
    )
    adds *= N * network.T
    peak = cost.peak_adds(compiled._library)
    return {"adds": float(adds), "peak_adds_per_ns": peak, "share": adds / peak / (milliseconds * 1e6)}


def share_of_multiplies(network: Network) -> float:
    """Kept over all multiplies of the conv and linear layers, those computed once per image counted once."""
    static = network.static(network.still)
    kept = every = 0
    for layer in network.layers:
        if layer.kind in ("conv", "linear"):
            weight = layer.tensors["weight"]
            times = math.prod(layer.shape[1:]) * (1 if layer.output in static else network.T)
            kept += int(torch.count_nonzero(weight)) * times
            every += weight.numel() * times
    return kept / every
