"""Any model as ONNX: its forward on the example is followed call by call, so the number of steps T is written out.

This takes what the compiled engine does not know: loops of the user's own, neurons of any kind, recurrent weights,
attention. The file is run by onnxruntime on the example and on generated inputs before it is written.
"""

import contextlib
import importlib.util
import json
import logging
import tempfile
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spikeprune.core.errors import InvalidValue, MissingDependency, first_line
from spikeprune.model.adapter import Adapter
from spikeprune.model.discover import spiking_adapter
from spikeprune.model.examples import evaluating, opened, undisturbed
from spikeprune.runtime.follow import Batch, call, find_batch, generated

log = logging.getLogger("spikeprune")

SCALES = (0.3, 1.0, 4.0)  # of the generated inputs, in units of the example's largest value
LOUD = (1.0, 3.0, 10.0)  # the largest values of the inputs that are generated besides for an example below 1
DIFFERING = 0.1  # share of samples that may differ, by rounding at a threshold
OPSET = 17


def unrolled_onnx(model: nn.Module, example: Tensor) -> bytes:
    """The content of an ONNX file that computes what the model computes, for T as in the example.

    The batch size stays open where the model's own forward allows it; the file's metadata `spikeprune.axes` tells.

    Raises: InvalidValue, naming what cannot be exported, and where the file computes something else than the model.
        MissingDependency without onnxruntime, which compares the two.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise MissingDependency("this model is exported only where onnxruntime can compare; pip install onnxruntime")
    example = example.detach().cpu()
    adapter = spiking_adapter(model)
    with evaluating(model):
        batch = find_batch(model, adapter, example)
        why = "the model's forward was not found to treat samples apart"
        for axes in [batch, None] if batch is not None else [None]:
            content = _with_facts(_export(model, adapter, example, axes), example, axes)
            fault = _difference(content, model, adapter, example, axes)
            if fault is None:
                if axes is None:
                    log.warning("the ONNX file takes the example's shape %s alone: %s", list(example.shape), why)
                return content
            why = fault
    raise InvalidValue(
        f"cannot export {type(model).__name__} to ONNX: {fault}; its forward decides by values that it computes, which "
        "no ONNX file can say"
    )


@contextlib.contextmanager
def _constant_weights(model: nn.Module) -> Generator[None]:
    """Weights that are computed from others (weight_norm, spectral_norm) are computed once, outside of the trace."""
    computed: list[tuple[nn.Module, type, list[str]]] = []
    for module in model.modules():
        names = list(getattr(module, "parametrizations", {}))
        if names and type(module).__name__.startswith("Parametrized"):
            values = {name: getattr(module, name).detach() for name in names}
            computed.append((module, type(module), names))
            module.__class__ = type(module).__mro__[1]  # the class without the computed attributes
            module.__dict__.update(values)
    try:
        yield
    finally:
        for module, kind, names in computed:
            for name in names:
                del module.__dict__[name]
            module.__class__ = kind


@contextlib.contextmanager
def _silence() -> Generator[None]:
    """The exporter warns of its age, and prints each graph that it dislikes, whatever its `verbose` is."""
    printing: Any = torch._C._jit_onnx_log
    torch._C._jit_onnx_log = lambda *_: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch._C._jit_onnx_log = printing


def _export(model: nn.Module, adapter: Adapter, example: Tensor, batch: Batch | None) -> bytes:
    axes = None if batch is None else {"x": {batch.input: "batch"}, "y": {batch.output: "batch"}}
    folder = tempfile.TemporaryDirectory()
    try:
        with folder, _silence(), torch.no_grad(), undisturbed(model, adapter), opened(model, adapter):
            file = Path(folder.name) / "model.onnx"
            # The older exporter needs `onnx` alone and keeps sizes open.
            with _constant_weights(model):
                torch.onnx.export(
                    model,
                    (example,),
                    str(file),
                    dynamo=False,
                    input_names=["x"],
                    output_names=["y"],
                    opset_version=OPSET,
                    dynamic_axes=axes,
                )
            return file.read_bytes()
    except (RuntimeError, ValueError, TypeError, NotImplementedError, torch.onnx.OnnxExporterError) as error:
        first = first_line(error, 160)
        raise InvalidValue(
            f"cannot export {type(model).__name__} to ONNX: PyTorch's exporter says {first!r}; replace what it names "
            "in the forward by other functions of PyTorch"
        ) from error


def _with_facts(content: bytes, example: Tensor, batch: Batch | None) -> bytes:
    import onnx

    proto = onnx.load_from_string(content)
    for node in proto.graph.node:  # the exporter writes movedim(-1, 0) with a negative dimension, which ONNX refuses
        for attribute in node.attribute:
            if node.op_type == "Transpose" and attribute.name == "perm":
                attribute.ints[:] = [dim % len(attribute.ints) for dim in attribute.ints]
    free = {"x": batch.input, "y": batch.output} if batch is not None else {}
    facts = {"spikeprune.axes": json.dumps({"example": list(example.shape), "free": free})}
    onnx.helper.set_model_props(proto, facts)
    return proto.SerializeToString()


def _difference(content: bytes, model: nn.Module, adapter: Adapter, example: Tensor, batch: Batch | None) -> str | None:
    """The first difference between the file's results and the model's, in words. None if they agree."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes, which are not public
        return f"onnxruntime cannot read it ({str(error).splitlines()[0][-80:]})"
    if not session.get_inputs():
        return "the exporter wrote a file that never reads its input"
    shape = list(example.shape)
    if batch is not None:
        shape[batch.input] += 2
    top = float(example.abs().max()) or 1.0
    inputs = [example, *(generated(tuple(shape), scale * top, seed=i) for i, scale in enumerate(SCALES))]
    if top < 1.0:  # a quiet example is no proof: at its scale perhaps no neuron fires
        inputs += [generated(tuple(shape), scale, seed=i) for i, scale in enumerate(LOUD)]
    differ = total = 0
    for x in inputs:
        wanted = call(model, adapter, x)
        try:
            found = torch.as_tensor(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
        except Exception as error:  # onnxruntime's own classes, which are not public
            return f"onnxruntime cannot run it for the shape {list(x.shape)} ({str(error).splitlines()[0][-80:]})"
        if found.shape != tuple(wanted.shape):
            return f"it gives the shape {list(found.shape)}, not {list(wanted.shape)}"
        far = ~torch.isclose(found, wanted.float(), rtol=1e-3, atol=1e-4)
        samples = far.movedim(batch.output, 0).flatten(1).any(1) if batch is not None else far.any()[None]
        differ, total = differ + int(samples.sum()), total + len(samples)
    return None if differ <= DIFFERING * total else f"{differ} of {total} outputs differ from the model's"
