"""The table that opens docs/study.md: what the paper's abstract claims, what was done here, and what was found.

Every number comes from study/results; a claim whose runs are not there says so, with its hours (results/hours.txt).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import left
import price

from spikeprune.lab.study import claims
from spikeprune.lab.study.compare import Arm, Comparison
from spikeprune.lab.study.significance import MARGIN, seeds_for_equivalence

Found = Mapping[str, Comparison]
ANALYSES = {
    "mechanism": "Fashion-MNIST, 98 %, 0.34 turnovers of recovery",
    "mechanism_recovery": "digits, 80 %, 10 turnovers",
}  # folder of study/results -> what its runs are
_LIST = ";<br>"  # between the results in a cell
DEEP = ("deep", "deep_more", "deep_cifar100", "deep_steps")
DEEP_CHANNELS = ("deep_channels", "deep_channels_more")
RIVALS = ("IMP, whole rounds", "IMP + ET of one step, whole rounds", "Early-Bird", "RCMO-SNN", "ADMM")
HEADS = ("The abstract says (v1 of 2023, v3 of 2024)", "What was done here", "What was found", "How sure")


def section(found: Found, root: Path) -> list[str]:
    """The table as Markdown, and what it leaves open."""
    hours = left.read(root / "study" / "results" / "hours.txt")
    rows = [better(found), structures(found), cheap(found), cost(found), picks(found, root), alike(root)]
    lines = ["## The abstract, sentence by sentence", "", _row(HEADS), "|---|---|---|---|", *map(_row, rows), ""]
    power = ", ".join(f"{seeds_for_equivalence(sd / 100)} seeds at a spread of {sd:g} points" for sd in (0.2, 0.3, 0.5))
    lines += [
        f"A difference counts as none if two one-sided tests show it to lie within ±{100 * MARGIN:g} points; the "
        f"margin was fixed before the runs were compared. To show that with a power of 80 % takes {power}.",
        "",
    ]
    return lines + left.section(found, hours)


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def better(found: Found) -> tuple[str, ...]:
    """The accuracy claim, for weights."""
    told = [_difference(found, name, label, target) for name, label, target in (
        ("fashion", "criticality, constant share", 0.98), ("fashion", "criticality", 0.98),
        ("fashion", "criticality", 0.95), ("cifar10", "criticality", 0.98),
        ("recovery", "criticality, constant share", 0.98), ("recovery", "criticality", 0.98),
        ("recovery_digits", "criticality, constant share", 0.8), ("recovery_digits", "criticality", 0.8),
        ("deep", "criticality", 0.95), ("deep", "criticality, the authors' rule", 0.95),
    )]  # fmt: skip
    return (
        "Pruning with criticality loses less accuracy than the best earlier methods on VGG-16, no more on ResNet-19.",
        "Criticality, random and gradient regrowth against plain magnitude pruning, paired by seed, at equal epochs: "
        "small networks"
        + ("; two as deep as the paper's, an eighth as wide, after a short training." if "deep" in found else "."),
        _LIST.join(filter(None, told)) or "nothing yet",
        _sure(
            found,
            {"Small networks, decaying share": ("fashion", "cifar10"), "Deep networks, constant share": DEEP},
            (*DEEP, "deep_gpu", "recovery"),
        ),
    )


def structures(found: Found) -> tuple[str, ...]:
    """Both structures."""
    told = [
        _difference(found, "deep_channels", "criticality", 0.5),
        *(_difference(found, "deep_channels_more", "criticality", target) for target in (0.3, 0.7)),
    ]
    return (
        "The method serves unstructured and structured pruning.",
        "Channels of a small network, three seeds ([results](results/channels.md)); the deep networks as below.",
        _LIST.join(filter(None, told))
        or "In the small network criticality, random regrowth and none lie within each other's spread.",
        _sure(found, {"Deep networks": DEEP_CHANNELS}, (*DEEP_CHANNELS, "deep_channels_gpu")),
    )


def cheap(found: Found) -> tuple[str, ...]:
    """The metric's cost."""
    told = []
    for name in ("fashion", "cifar10", "deep"):
        arm, plain = _arm(found, name, "criticality", None), _arm(found, name, "magnitude", None)
        if arm is not None and plain is not None:
            mine, total = arm.values["pruning_seconds"].mean, arm.values["seconds"].mean
            told.append(
                f"{name}: {mine:.2f} of {total:.0f} s go to mask updates and upkeep "
                f"(magnitude: {plain.values['pruning_seconds'].mean:.2f} s)"
            )
    return (
        "The metric of criticality costs little to compute.",
        "Seconds inside mask updates and upkeep are recorded in every run. It needs no gradient and no label.",
        _LIST.join(told) or "nothing yet",
        "Measured; the machine was shared, so seconds are rough.",
    )


