"""Makes docs/squeeze.md from study/squeeze/results.jsonl alone: `python study/squeeze/page.py`."""

import importlib.util
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from spikeprune.lab.study.significance import Summary, summarize

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "squeeze.md"
Line = Mapping[str, Any]
HEAD = """# What squeeze keeps

`sp.squeeze` makes a trained network small without labels and without training. Every number here is made by
`python study/squeeze/run.py` and `python study/squeeze/page.py` from
[study/squeeze/results.jsonl](../study/squeeze/results.jsonl): do not edit this page.

- A *draw* is a choice of calibration images of the training split: 500 for fashion-small, cifar10-vgg and
  cifar10-resnet, 100 for digits. All settings see the same images of a draw.
- fashion-small has five trained seeds. Its intervals are 95 % t intervals over the seeds, after the mean over the draws
  of each seed. The other networks are one training each; their intervals are over draws, and they say nothing of other
  trainings. A row without an interval rests on one draw of one network.
- Cuts fall in 8 rounds unless the table says otherwise. BatchNorm's statistics are measured again in all rows, those of
  the rivals too.
- The settings were chosen on validation images and on draw 100, some rows also on 101, of seeds 3 and 4 (decision 19).
- *default* weighs score and solve by criticality. *plain energy* is the same rule without criticality: output energy in
  the form of LAMP, and plain least squares. "solve" in a name means that remaining weights are solved again; *LAMP*,
  *magnitude*, *Wanda* and *random* only cut. *OBS, plain solve* ranks by the error that is left after the other weights
  of the neuron have made up for a cut, as OBC and SparseGPT do. *SBC* (arXiv:2506.03996) does the same with the
  Hessian of membrane potentials without reset.
- *polished* is the default with `images=5000, polish=2` (digits: all 1,442 images): at the end all remaining weights
  follow the dense network's outputs together, still without labels (decisions 23 and 26). *4 passes* is
  `polish=4`. The rivals are not polished.
- *agreement* is the share of neuron outputs that are as in the dense network, on the calibration images.
- CPU seconds are of one thread, with other work on the same machine.
"""


def _script(name: str) -> ModuleType:
    key = f"squeeze_{name}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, Path(__file__).parent / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[key] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[key]


def _run() -> ModuleType:
    return _script("run")


def page(lines: Sequence[Line]) -> str:
    """The text of docs/squeeze.md."""
    run = _run()
    test = [x for x in lines if x["split"] == "test" and x["images"] == run.IMAGES[run.recipe_of(x["network"])]]
    whole = [x for x in lines if x["split"] == "test" and x["images"] == run.WHOLE]
    groups = sorted({(run.recipe_of(x["network"]), x["sparsity"]) for x in test if x["sparsity"]}, key=_order)
    parts = [
        HEAD,
        _progress(lines),
        "",
        *_goals(whole),
        *_other_goals(test),
        "## Rivals on the test split",
        "",
        _verdict(test, groups),
        "",
    ]
    parts += _overview(test, groups)
    for network, sparsity in groups:
        parts += _rivals(test, network, sparsity)
    parts += _rounds(_of(test, run.FASHION, 0.95))
    more = _script("sections")
    parts += [*more.tuning(more.tuning_lines()), *more.frameworks(), *more.why()]
    parts += _varied([x for x in lines if x["split"] == "validation" and x["images"] == run.HELD_OUT])
    return "\n".join(parts)


def _progress(lines: Iterable[Line]) -> str:
    """How much of the plan is measured, and which networks and sparsities are not measured at all."""
    run = _run()
    known = {run.key_of(line) for line in lines}
    plan = {job.key: job for job in run.jobs()}
    done = {key: job for key, job in plan.items() if key in known}
    groups = [
        {f"{run.recipe_of(job.network)} at {100 * job.sparsity:g} % ({job.split})" for job in some.values()}
        for some in (plan, done)
    ]
    absent = ", ".join(sorted(groups[0] - groups[1]))
    return f"Of {len(plan)} planned squeezes {len(done)} are measured." + (
        f" Nothing is measured yet of: {absent}." if absent else ""
    )


def _order(group: tuple[str, float]) -> tuple[bool, str, float]:
    return group[0] != "fashion-small", *group


def by_pair(lines: Iterable[Line], settings: Mapping[str, Any]) -> dict[tuple[str, int], float]:
    """(network, draw) -> accuracy in percent, of the lines with these settings."""
    return {(x["network"], x["draw"]): 100 * x["accuracy"] for x in lines if x["settings"] == settings}


def by_unit(found: Mapping[tuple[str, int], float]) -> dict[Any, float]:
    """What intervals go over: trained seeds, each the mean of its draws; or the draws of a network trained once."""
    several = {network for network, _ in found} <= set(_run().SEEDS)
    groups: dict[Any, list[float]] = {}
    for (network, draw), value in found.items():
        groups.setdefault(network if several else draw, []).append(value)
    return {unit: summarize(values).mean for unit, values in groups.items()}


