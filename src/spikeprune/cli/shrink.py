"""Cut the dead channels out of a finished run's network: a plan, its weights, and what it saves."""

import dataclasses
from collections.abc import Sequence

from spikeprune.cli._arguments import Parser, add_code_options, code_of, print_json


def main(arguments: Sequence[str]) -> int:
    parser = Parser("shrink", __doc__ or "", ["shrink RUN", "shrink RUN --data.root DIR"])
    parser.add_argument("run", metavar="RUN", help="a run folder")
    add_code_options(parser)
    parser.add_argument("--device", default=None, help="auto, cpu, cuda, ...; the run's own by default")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args(arguments)

    from spikeprune.lab.train.shrink_run import shrink_run

    result = shrink_run(options.run, root=options.root, code=code_of(options), device=options.device)
    if options.json:
        print_json(dataclasses.asdict(result))
        return 0
    before, after = result.before, result.after
    rows = (
        ("parameters", "parameters", ",.0f"),
        ("MACs an image", "macs", ",.0f"),
        ("SynOps an image", "synops", ",.0f"),
        (f"ms a batch of {result.batch}", "latency_ms", ".2f"),
    )
    for label, key, form in rows:
        large, small = getattr(before, key), getattr(after, key)
        factor = f"{large / small:.2f}x" if small else "-"
        print(f"{label:<20} {large:>16{form}} -> {small:>16{form}}   {factor}")
    for name, (was, now) in result.layers.items():
        print(f"channels {name}: {was} -> {now}")
    for reason in result.blocked:
        print(f"kept: {reason}")
    print(result.plan)
    print(result.weights)
    return 0