def cost(found: Found) -> tuple[str, ...]:
    """11.3, 15.5 and 95.26 %."""
    first, last = claims.factors()[0], claims.factors()[2]
    told = [
        f"{first.value:.1f} and {last.value:.1f} divide the search epochs of IMP by the paper's 200 pruning epochs; "
        "its 300 epochs of training behind them are left out. Total over total it is 5.1 and 6.8"
    ]
    for name, where in (("cost", "a small network"), ("deep_cost", "the deep networks")):
        for label in RIVALS:
            pair = price.ratios(found, name, label)
            if pair is not None:
                told.append(
                    f"{label}, {where}: search {pair[0]:.1f}, total {pair[1]:.1f} times criticality's CPU seconds"
                )
    return (
        "Pruning is 11.3 and 15.5 times as fast (v1), or costs up to 95.26 % less (v3).",
        "The factors were taken apart."
        + (
            " CPU seconds were measured to the last change of a mask (search) and to the end of training (total), at "
            "95 %, where IMP has 11 prunings."
            if len(told) > 1
            else ""
        ),
        _LIST.join(told),
        "The arithmetic is exact; which rival was meant is not stated. "
        + _sure(found, {}, ("cost", "deep_cost")).replace("As the intervals say.", ""),
    )


def picks(found: Found, root: Path) -> tuple[str, ...]:
    """Whether what is regrown is worth it."""
    told = []
    for label in ("criticality, constant share", "criticality", "random", "gradient"):
        arm = _arm(found, "fashion", label, 0.98)
        if arm is not None and arm.survived is not None:
            told.append(f"{label}: {100 * arm.survived.mean:.0f} % outlive the next cut")
    for folder, what in ANALYSES.items():
        seeds = _analysed(root, folder)
        if seeds and seeds.get("importance"):
            mine, others = (seeds["importance"][kind]["mean"] for kind in ("regrown", "others"))
            told.append(
                f"{what}, constant share: the regrown weights alive at the end have {mine:.2f} of their layer's "
                f"largest weight, the others {others:.2f}"
            )
    return (
        "Regeneration by criticality picks structures with potential.",
        "How many regrown weights outlive the next magnitude cut (98 % on Fashion-MNIST), and their size at the end.",
        _LIST.join(told) or "nothing yet",
        "Five seeds of two small networks. After 0.34 turnovers regrown weights are a third as large as others, after "
        "10 turnovers four fifths, and accuracy is not higher in either.",
    )