def compared(lines: Sequence[Line], mine: Mapping[str, Any], reference: Mapping[str, Any]) -> Summary | None:
    """The difference of two settings over the networks and draws that both have."""
    a, b = by_pair(lines, mine), by_pair(lines, reference)
    both = {pair: value - b[pair] for pair, value in a.items() if pair in b}
    return summarize(list(by_unit(both).values())) if both else None


def _of(lines: Iterable[Line], network: str, sparsity: float) -> list[Line]:
    return [x for x in lines if (_run().recipe_of(x["network"]), x["sparsity"]) == (network, sparsity)]


def _goals(whole: Sequence[Line]) -> list[str]:
    """The default on all test images of Fashion-MNIST, beside each seed's dense network."""
    dense = {x["network"]: 100 * x["accuracy"] for x in whole if not x["sparsity"]}
    rows = []
    for name in ("default", "polished", "polished, 4 passes"):
        for sparsity, goal in ((0.90, 1.3), (0.95, 3.8)):
            mine = [x for x in whole if (x["sparsity"], x["settings"]) == (sparsity, _run().ARMS[name])]
            if mine:
                lost = summarize([dense[x["network"]] - 100 * x["accuracy"] for x in mine])
                mean, seconds = (summarize([x[key] for x in mine]).mean for key in ("accuracy", "cpu_seconds"))
                rows.append(
                    f"| {name} | {100 * sparsity:g} % | {100 * mean:.2f} | {_told(lost)} | {goal} "
                    f"| {seconds:.0f} | {lost.n} |"
                )
    if not rows:
        return []
    text = ", ".join(f"{value:.2f}" for value in dense.values())
    return [
        "## Fashion-MNIST, all 10,000 test images",
        "",
        f"Dense accuracy of the trained seeds, %: {text}. One draw each: of 500 images, or of 5,000 where polished.",
        "",
        "| method | sparsity | accuracy, % | points lost | goal | CPU seconds | seeds |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
    ]


OTHER_GOALS = (
    ("digits", 0.95, 1.0),
    ("digits-wide", 0.95, 1.0),
    ("cifar10-vgg", 0.90, 1.5),
    ("cifar10-vgg", 0.95, 5.0),
    ("cifar10-resnet", 0.90, None),
    ("cifar10-resnet", 0.95, None),
)


def _other_goals(test: Sequence[Line]) -> list[str]:
    """The same for the networks that are trained once; intervals over draws."""
    rows = []
    for network, sparsity, goal in OTHER_GOALS:
        for name in ("default", "polished"):
            mine = by_pair(_of(test, network, sparsity), _run().ARMS[name])
            if mine:
                dense = _dense(test, network)
                lost = summarize([dense - value for value in mine.values()])
                seconds = _mean(_of(test, network, sparsity), _run().ARMS[name], "cpu_seconds")
                rows.append(
                    f"| {network} | {name} | {100 * sparsity:g} % | {dense:.2f} | {_told(lost)} | {goal or '-'} "
                    f"| {seconds:.0f} | {lost.n} |"
                )
    if not rows:
        return []
    return [
        "## Networks that are trained once",
        "",
        "Points lost on the test images that the tables below name.",
        "",
        "| network | method | sparsity | dense, % | points lost | goal | CPU seconds | draws |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
        "",
    ]


def _dense(lines: Iterable[Line], network: str) -> float:
    """Mean accuracy of the dense networks in percent."""
    run = _run()
    found = [100 * x["accuracy"] for x in lines if run.recipe_of(x["network"]) == network and not x["sparsity"]]
    return summarize(found).mean


def _verdict(test: Sequence[Line], groups: Iterable[tuple[str, float]]) -> str:
    """One sentence a network and sparsity: is the default better than the same rule without criticality?"""
    said = []
    for network, sparsity in groups:
        found = compared(_of(test, network, sparsity), {}, {"weighting": "none"})
        if found is not None:
            said.append(f"- {network} at {100 * sparsity:g} %: {_words(found, network)}")
    return "\n".join(["Criticality in score and solve, against the same rule without it:", "", *said])


def _words(d: Summary, network: str) -> str:
    difference = f"{d.mean:+.2f} points"
    unit = "trained seeds" if network == _run().FASHION else "draws"
    if d.half is None:
        return f"{difference} in a single one of the {unit}, which decides nothing."
    where = "it is ahead" if d.mean > d.half else "it is behind" if -d.mean > d.half else "not decided, 0 is inside"
    return f"{difference} +- {d.half:.2f} over {d.n} {unit}; {where}."


def _overview(test: Sequence[Line], groups: Sequence[tuple[str, float]]) -> list[str]:
    """Accuracy of every method at every network and sparsity."""
    if not groups:
        return []
    head = ["| method |" + "".join(f" {n} {100 * s:g} % |" for n, s in groups), "|---|" + "---|" * len(groups)]
    rows = ["| dense |" + "".join(f" {_dense(test, n):.1f} |" for n, _ in groups)]
    for name, settings in _run().ARMS.items():
        cells = [by_unit(by_pair(_of(test, n, s), settings)) for n, s in groups]
        rows.append(
            f"| {name} |" + "".join(f" {summarize(list(c.values())).mean:.1f} |" if c else " - |" for c in cells)
        )
    return [*head, *rows, ""]


