"""Score the network of a finished run, or one that comes trained, on the test split once more; changes nothing."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from spikeprune.cli._arguments import Parser, add_code_options, code_of, print_json


def main(arguments: Sequence[str]) -> int:
    parser = Parser(
        "eval", __doc__ or "", ["eval runs/digits-81ff6b346a", "eval digits", "eval RUN --data.root DIR --json"]
    )
    parser.add_argument("run", metavar="RUN", help="a run folder, or a name of `spikeprune list pretrained`")
    add_code_options(parser)
    parser.add_argument("--device", default=None, help="auto, cpu, cuda, ...; the run's own by default")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args(arguments)

    from spikeprune.zoo.pretrained import names

    if options.run in names() and not Path(options.run).exists():
        return _pretrained(options.run, options.root, options.device, options.json)
    from spikeprune.lab.train.evaluate import evaluate

    result = evaluate(options.run, root=options.root, code=code_of(options), device=options.device)
    if options.json:
        print_json(dataclasses.asdict(result))
        return 0
    print(f"accuracy {result.accuracy:.2%} on {result.images:,} test images (recorded: {result.recorded:.2%})")
    print(f"sparsity {result.sparsity:.4f}, {result.alive:,} {result.unit} alive")
    return 0


def _pretrained(name: str, root: str | None, device: str | None, as_json: bool) -> int:
    from spikeprune.lab.train.pretrained import score_pretrained

    result = score_pretrained(name, root, device or "cpu")
    if as_json:
        print_json(dataclasses.asdict(result))
        return 0
    print(f"accuracy {result.accuracy:.2%} on {result.images:,} test images (recorded: {result.recorded:.2%})")
    if not result.same_data:
        print("the data here is not the data that the recorded accuracy was measured on: pixels or labels differ")
    return 0
