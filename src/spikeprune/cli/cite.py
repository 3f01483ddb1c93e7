"""Print BibTeX for the methods, the data and the tools that runs used, or for methods by name."""

from collections.abc import Sequence
from pathlib import Path

from spikeprune.cli._arguments import Parser


def main(arguments: Sequence[str]) -> int:
    parser = Parser("cite", __doc__ or "", ["cite runs/digits-81ff6b346a", "cite rigl erk"])
    parser.add_argument(
        "what",
        metavar="RUN|METHOD",
        nargs="*",
        help="run folders, names of `spikeprune list methods`, or tools such as erk and spikingjelly",
    )
    options = parser.parse_args(arguments)

    from spikeprune.lab.train.cite_run import sources_of
    from spikeprune.lab.train.folder import RunFolder
    from spikeprune.methods.shared.cited import bibliography, source_of_name

    sources: dict[str, str] = {}
    for word in options.what:
        if Path(word).is_dir():
            sources |= sources_of(RunFolder.existing(word).read_record())
        else:
            sources[word] = source_of_name(word)
    print(bibliography(sources))
    return 0
