"""Compare runs: means, intervals and paired tests over seeds, and what each method cost."""

import shlex
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from spikeprune.cli._arguments import Parser, print_json
from spikeprune.cli._terminal import paint, terminal_width
from spikeprune.core.errors import InvalidValue, UserError


def main(arguments: Sequence[str]) -> int:
    parser = Parser(
        "compare",
        __doc__ or "",
        [
            "compare runs",
            "compare runs --html comparison.html --reviewer",
            "compare runs/sweep-digits-49d64640.json --figure accuracy.pdf",
            "compare runs --latex --reviewer > tables.tex",
        ],
    )
    parser.add_argument("runs", metavar="RUN", nargs="*", help="run folders, folders of runs, or the file of a sweep")
    parser.add_argument("--reference", default=None, help="the arm or method to compare with; dense where there is one")
    parser.add_argument("--html", metavar="FILE", default=None, help="write one page: conclusion, plots and tables")
    parser.add_argument(
        "--figure", metavar="FILE", default=None, help="write accuracy over sparsity and SynOps as .svg, .pdf or .png"
    )
    parser.add_argument(
        "--reviewer", action="store_true", help="the table that reviewers ask for: savings split, training cost"
    )
    parser.add_argument("--claims", action="store_true", help="the paper's factors of cost: what is divided by what")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object")
    form.add_argument("--csv", action="store_true", help="one line an arm, unrounded")
    form.add_argument("--csv-runs", action="store_true", help="one line a run, unrounded")
    form.add_argument("--latex", action="store_true", help="a tabular for booktabs")
    options = parser.parse_args(arguments)

    from spikeprune.lab.study import claims, reviewer, tables

    if not options.runs:
        if not options.claims:
            raise InvalidValue("compare needs runs: `spikeprune compare runs`, or folders that `run` or `sweep` made")
        print("\n".join(tables.wrapped(claims.explanation(), terminal_width())))
        return 0

    if options.reviewer and (options.csv or options.csv_runs) and options.html is None:
        raise InvalidValue("--reviewer has no CSV; its tables come as text, with --latex, --json or --html FILE")

    from spikeprune.lab.study.compare import collect, compare
    from spikeprune.lab.study.conclude import conclusions

    runs, unfinished, reference = collect(options.runs)
    comparison = compare(runs, options.reference or reference, unfinished)
    asked = reviewer.reviewer_table(comparison, runs) if options.reviewer else []
    by_class = reviewer.class_table(comparison, runs) if options.reviewer else []
    if options.html is not None:
        from spikeprune.lab.page.comparison import comparison_page, reviewer_sections

        made = [("command", shlex.join(["spikeprune", "compare", *arguments])), ("made", f"{date.today():%d %B %Y}")]
        extra = reviewer_sections(asked, by_class)
        page = comparison_page(comparison, made=made, factors=options.claims, extra=extra)
        _write(Path(options.html), page.encode())
    if options.figure is not None:
        from spikeprune.lab.page.paper import paper_figure

        _write(Path(options.figure), paper_figure(comparison, Path(options.figure).suffix))
    if options.json:
        factors = [
            {"target": f.target, "value": f.value, "numerator": f.numerator, "numerator_name": f.numerator_name}
            | {"denominator": f.denominator, "denominator_name": f.denominator_name}
            for f in claims.factors()
        ]
        tables_of = {"reviewer": asked, "classes": by_class} if options.reviewer else {}
        more = {key: [{"title": title, "rows": rows} for title, rows in found] for key, found in tables_of.items()}
        print_json({**comparison.as_dict(), "claims": factors, **more})
    elif options.csv or options.latex or options.csv_runs:
        form = tables.to_csv if options.csv else tables.runs_csv if options.csv_runs else tables.to_latex
        sys.stdout.write(form(comparison))
        if options.latex:
            sys.stdout.write("".join("\n" + tables.rows_to_latex(*titled) for titled in [*asked, *by_class]))
    else:
        width = terminal_width()
        first, *rest = conclusions(comparison)
        lines = [paint(line, "bold") for line in tables.wrapped([first], width)]
        lines += [*tables.wrapped(rest, width), "", *tables.to_text(comparison, width)]
        lines += ["", *tables.wrapped(claims.explanation(), width)] if options.claims else []
        for title, rows in [*((f"{title}: what reviewers ask for", rows) for title, rows in asked), *by_class]:
            lines += ["", title, *(line for part in tables.folded(rows, width) for line in tables.aligned(part))]
        lines += ["", *tables.wrapped(reviewer.explanation(), width)] if asked else []
        print("\n".join([*lines, *(path for path in (options.figure, options.html) if path)]))
    return 0


def _write(path: Path, content: bytes) -> None:
    from spikeprune.record.whole import write_whole

    try:
        write_whole(path, content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; give a file in a folder that exists") from error
