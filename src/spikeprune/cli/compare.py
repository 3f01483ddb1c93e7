"""Compare runs: means, intervals and paired tests over seeds, and what each method cost."""

import sys
from collections.abc import Sequence
from pathlib import Path

from spikeprune.cli._arguments import Parser, print_json
from spikeprune.core.errors import InvalidValue, UserError


def main(arguments: Sequence[str]) -> int:
    parser = Parser("compare", __doc__ or "")
    parser.add_argument("runs", metavar="RUN", nargs="*", help="run folders, folders of runs, or the file of a sweep")
    parser.add_argument("--reference", default=None, help="the arm or method to compare with; dense where there is one")
    parser.add_argument("--html", metavar="FILE", default=None, help="write one page with tables and Pareto plots")
    parser.add_argument("--claims", action="store_true", help="the paper's factors of cost: what is divided by what")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object")
    form.add_argument("--csv", action="store_true", help="one line a row, unrounded")
    form.add_argument("--latex", action="store_true", help="a tabular for booktabs")
    options = parser.parse_args(arguments)

    from spikeprune.lab.study import claims

    if not options.runs:
        if not options.claims:
            raise InvalidValue("compare needs runs: `spikeprune compare runs`, or folders that `run` or `sweep` made")
        print("\n".join(claims.explanation()))
        return 0

    from spikeprune.lab.study import tables
    from spikeprune.lab.study.compare import collect, compare
    from spikeprune.lab.study.page import comparison_page
    from spikeprune.record.whole import write_whole

    runs, unfinished, reference = collect(options.runs)
    comparison = compare(runs, options.reference or reference, unfinished)
    if options.html is not None:
        path = Path(options.html)
        try:
            write_whole(path, comparison_page(comparison).encode())
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; give a file in a folder that exists") from error
    if options.json:
        factors = [
            {"target": f.target, "value": f.value, "numerator": f.numerator, "numerator_name": f.numerator_name}
            | {"denominator": f.denominator, "denominator_name": f.denominator_name}
            for f in claims.factors()
        ]
        print_json({**comparison.as_dict(), "claims": factors})
    elif options.csv or options.latex:
        sys.stdout.write(tables.to_csv(comparison) if options.csv else tables.to_latex(comparison))
    else:
        lines = tables.to_text(comparison) + (["", *claims.explanation()] if options.claims else [])
        print("\n".join(lines + ([options.html] if options.html else [])))
    return 0
