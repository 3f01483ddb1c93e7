"""Download a run from the Hugging Face hub, or from a folder that `push --to` made, into a run folder."""

from collections.abc import Sequence
from pathlib import Path

from spikeprune.cli._arguments import Parser


def main(arguments: Sequence[str]) -> int:
    parser = Parser(
        "pull",
        f"{__doc__}\n\nNothing that comes with it is run. The last line is the run folder.",
        ["pull owner/name --out runs"],
    )
    parser.add_argument("repository", metavar="OWNER/NAME", help="repository on the hub, or a folder")
    parser.add_argument("--out", default="runs", help="folder that receives the run folder")
    options = parser.parse_args(arguments)

    from spikeprune.lab.train import hub

    print(hub.pull(options.repository, Path(options.out)).path)
    return 0
