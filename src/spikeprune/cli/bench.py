"""Time a finished run's network: latency and throughput, dense against sparse, on every engine at hand."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from spikeprune.cli._arguments import Parser, add_code_options, code_of, print_json
from spikeprune.cli._terminal import show
from spikeprune.core.errors import InvalidValue, UserError
from spikeprune.record.bench import CLOCKS, BenchRecord, TimedThreads
from spikeprune.record.text import aligned


def main(arguments: Sequence[str]) -> int:
    parser = Parser(
        "bench",
        f"{__doc__}\n\nWrites bench.json and bench.svg into the run folder, and its report anew.",
        ["bench runs/digits-81ff6b346a", "bench RUN --batch 1 --threads 1 --repeats 9"],
    )
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("--batch", default="1,32", help="batch sizes, such as 1,32")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved rounds whose median and spread are shown")
    parser.add_argument("--threads", default=None, help="1 (CPU time) or all (wall clock); both by default")
    add_code_options(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args(arguments)
    try:
        sizes = [int(size) for size in options.batch.split(",")]
    except ValueError:
        raise InvalidValue(f"--batch takes whole numbers such as 1,32, got {options.batch!r}") from None

    from spikeprune.lab.train.bench_run import bench_run
    from spikeprune.lab.train.folder import RunFolder
    from spikeprune.record.whole import write_whole

    result = bench_run(
        options.run,
        batches=sizes,
        repeats=options.repeats,
        threads=options.threads,
        root=options.root,
        code=code_of(options),
    )
    if options.json:
        print_json(result)
    else:
        show(table(result))
    folder = RunFolder(Path(options.run))
    written = {
        folder.path / "bench.svg": picture(result),
        folder.bench: result.as_json(indent=1) + "\n",
    }
    try:
        for path, text in written.items():
            write_whole(path, text.encode())
    except OSError as error:
        raise UserError(
            f"cannot write into {options.run}: {error.strerror}; copy the run to where you may write"
        ) from error
    if folder.report.is_file():
        from spikeprune.lab.page import write_report

        written[write_report(folder)] = ""
    for path in () if options.json else written:
        print(path)
    return 0


def table(result: BenchRecord) -> list[str]:
    """The measurement as lines: the machine first, then what was compared, then a table for each number of threads."""
    inputs = result.inputs
    lines = [
        f"{result.cpu}; {' '.join(result.flags) or 'no known flags'}; kernels: {result.isa}",
        f"{result.model}, T = {result.T}, sparsity {result.sparsity:.4f}, "
        f"{result.multiplies_kept:.1%} of the multiplies kept",
        f"inputs: {inputs.count} {inputs.kind} {list(inputs.shape)}",
    ]
    if inputs.why_random:
        lines.append(f"  ({inputs.why_random})")
    same = ", ".join(f"{engine} {share:.2%}" for engine, share in result.same_class.items())
    lines.append(f"same class as the model: {same}; int16 flips {result.int16_flipped:.3%} of the spikes")
    if result.accuracy is not None:
        right = ", ".join(f"{engine} {share:.2%}" for engine, share in result.accuracy.items())
        images = "the" if result.scored is None else f"{result.scored:,}"
        lines.append(f"accuracy on {images} test images of the run: {right}")
    if result.not_shrunk:
        lines.append(f"no shrunk network: {result.not_shrunk}")
    lines.append("speedup: the median over rounds of the fastest dense engine's time over the engine's own in a round")
    if result.load is not None:
        lines.append(f"load of the machine: {result.load:.1f}; beside other work only CPU time can be trusted")
    for timing in result.timings:
        lines += ["", f"{_heading(timing)}, median, lowest and highest of {result.repeats} interleaved rounds"]
        rows = [
            (
                str(row.batch), row.engine, f"{row.median_ms:.3f}", f"{row.low_ms:.3f}", f"{row.high_ms:.3f}",
                f"{row.images_per_s:,.0f}", "" if row.speedup is None else f"{row.speedup:.2f}x over {row.opponent}",
            )
            for row in timing.rows
        ]  # fmt: skip
        lines += aligned([("batch", "engine", "ms", "low", "high", "images/s", "speedup"), *rows], left=(1, 6))
    return lines


def _heading(timing: TimedThreads) -> str:
    threads = timing.threads
    return f"{threads} thread{'s' if threads > 1 else ''}, {CLOCKS[timing.clock]}"


def picture(result: BenchRecord) -> str:
    """Images per second as bars; within a group the longest bar is the fastest engine."""
    from spikeprune.lab.page.charts import DENSE, INK, PAPER, PRUNED

    parts: list[str] = []
    y = 24

    def text(x: int, words: str) -> None:
        parts.append(f'<text x="{x}" y="{y}">{escape(words)}</text>')

    text(8, result.cpu)
    for timing in result.timings:
        for batch in dict.fromkeys(row.batch for row in timing.rows):
            y += 34
            text(8, f"batch {batch}, {_heading(timing)}: images per second")
            rows = [row for row in timing.rows if row.batch == batch]
            fastest = max(row.images_per_s for row in rows)
            for row in rows:
                y += 22
                kind = "rival" if row.speedup is None else "ours"
                width = 380 * row.images_per_s / fastest
                parts.append(f'<rect class="{kind}" x="130" y="{y - 13}" width="{width:.1f}" height="16"/>')
                text(8, row.engine)
                text(518, f"{row.images_per_s:,.0f}")
    light, dark = (
        f"text{{font:13px system-ui,sans-serif;fill:{INK[n]}}}.ours{{fill:{PRUNED[n]}}}.rival{{fill:{DENSE[n]}}}"
        f".page{{fill:{PAPER[n]}}}"
        for n in (0, 1)
    )
    style = f":root{{color-scheme:light dark}}{light}@media(prefers-color-scheme:dark){{{dark}}}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 {y + 16}"><style>{style}</style>\n'
        f'<rect class="page" width="640" height="{y + 16}"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )
