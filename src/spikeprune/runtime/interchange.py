"""Trained networks for other tools: NIR for neuromorphic chips and simulators, ONNX for inference engines.

Both start from the network that `sp.compile` starts from, so they take what it takes: BatchNorm is folded, pruned
weights are zeros, a gate over channels is an index.
"""

import importlib.util
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spikeprune.core.errors import InvalidValue, MissingDependency, UserError
from spikeprune.runtime.compile import layers as L
from spikeprune.runtime.compile.layers import Layer, Network
from spikeprune.runtime.compile.lower import lower

_DT = 1e-4  # seconds of one time step in a NIR graph, as SpikingJelly and snnTorch assume


def export_nir(model: nn.Module, path: str | os.PathLike[str], example: Tensor) -> Path:
    """Write the network as a NIR graph (HDF5), without batch and time axes.

    A neuron's difference equation becomes NIR's differential one, at 0.1 ms a step:

        v_pre = decay v + gain x + (1 - decay) v_rest   ->   LIF(tau = dt / (1 - decay), r = gain / (1 - decay))
        decay = 1                                       ->   IF(r = gain / dt)

    Max pooling of spikes becomes SumPool2d and Threshold, which is the same; a residual sum becomes two edges into one
    node. What follows the last layer with weights and only averages over time is left to the reader of the file.

    Args:
        model: in any mode; it is left as it was. Pruned weights must be zeros, as the Pruner keeps them.
        path: the file, such as "net.nir".
        example: an input, as in training.
    Returns: the path.
    Raises: InvalidValue, naming the module, for what NIR cannot say: soft reset, pooling with a ceiling, max pooling of
        something else than spikes, a sum of a value and itself. MissingDependency without the package nir.
    Source: Pedersen et al. 2024, doi:10.1038/s41467-024-52259-9 (NIR); neuroir.org.
    """
    if importlib.util.find_spec("nir") is None:
        raise MissingDependency("export to NIR needs the package nir; pip install 'spikeprune[nir]'")
    import nir

    graph = _Graph(lower(model, example))
    file = Path(path)
    _write(file, lambda: nir.write(str(file), graph.build()))
    return file


def export_onnx(model: nn.Module, path: str | os.PathLike[str], example: Tensor) -> Path:
    """Write the network as ONNX: input "x" as the example, of any batch size, the number of steps T written out.

    Args:
        model: in any mode; it is left as it was.
        path: the file, such as "net.onnx".
        example: an input, as in training; a still image where the model repeats it by itself.
    Returns: the path.
    Raises: InvalidValue, naming the module, for what `sp.compile` does not take. MissingDependency without the package
        onnx.
    """
    if importlib.util.find_spec("onnx") is None:
        raise MissingDependency("export to ONNX needs the package onnx; pip install 'spikeprune[onnx]'")
    content = onnx_model(lower(model, example), example)
    file = Path(path)
    _write(file, lambda: file.write_bytes(content))
    return file


def _write(file: Path, write: Any) -> None:
    try:
        write()
    except OSError as error:
        raise UserError(f"cannot write {file}: {error}; give a file in a folder that exists") from error


