"""Makes docs/squeeze.md from study/squeeze/results.jsonl alone: `python study/squeeze/page.py`."""

import importlib.util
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from spikeprune.lab.study.significance import Summary, paired, summarize

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "squeeze.md"
Line = Mapping[str, Any]
HEAD = """# What squeeze keeps

`sp.squeeze` makes a trained network small without labels and without training. Every number here is made by
`python study/squeeze/run.py` and `python study/squeeze/page.py` from
[study/squeeze/results.jsonl](../study/squeeze/results.jsonl): do not edit this page.

- A *draw* is a choice of 200 calibration images of the training split. All settings see the same images of a draw.
- All rows have 8 rounds unless the table says otherwise, and BatchNorm's statistics are measured again in all of them.
- Intervals are 95 % t intervals over draws. They hold for this one trained network and for the test images that are
  named above each table. They say nothing of other trained networks or other test images. A row of a single draw has
  no interval.
- The defaults were not chosen on these networks. They come from prototypes on smaller ones.
- *default* weighs score and solve by criticality. *plain energy* is the same rule without criticality: output energy in
  the form of LAMP, and plain least squares. Rows without "solve" or "energy" in their name, other than the default,
  only cut.
- *agreement* is the share of neuron outputs that are as in the dense network, on the calibration images.
- CPU seconds are of one thread, with other work on the same machine.
"""


