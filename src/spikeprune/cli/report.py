"""Write report.html of finished runs anew and print its path."""

from collections.abc import Sequence

from spikeprune.cli._arguments import Parser


def main(arguments: Sequence[str]) -> int:
    parser = Parser("report", __doc__ or "")
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run folders")
    options = parser.parse_args(arguments)

    from spikeprune.lab.page import write_report
    from spikeprune.lab.train.folder import RunFolder

    for folder in [RunFolder.existing(path) for path in options.runs]:
        print(write_report(folder.path))
    return 0