def _rivals(test: Sequence[Line], network: str, sparsity: float) -> list[str]:
    lines, rows = _of(test, network, sparsity), []
    for name, settings in _run().ARMS.items():
        mine = by_pair(lines, settings)
        if not mine:
            continue
        against = compared(lines, settings, {}) if settings else None
        networks, draws = ({pair[at] for pair in mine} for at in (0, 1))
        rows.append(
            (
                summarize(list(by_unit(mine).values())).mean,
                f"| {name} | {_cell(mine)} | {'-' if against is None else _signed(against)} "
                f"| {_mean(lines, settings, 'agreement'):.4f} | {_mean(lines, settings, 'cpu_seconds'):.1f} "
                f"| {len(networks)} x {len(draws)} |",
            )
        )
    return [
        f"### {network}, {100 * sparsity:g} %",
        "",
        f"Dense: {_dense(test, network):.2f} % of the first {_run().IMAGES[network]:,} test images.",
        "",
        "| method | accuracy, % | against the default, points | agreement | CPU seconds | networks x draws |",
        "|---|---|---|---|---|---|",
        *(row for _, row in sorted(rows, reverse=True)),
        "",
    ]


def _rounds(lines: Sequence[Line]) -> list[str]:
    """Does the gain by criticality vanish with more rounds?"""
    run, rows, gains = _run(), list[str](), list[Summary]()
    for rounds in run.ROUNDS:
        mine, plain = run.in_rounds(rounds), run.in_rounds(rounds, "none")
        gain = compared(lines, mine, plain)
        if gain is not None:
            gains.append(gain)
            rows.append(
                f"| {rounds} | {_cell(by_pair(lines, mine))} | {_cell(by_pair(lines, plain))} | {_signed(gain)} |"
            )
    if len(rows) < 2:
        return []
    sure = [gain.half is not None and abs(gain.mean) > gain.half for gain in gains]
    return [
        "### Cuts in fewer and in more rounds",
        "",
        "fashion-small at 95 %, draw 0, the first 2,000 test images.",
        "",
        "| rounds | with criticality, % | plain energy, % | difference, points |",
        "|---|---|---|---|",
        *rows,
        "",
        f"The difference is told from 0 in {sum(sure)} of {len(rows)} rows.",
        "",
    ]


def _mean(lines: Iterable[Line], settings: Mapping[str, Any], key: str) -> float:
    return summarize([line[key] for line in lines if line["settings"] == settings]).mean


def _cell(values: Mapping[tuple[str, int], float]) -> str:
    return _told(summarize(list(by_unit(values).values())))


def _told(found: Summary) -> str:
    return f"{found.mean:.2f}" + ("" if found.half is None else f" +- {found.half:.2f}")


def _signed(d: Summary) -> str:
    return f"{d.mean:+.2f}" + (f" (n = {d.n})" if d.half is None else f" +- {d.half:.2f} (n = {d.n})")


def _varied(lines: Sequence[Line]) -> list[str]:
    squeezed = [line for line in lines if line["sparsity"]]
    if not squeezed:
        return []
    network, sparsity = _run().recipe_of(squeezed[0]["network"]), squeezed[0]["sparsity"]
    rows = []
    for settings in _run().VARIED:
        mine = by_pair(squeezed, settings)
        if mine:
            name = ", ".join(f"`{key}={value!r}`" for key, value in settings.items()) or "default"
            against = compared(squeezed, settings, {}) if settings else None
            cell = "-" if against is None else _signed(against)
            seconds = _mean(squeezed, settings, "cpu_seconds")
            rows.append(f"| {name} | {_cell(mine)} | {cell} | {seconds:.1f} | {len(mine)} |")
    missing = len(_run().VARIED) - len(rows)
    seeds = ", ".join(sorted({line["network"] for line in squeezed}))
    return [
        "## One setting at a time",
        "",
        f"{seeds} at {100 * sparsity:g} %, scored on {_run().HELD_OUT:,} validation images that the training held out "
        f"(dense: {_dense(lines, network):.2f} %). The draws are others than above."
        + (f" {missing} settings of the plan are not measured yet." if missing else ""),
        "",
        "| setting | accuracy, % | against the default, points | CPU seconds | squeezes |",
        "|---|---|---|---|---|",
        *rows,
        "",
    ]


def main() -> None:
    text = (Path(__file__).parent / "results.jsonl").read_text(encoding="utf-8")
    more = _script("sections")
    if lines := more.tuning_lines():
        (ROOT / "docs" / "images" / more.PICTURE).write_text(more.picture(lines), encoding="utf-8")
    PAGE.write_text(page([json.loads(line) for line in text.splitlines() if line.strip()]), encoding="utf-8")


if __name__ == "__main__":
    main()
