"""Check a squeezed network against its certificate, after any copy, compilation or export."""

import dataclasses
from collections.abc import Sequence

from spikeprune.cli._arguments import Parser, print_json

_HELP = """
FILE is model.compiled, export.safetensors, model.safetensors or masks.safetensors of a run that `spikeprune squeeze`
made; they carry its certificate, wherever they lie. In a run folder all of them are checked, and the network is run
on the stored input. Exit status: 0 all as certified, 1 something differs, 2 there is nothing to compare with.
"""


def main(arguments: Sequence[str]) -> int:
    parser = Parser("verify", f"{__doc__}\n{_HELP}", ["verify RUN", "verify net.compiled --against RUN"])
    parser.add_argument("path", metavar="RUN|FILE", help="a run folder, or a file that was made from one")
    parser.add_argument("--against", default=None, metavar="RUN|FILE", help="whose certificate counts; its own if left")
    parser.add_argument("--trust", action="store_true", help="run the model code that the run folder names")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args(arguments)

    from spikeprune.lab.train.verify_run import verify

    result = verify(options.path, options.against, options.trust)
    if options.json:
        print_json({**dataclasses.asdict(result), "ok": result.ok})
        return 0 if result.ok else 1
    for check in result.checks:
        print(f"{'ok' if check.ok else 'DIFFERS':<8} {check.what}: {check.found}")
    print(f"{'ok' if result.ok else 'differs'}: {result.path}")
    return 0 if result.ok else 1