def alike(root: Path) -> tuple[str, ...]:
    """Consistent features, over the seeds of each analysis."""
    told: list[str] = []
    sure: list[str] = []
    for folder, what in ANALYSES.items():
        seeds = _analysed(root, folder)
        other = next((arm for arm in seeds["against"] if arm["arm"] == "magnitude"), None) if seeds else None
        if other is None:
            continue
        mine, theirs = (arm["consistency"]["mean_cosine_centred"]["mean"] for arm in (seeds, other))
        found = other["difference"]["feature cosine, centred"]
        n = len(seeds["seeds"])
        told.append(f"{what}: centred cosine {mine:.4f} with regeneration, {theirs:.4f} without ({n} seeds)")
        if found is not None and found["p"] is not None:
            sure.append(f"{what}: p = {found['p']:.2f}")
    return (
        "Regeneration makes features more consistent between training and test images.",
        "`spikeprune analyze`, runs with and without regeneration, constant share "
        "([Fashion-MNIST](../study/results/mechanism/analysis.html), "
        "[digits](../study/results/mechanism_recovery/analysis.html)).",
        _LIST.join(told) or "nothing yet",
        (_LIST.join(sure) + ". " if sure else "") + "A p above 0.05 means that no difference is seen.",
    )


def _analysed(root: Path, folder: str) -> dict[str, Any]:
    """What an analysis says over its seeds; empty without one."""
    file = root / "study" / "results" / folder / "analysis.json"
    return json.loads(file.read_text(encoding="utf-8"))["seeds"] or {} if file.is_file() else {}


def _arm(found: Found, name: str, label: str, target: float | None) -> Arm | None:
    rows = found[name].rows if name in found else ()
    return next((r for r in rows if r.label == label and (target is None or r.target == target)), None)


def _difference(found: Found, name: str, label: str, target: float) -> str:
    """In words: criticality on fashion at 98 %: +0.00 ± 0.44 points, 5 seeds, within ±0.3: p = 0.06."""
    told = []
    rows = found[name].rows if name in found else ()
    for arm in (r for r in rows if r.label == label and r.target == target and r.versus is not None):
        assert arm.versus is not None
        d = arm.versus.difference
        half = "" if d.half is None else f" ± {100 * d.half:.2f}"
        p = arm.versus.within_p
        within = "" if p is None else f", within ±{100 * MARGIN:g}: p = {p:.3f}"
        alive = "" if arm.delivered is None else f", {arm.delivered[0]:,.0f} of {arm.delivered[1]:,.0f} regrown alive"
        model = f", {(arm.model or '').rpartition(':')[2]}" if name.startswith("deep") else ""
        told.append(
            f"{label}, {arm.dataset.partition(' ')[0]}{model}, {100 * target:g} %: {100 * d.mean:+.2f}{half} points "
            f"({d.n} seed{'s' * (d.n != 1)}{within}{alive})"
        )
    return _LIST.join(told)


def _sure(found: Found, done: Mapping[str, tuple[str, ...]], wanted: tuple[str, ...]) -> str:
    """What the finished parts decide about criticality against the reference, and which parts are missing.

    Args:
        done: what a group of parts is -> their names.
    """
    parts = [text for what, names in done.items() if (text := _decided(found, what, names))]
    begun = {name: found[name].unfinished for name in wanted if name in found and found[name].unfinished}
    if begun:
        parts.append(f"Not finished: {', '.join(f'{name} ({left} runs left)' for name, left in begun.items())}.")
    missing = [name for name in wanted if name not in found]
    if missing:
        parts.append(f"Not run: {', '.join(missing)} (hours below).")
    return " ".join(parts) or "As the intervals say."


def _decided(found: Found, what: str, names: tuple[str, ...]) -> str:
    pairs = [
        row.versus
        for name in names
        for row in (found[name].rows if name in found else ())
        if row.label == "criticality" and row.versus is not None and row.versus.t_p is not None
    ]
    if not pairs:
        return ""
    differ = sum(pair.t_p is not None and pair.t_p < 0.05 for pair in pairs)
    equal = sum(pair.within_p is not None and pair.within_p < 0.05 for pair in pairs)
    return (
        f"{what}, {len(pairs)} comparisons: {differ} significant (p < 0.05, uncorrected), {equal} shown to be within "
        f"the margin, {len(pairs) - differ - equal} undecided."
    )
