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

import torch
from torch import Tensor, nn

from spikeprune.core.errors import InvalidValue, MissingDependency, UserError
from spikeprune.model.wrappers import eager
from spikeprune.runtime.compile.lower import lower, lower_modules
from spikeprune.runtime.compile.network import LoweredNetwork
from spikeprune.runtime.nir_graph import NirGraph
from spikeprune.runtime.onnx_unrolled import unrolled_onnx
from spikeprune.upkeep.attachment import check_obeyed


def export_nir(model: nn.Module, path: str | os.PathLike[str], example: Tensor) -> Path:
    """Write the network as a NIR graph (HDF5), without batch and time axes.

    A neuron's difference equation becomes NIR's differential one, at 0.1 ms a step:

        v_pre = decay v + gain x + (1 - decay) v_rest   ->   LIF(tau = dt / (1 - decay), r = gain / (1 - decay))
        decay = 1                                       ->   IF(r = gain / dt)

    Max pooling of spikes becomes SumPool2d and Threshold, which is the same; a residual sum becomes two edges into one
    node. Recurrent weights become a loop of two nodes, whose edge back arrives one step later. A layer that NIR has no
    node for, but that is linear (three-dimensional, transposed or circular convolution), becomes a matrix over whole
    images, of at most 4 million numbers, and all layers behind it have one axis. A mean over time behind the last layer
    with weights is left to the reader of the file.

    Args:
        model: in any mode; it is left as it was. Pruned weights must be zeros, as the Pruner keeps them.
        path: the file, such as "net.nir".
        example: an input, as in training.
    Returns: the path.
    Raises: InvalidValue, naming the module, for operations that NIR cannot express: numbers that differ from step to
        step, products of two values, max pooling of something else than spikes, a sum of a value and itself; and if a
        weight that an attached Pruner holds at 0 is not 0. MissingDependency without the package nir.
    Source: Pedersen et al. 2024, doi:10.1038/s41467-024-52259-9 (NIR); neuroir.org.

    Examples:
        >>> sp.export_nir(model.eval(), "net.nir", data[0][0]).name
        'net.nir'
    """
    if importlib.util.find_spec("nir") is None:
        raise MissingDependency("export to NIR needs the package nir; pip install 'spikeprune[nir]'")
    import nir

    check_obeyed(model)
    graph = NirGraph(lower(model, example))
    file = Path(path)
    _write(file, lambda: nir.write(str(file), graph.build()))
    return file


def export_onnx(model: nn.Module, path: str | os.PathLike[str], example: Tensor) -> Path:
    """Write the network as ONNX: input "x" as the example, of any batch size, the number of steps T written out.

    A model that `sp.compile` takes is written with BatchNorm folded. Any other model is followed call by call through
    one forward on the example, from a reset state, and the file is compared with it in onnxruntime; where its forward
    allows one batch size alone, a warning says so, and the file's metadata `spikeprune.axes` tells which axes are free.

    Args:
        model: in any mode; it is left as it was.
        path: the file, such as "net.onnx".
        example: an input, as in training; a still image where the model repeats it by itself.
    Returns: the path.
    Raises: InvalidValue for a forward that PyTorch's exporter cannot follow, or that decides by values it computes, and
        if a weight that an attached Pruner holds at 0 is not 0.
        MissingDependency without the packages onnx and onnxruntime.

    Examples:
        >>> sp.export_onnx(model.eval(), "net.onnx", data[0][0]).name
        'net.onnx'
    """
    if importlib.util.find_spec("onnx") is None:
        raise MissingDependency("export to ONNX needs the package onnx; pip install 'spikeprune[onnx]'")
    model = eager(model)
    check_obeyed(model)
    try:
        content = onnx_model(lower_modules(model, example), example)
    except InvalidValue:  # no network for the compiled engine; ONNX can say more
        content = unrolled_onnx(model, example)
    file = Path(path)
    _write(file, lambda: file.write_bytes(content))
    return file


def _write(file: Path, write: Any) -> None:
    try:
        write()
    except OSError as error:
        raise UserError(f"cannot write {file}: {error}; give a file in a folder that exists") from error


class _Steps(nn.Module):
    """The lowered network as a module that the exporter follows: time is a Python loop."""

    def __init__(self, network: LoweredNetwork) -> None:
        super().__init__()
        self.network = network
        self.static = network.static(network.still)

    def forward(self, x: Tensor) -> Tensor:
        values = {0: x}
        for layer in self.network.layers:
            inputs = [values[value] for value in layer.inputs]
            static = all(value in self.static for value in layer.inputs)
            values[layer.output] = layer.op.unrolled(layer, inputs, static, self.network.T)
        return values[self.network.output]


def onnx_model(network: LoweredNetwork, example: Tensor, any_batch: bool = True) -> bytes:
    """The network as an ONNX file's content.

    Args:
        any_batch: whether the batch size is left open. A fixed one, the example's, lets engines optimise for it.
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