def _run() -> ModuleType:
    if "squeeze_run" not in sys.modules:
        spec = importlib.util.spec_from_file_location("squeeze_run", Path(__file__).parent / "run.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules["squeeze_run"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["squeeze_run"]


def page(lines: Sequence[Line]) -> str:
    """The text of docs/squeeze.md."""
    test = [x for x in lines if x["split"] == "test" and x["images"] == _run().IMAGES[x["network"]]]
    parts = [HEAD, _progress(lines), "", "## Rivals on the test split", ""]
    groups = sorted({(line["network"], line["sparsity"]) for line in test if line["sparsity"]}, key=_order)
    parts += [_verdict(test, groups), ""]
    for network, sparsity in groups:
        others = [x for x in lines if (x["network"], x["sparsity"], x["split"]) == (network, sparsity, "test")]
        parts += _rivals(test, [x for x in others if x not in test], network, sparsity)
    parts += _varied([x for x in lines if x["split"] == "validation" and x["images"] == _run().HELD_OUT])
    return "\n".join(parts)


def _progress(lines: Iterable[Line]) -> str:
    """How much of the plan is measured, and which networks and sparsities are not measured at all."""
    run = _run()
    known = {run.key_of(line) for line in lines}
    plan = {job.key: job for job in run.jobs()}
    done = {key: job for key, job in plan.items() if key in known}
    groups = [
        {f"{job.network} at {100 * job.sparsity:g} % ({job.split})" for job in some.values()} for some in (plan, done)
    ]
    absent = ", ".join(sorted(groups[0] - groups[1]))
    return f"Of {len(plan)} planned squeezes {len(done)} are measured." + (
        f" Nothing is measured yet of: {absent}." if absent else ""
    )


def _order(group: tuple[str, float]) -> tuple[bool, str, float]:
    return group[0] != "fashion-small", *group


def by_draw(lines: Iterable[Line], settings: Mapping[str, Any]) -> dict[int, float]:
    """Draw -> accuracy in percent, of the lines with these settings."""
    return {line["draw"]: 100 * line["accuracy"] for line in lines if line["settings"] == settings}


def _dense(lines: Iterable[Line], network: str) -> Line:
    return next(line for line in lines if line["network"] == network and not line["sparsity"])


def _verdict(test: Sequence[Line], groups: Iterable[tuple[str, float]]) -> str:
    """One sentence a network and sparsity: is the default better than the same rule without criticality?"""
    said = []
    for network, sparsity in groups:
        lines = [x for x in test if (x["network"], x["sparsity"]) == (network, sparsity)]
        found = paired(by_draw(lines, {}), by_draw(lines, {"weighting": "none"}))
        if found is not None:
            said.append(f"- {network} at {100 * sparsity:g} %: {_words(found.difference)}")
    return "\n".join(["Criticality in score and solve, against the same rule without it:", "", *said])


def _words(d: Summary) -> str:
    difference = f"{d.mean:+.2f} points"
    if d.half is None:
        return f"{difference} in a single draw, which decides nothing."
    where = "it is ahead" if d.mean > d.half else "it is behind" if -d.mean > d.half else "not decided, 0 is inside"
    return f"{difference} +- {d.half:.2f} over {d.n} draws; {where}."


def _whole(lines: Iterable[Line]) -> list[str]:
    """The default on another number of test images, where it was scored on them."""
    found = [
        f"The default of draw {x['draw']} has {100 * x['accuracy']:.2f} % of {x['images']:,} test images."
        for x in lines
        if x["settings"] == {}
    ]
    return [*found, ""] if found else []


def _rivals(test: Sequence[Line], whole: Sequence[Line], network: str, sparsity: float) -> list[str]:
    dense = _dense(test, network)
    lines = [x for x in test if (x["network"], x["sparsity"]) == (network, sparsity)]
    reference, rows = by_draw(lines, {}), []
    for name, settings in _run().ARMS.items():
        mine = by_draw(lines, settings)
        if not mine:
            continue
        against = paired(mine, reference) if settings else None
        rows.append(
            (
                summarize(list(mine.values())).mean,
                f"| {name} | {_cell(mine)} | {'-' if against is None else _signed(against.difference)} "
                f"| {_mean(lines, settings, 'agreement'):.4f} | {_mean(lines, settings, 'cpu_seconds'):.1f} "
                f"| {len(mine)} |",
            )
        )
    return [
        f"### {network}, {100 * sparsity:g} %",
        "",
        f"Dense: {100 * dense['accuracy']:.2f} % of the first {dense['images']:,} test images.",
        "",
        *_whole(whole),
        "| method | accuracy, % | against the default, points | agreement | CPU seconds | draws |",
        "|---|---|---|---|---|---|",
        *(row for _, row in sorted(rows, reverse=True)),
        "",
    ]


def _mean(lines: Iterable[Line], settings: Mapping[str, Any], key: str) -> float:
    return summarize([line[key] for line in lines if line["settings"] == settings]).mean


def _cell(values: Mapping[int, float]) -> str:
    found = summarize(list(values.values()))
    return f"{found.mean:.2f}" + ("" if found.half is None else f" +- {found.half:.2f}")


def _signed(d: Summary) -> str:
    return f"{d.mean:+.2f}" + (f" (n = {d.n})" if d.half is None else f" +- {d.half:.2f} (n = {d.n})")


def _varied(lines: Sequence[Line]) -> list[str]:
    squeezed = [line for line in lines if line["sparsity"]]
    if not squeezed:
        return []
    network, sparsity = squeezed[0]["network"], squeezed[0]["sparsity"]
    dense, reference, rows = _dense(lines, network), by_draw(squeezed, {}), []
    for settings in _run().VARIED:
        mine = by_draw(squeezed, settings)
        if mine:
            name = ", ".join(f"`{key}={value!r}`" for key, value in settings.items()) or "default"
            against = paired(mine, reference) if settings else None
            cell = "-" if against is None else _signed(against.difference)
            rows.append(
                f"| {name} | {_cell(mine)} | {cell} | {_mean(squeezed, settings, 'cpu_seconds'):.1f} | {len(mine)} |"
            )
    missing = len(_run().VARIED) - len(rows)
    return [
        "## One setting at a time",
        "",
        f"{network} at {100 * sparsity:g} %, scored on {dense['images']:,} validation images that the training held "
        f"out (dense: {100 * dense['accuracy']:.2f} %). The draws are others than above."
        + (f" {missing} settings of the plan are not measured yet." if missing else ""),
        "",
        "| setting | accuracy, % | against the default, points | CPU seconds | draws |",
        "|---|---|---|---|---|",
        *rows,
        "",
    ]


def main() -> None:
    text = (Path(__file__).parent / "results.jsonl").read_text(encoding="utf-8")
    PAGE.write_text(page([json.loads(line) for line in text.splitlines() if line.strip()]), encoding="utf-8")


if __name__ == "__main__":
    main()
