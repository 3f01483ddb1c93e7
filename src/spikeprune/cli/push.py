"""Upload a finished run to the Hugging Face hub: a model card, safetensors and the record."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from spikeprune.cli._arguments import Parser
from spikeprune.core.errors import InvalidValue


def main(arguments: Sequence[str]) -> int:
    parser = Parser(
        "push",
        f"{__doc__}\n\nLog in with the hub's own command first. --to DIR uploads nothing.",
        ["push RUN owner/name", "push RUN --to DIR"],
    )
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("repository", metavar="OWNER/NAME", nargs="?", help="on the hub; made if it is not there")
    parser.add_argument("--to", metavar="DIR", default=None, help="only write what would be uploaded into this folder")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    options = parser.parse_args(arguments)

    from spikeprune.lab.train import hub
    from spikeprune.lab.train.folder import RunFolder

    if (options.repository is None) == (options.to is None):
        raise InvalidValue("push takes a repository, owner/name, or --to DIR to look at the files first")
    run = RunFolder.existing(options.run)
    if options.to is not None:
        print(hub.stage(run, Path(options.to)))
        return 0
    with tempfile.TemporaryDirectory() as staged:
        print(hub.push(run, options.repository, options.private, Path(staged)))
    return 0
