"""A finished run's network as one file for deployment."""

import base64
from pathlib import Path
from typing import Literal

import torch

from spikeprune.lab.train.code import NO_CODE, Code
from spikeprune.lab.train.finished import Finished, finished
from spikeprune.lab.train.folder import read_safetensors
from spikeprune.record.packed import write_packed
from spikeprune.runtime.bench import flipped
from spikeprune.runtime.compile import CompiledSNN, EnginePlan, compile
from spikeprune.runtime.compile.compiled import Precision
from spikeprune.runtime.interchange import export_nir, export_onnx
from spikeprune.zoo.readout import predict

# int16 is compared with fp32 on so many inputs.
_COMPARED = 256


def export_compiled(
    run: str | Path,
    file: Path | None = None,
    precision: Precision = "fp32",
    root: str | None = None,
    code: Code = NO_CODE,
) -> tuple[Path, list[str]]:
    """Write the compiled network, which `spikeprune.load` reads.

    Args:
        file: `model.compiled` in the run folder by default.
        root: where the data lies now; absent data is replaced by random inputs.
        code: what the user says about the code that the folder names.
    Returns: the file, and what a reader wants to know: the plan of the layers with weights, and for int16 how it
        differs from fp32.
    Raises: UserError if the run is damaged, the network cannot be compiled, or the file cannot be written.
    """
    opened = finished(run, root, code)
    network = opened.network
    example = network.fed(opened.examples(_COMPARED), opened.data.time_first)
    few = _two(opened, example)
    compiled = compile(network.model, few, precision)
    path = file or opened.folder.path / "model.compiled"
    compiled.save(path, _certificate(opened))
    lines = str(EnginePlan(row for row in compiled.plan() if row.sparsity is not None)).splitlines()
    if precision == "int16":
        lines.append(_difference(compile(network.model, few), compiled, example, opened))
    return path, lines


def _certificate(opened: Finished) -> dict[str, str]:
    """The run's certificate, for the metadata of a file; nothing where the run has none."""
    file = opened.folder.certificate
    return {"certificate": base64.b64encode(file.read_bytes()).decode()} if file.is_file() else {}


def _two(opened: Finished, example: torch.Tensor) -> torch.Tensor:
    """Two of the inputs. The model's own T decides where it repeats images; a sequence brings its length along."""
    time_first = opened.network.takes == "sequence" or opened.data.time_first
    return example[:, :2] if time_first else example[:2]


def export_graph(
    run: str | Path,
    kind: Literal["nir", "onnx"],
    file: Path | None = None,
    root: str | None = None,
    code: Code = NO_CODE,
) -> Path:
    """Write the network for other tools; see `spikeprune.export_nir` and `spikeprune.export_onnx`.

    Args:
        file: `model.nir` or `model.onnx` in the run folder by default.
    Returns: the file.
    Raises: UserError if the run is damaged, the network cannot be said in that format, or the file cannot be written.
    """
    opened = finished(run, root, code)
    example = _two(opened, opened.network.fed(opened.examples(2), opened.data.time_first))
    export = export_nir if kind == "nir" else export_onnx
    return export(opened.network.model, file or opened.folder.path / f"model.{kind}", example)


def _difference(fp32: CompiledSNN, int16: CompiledSNN, x: torch.Tensor, opened: Finished) -> str:
    one, two = (predict(logits if logits.dim() == 3 else logits.unsqueeze(0)) for logits in (fp32(x), int16(x)))
    same = float((one == two).double().mean())
    return (
        f"int16: {same:.2%} of {len(one)} {opened.inputs} in the class of fp32, "
        f"{flipped(fp32, int16, x):.3%} of the spikes flipped"
    )


def export_packed(
    run: str | Path, file: Path | None = None, root: str | None = None, code: Code = NO_CODE
) -> tuple[Path, list[str]]:
    """Write the weights that are alive and the masks as bits; see `spikeprune.record.packed` for the format.

    A network whose channels were cut out is small as it is: it has no masks, and the metadata holds its `plan`.

    Args:
        file: `export.safetensors` in the run folder by default.
    Returns: the file, and its size beside that of model.safetensors.
    Raises: UserError if the run is damaged, or the file cannot be written.
    """
    opened = finished(run, root, code)
    folder, recipe = opened.folder, opened.recipe
    cut = "channels" in opened.record
    facts = {"model": recipe.model, "T": str(recipe.T), "classes": str(len(opened.data.classes))}
    facts |= _certificate(opened)
    if cut:
        facts["plan"] = folder.plan.read_text()
    path = file or folder.path / "export.safetensors"
    state = read_safetensors(folder.model)
    write_packed(path, state, {} if cut else read_safetensors(folder.masks), facts)
    before, after = folder.model.stat().st_size, path.stat().st_size
    return path, [f"{after:,} bytes, {before / after:.1f}x smaller than model.safetensors ({before:,} bytes)"]
