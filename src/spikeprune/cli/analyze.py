"""Look into finished runs: survival, feature consistency, importance, overfitting, criticality."""

from collections.abc import Sequence

from spikeprune.cli._arguments import Parser, add_code_options, code_of
from spikeprune.cli._terminal import show


def main(arguments: Sequence[str]) -> int:
    parser = Parser("analyze", __doc__ or "", ["analyze runs/digits-81ff6b346a", "analyze RUN --against OTHER_RUN"])
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        help="a run folder, or several that differ in the seed alone: means over seeds",
    )
    parser.add_argument(
        "--against", metavar="RUN", nargs="+", default=[],
        help="other runs, such as those without regrowth; several RUNs are paired with them by seed",
    )  # fmt: skip
    parser.add_argument("--features", default="rate", help="rate, or the authors' inverted-min-max")
    parser.add_argument("--images", type=int, default=2000, help="of the training and of the test split")
    add_code_options(parser)
    options = parser.parse_args(arguments)

    from spikeprune.lab.page import analysis as findings
    from spikeprune.lab.study.analyze import analyze
    from spikeprune.lab.train.folder import RunFolder
    from spikeprune.record.whole import write_whole

    found = analyze(
        options.runs,
        options.against,
        features=options.features,
        images=options.images,
        root=options.root,
        code=code_of(options),
    )
    page = RunFolder.existing(options.runs[0]).path / "analysis.html"
    write_whole(page, findings.page(found).encode())
    show(findings.lines(found))
    print(page)
    return 0
