"""Write report.html of finished runs anew; of two or more, a comparison too. --watch follows a running one."""

import shlex
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from spikeprune.cli._arguments import Parser
from spikeprune.core.errors import InvalidValue, UserError


def main(arguments: Sequence[str]) -> int:
    parser = Parser(
        "report",
        f"{__doc__}\n\nThe last line of the output is the page's path.",
        ["report RUN", "report RUN_A RUN_B", "report RUN --watch"],
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run folders; with two or more, comparison.html as well")
    parser.add_argument("--watch", action="store_true", help="of one run that goes on: write live.html until it ends")
    parser.add_argument("--every", type=float, default=5.0, metavar="SECONDS", help="between two looks")
    options = parser.parse_args(arguments)

    from spikeprune.lab.page import write_report
    from spikeprune.lab.train.folder import RunFolder

    if options.watch:
        return _watch(options.runs, options.every)
    folders = [RunFolder.existing(path) for path in options.runs]
    for folder in folders:
        print(write_report(folder.path))
    if len(folders) > 1:
        print(_compared(folders[0].path.parent, options.runs))
    return 0


def _compared(where: Path, runs: Sequence[str]) -> Path:
    from spikeprune.lab.page.comparison import comparison_page
    from spikeprune.lab.study.compare import collect, compare
    from spikeprune.record.whole import write_whole

    found, unfinished, reference = collect(runs)
    path = where / "comparison.html"
    try:
        made = [("command", shlex.join(["spikeprune", "report", *runs])), ("made", f"{date.today():%d %B %Y}")]
        write_whole(path, comparison_page(compare(found, reference, unfinished), made=made).encode())
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; `spikeprune compare --html FILE` writes it elsewhere"
        ) from error
    return path


def _watch(runs: Sequence[str], every: float) -> int:
    from spikeprune.lab.page import write_report
    from spikeprune.lab.page.live import watch
    from spikeprune.lab.train.folder import RunFolder

    if len(runs) > 1:
        raise InvalidValue(f"--watch follows one run, got {len(runs)}; start one for each")
    if not 0.5 <= every <= 3600:
        raise InvalidValue(f"--every takes 0.5 to 3600 seconds, got {every:g}")
    folder = RunFolder(Path(runs[0]))
    print(f"{folder.path / 'live.html'} is written every {every:g} s while the run goes on; Ctrl-C ends it", flush=True)
    watch(folder.path, every)
    print(write_report(folder.path))
    return 0
