"""Export a finished run's network as one file: compiled for sparse inference, packed safetensors, NIR or ONNX."""

from collections.abc import Sequence
from pathlib import Path

from spikeprune.cli._arguments import Parser, add_code_options, code_of
from spikeprune.core.errors import InvalidValue, unknown

_HELP = """
--to compiled: one checksummed file that `spikeprune.load(path)` runs, on any machine, without the model's code.
--to safetensors: the weights that are alive and a bit for each that might be, for a runtime of your own;
`spikeprune.lab.train.packed` describes the format and reads it.
--to nir: a graph for neuromorphic chips and simulators (pip install 'spikeprune[nir]').
--to onnx: for inference engines, any batch size, time written out (pip install 'spikeprune[onnx]').
"""
_FORMATS = ("nir", "onnx", "compiled", "safetensors")


def main(arguments: Sequence[str]) -> int:
    parser = Parser("export", f"{__doc__}\n{_HELP}", ["export RUN --to compiled", "export RUN --to nir --file net.nir"])
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("--to", required=True, metavar="|".join(_FORMATS), help="kind of file")
    parser.add_argument(
        "--precision", choices=("fp32", "int16"), default=None, help="of compiled weights (default fp32)"
    )
    parser.add_argument(
        "--file", default=None, help="model.compiled, model.nir, ... or export.safetensors in the run folder by default"
    )
    add_code_options(parser)
    options = parser.parse_args(arguments)
    if options.to not in _FORMATS:
        raise unknown("format to export to", options.to, _FORMATS, f"(--to takes {', '.join(_FORMATS)})")
    if options.precision and options.to != "compiled":
        raise InvalidValue(f"--precision is for --to compiled; --to {options.to} keeps the weights as they are")

    from spikeprune.lab.train import export_run

    file = None if options.file is None else Path(options.file)
    if options.to == "safetensors":
        path, lines = export_run.export_packed(options.run, file, root=options.root, code=code_of(options))
    elif options.to in ("nir", "onnx"):
        path, lines = (
            export_run.export_graph(options.run, options.to, file, root=options.root, code=code_of(options)),
            [],
        )
    else:
        path, lines = export_run.export_compiled(
            options.run, file, options.precision or "fp32", root=options.root, code=code_of(options)
        )
    print("\n".join([*lines, str(path)]))
    return 0