class _Graph:
    """A NIR graph of a lowered network: nodes by name, and for each value the nodes whose sum it is."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []
        self.sources: dict[int, list[str]] = {0: ["input"]}
        self.binary: set[int] = set()
        self.shapes = {0: network.input_shape}

    def build(self) -> Any:
        import nir

        self.nodes["input"] = nir.Input({"input": np.array(self.network.input_shape)})
        for layer in self.network.layers:
            self.shapes[layer.output] = layer.shape
            getattr(self, f"_{layer.kind}")(layer)
        shape = self.shapes[self.network.output]
        self.nodes["output"] = nir.Output({"output": np.array(shape)})
        self._join(self.sources[self.network.output], "output")
        return nir.NIRGraph(self.nodes, self.edges)

    def _join(self, sources: list[str], name: str) -> None:
        if len(set(sources)) < len(sources):
            raise InvalidValue(f"cannot export {name!r} to NIR: it adds a value to itself; scale the weights before it")
        self.edges += [(source, name) for source in sources]

    def _node(self, layer: Layer, node: Any, suffix: str = "") -> None:
        name = (layer.name or layer.kind).replace(".", "_") + suffix
        while name in self.nodes:
            name += "_"
        self.nodes[name] = node
        self._join(self.sources[layer.inputs[0]], name)
        self.sources[layer.output] = [name]

    def _refuse(self, layer: Layer, why: str) -> InvalidValue:
        return InvalidValue(f"cannot export {layer.name!r} to NIR: {why}")

    def _conv(self, layer: Layer) -> None:
        import nir

        o, weight, bias = layer.options, _numpy(layer.tensors["weight"]), _numpy(layer.tensors["bias"])
        size = _space(self.shapes[layer.inputs[0]])
        self._node(layer, nir.Conv2d(size, weight, o["stride"], o["padding"], o["dilation"], o["groups"], bias))

    def _linear(self, layer: Layer) -> None:
        import nir

        self._node(layer, nir.Affine(_numpy(layer.tensors["weight"]), _numpy(layer.tensors["bias"])))

    def _affine(self, layer: Layer) -> None:
        scale, bias = (_numpy(layer.tensors[key]) for key in ("scale", "bias"))
        self._pointwise(layer, np.diag(scale), bias)

    def _select(self, layer: Layer) -> None:
        weight = np.eye(self.shapes[layer.inputs[0]][0], dtype=np.float32)[_numpy(layer.tensors["index"])]
        self._pointwise(layer, weight, np.zeros(len(weight), dtype=np.float32))

    def _pointwise(self, layer: Layer, weight: Any, bias: Any) -> None:
        """A matrix over channels: NIR has no selection, and its Scale has no shift."""
        import nir

        if len(layer.shape) > 1:
            node = nir.Conv2d(_space(layer.shape), weight[:, :, None, None], (1, 1), (0, 0), (1, 1), 1, bias)
        else:
            node = nir.Affine(weight, bias)
        self._node(layer, node)

    def _neuron(self, layer: Layer) -> None:
        import nir

        if layer.options["soft"]:
            raise self._refuse(layer, "its reset subtracts the threshold, and NIR knows only a reset to a value")
        decay, gain, rest, threshold, reset = (
            self._each(layer.tensors[key], layer.shape) for key in ("decay", "gain", "start", "threshold", "reset")
        )
        if (decay == 1).all():
            self._node(layer, nir.IF(r=gain / _DT, v_threshold=threshold, v_reset=reset))
        elif (decay == 1).any():
            raise self._refuse(layer, "some of its channels leak and some do not; NIR needs a node for each kind")
        else:
            leak = 1 - decay
            self._node(layer, nir.LIF(_DT / leak, gain / leak, rest, threshold, reset))
        self.binary.add(layer.output)

    def _each(self, vector: Tensor, shape: tuple[int, ...]) -> Any:
        """One number for each neuron, from one for each channel."""
        return _numpy(L.channelwise(vector.double(), len(shape)).expand(shape))

    def _pool(self, layer: Layer) -> None:
        import nir

        o = layer.options
        if o["mode"] == "adaptive":
            raise self._refuse(layer, "adaptive pooling to a size that does not divide the input's")
        size, out = self.shapes[layer.inputs[0]][1:], layer.shape[1:]
        kernel, stride, padding = o["kernel"], o["stride"], o["padding"]
        floor = tuple((s + 2 * p - k) // d + 1 for s, p, k, d in zip(size, padding, kernel, stride, strict=True))
        if floor != tuple(out):
            raise self._refuse(layer, "ceil_mode pools beyond the edge")
        window = tuple(np.array(pair) for pair in (kernel, stride, padding))
        if o["mode"] == "max":
            if layer.inputs[0] not in self.binary:
                raise self._refuse(layer, "max pooling of what is not spikes; use average pooling there")
            self._node(layer, nir.SumPool2d(*window))
            layer = Layer("pool", layer.name, (layer.output,), layer.output, layer.shape)
            self._node(layer, nir.Threshold(np.full(layer.shape, 0.5)), "_any")
            self.binary.add(layer.output)
        elif (any(padding) and not o["count_pad"]) or o["divisor"] is not None:
            raise self._refuse(layer, "an average that does not divide by the size of its window")
        else:
            self._node(layer, nir.AvgPool2d(*window))

    def _add(self, layer: Layer) -> None:
        self.sources[layer.output] = [name for value in layer.inputs for name in self.sources[value]]

    def _flatten(self, layer: Layer) -> None:
        import nir

        before = np.array(self.shapes[layer.inputs[0]])
        self._node(layer, nir.Flatten({"input": before}, start_dim=0, end_dim=-1))
        if layer.inputs[0] in self.binary:
            self.binary.add(layer.output)

    def _repeat(self, layer: Layer) -> None:
        self.sources[layer.output] = self.sources[layer.inputs[0]]

    def _reduce(self, layer: Layer) -> None:
        if layer.output != self.network.output:
            raise self._refuse(layer, "a sum over time in the middle of the network")
        self._repeat(layer)


def _space(shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[1], shape[2]


def _numpy(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().numpy()


class _Steps(nn.Module):
    """The lowered network as a module that the exporter follows: time is a Python loop."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.static = network.static(network.still)

    def forward(self, x: Tensor) -> Tensor:
        values = {0: x}
        for layer in self.network.layers:
            inputs = [values[value] for value in layer.inputs]
            static = all(value in self.static for value in layer.inputs)
            if layer.kind == "neuron":
                values[layer.output] = _fire(inputs[0], layer, static, self.network.T)
            elif layer.kind in ("conv", "pool") and not static:  # so that the batch size is not written out
                merged = L.compute(layer, [inputs[0].flatten(0, 1)], True, self.network.T)
                values[layer.output] = merged.reshape(self.network.T, -1, *layer.shape)
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


def onnx_model(network: Network, example: Tensor, any_batch: bool = True) -> bytes:
    """The network as an ONNX file's content.

    Args:
        any_batch: leaves the batch size open; the example's alone lets engines optimise for it.
    """
    # The older exporter needs `onnx` alone and writes shapes out; it warns of its age, and of the loop over T.
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = Path(folder) / "model.onnx"
        axes = {"x": {0 if network.still else 1: "batch"}} if any_batch else None
        torch.onnx.export(
            _Steps(network).eval(), (example,), str(file), dynamo=False, input_names=["x"], output_names=["y"],
            opset_version=17, dynamic_axes=axes,
        )  # fmt: skip
        return file.read_bytes()
