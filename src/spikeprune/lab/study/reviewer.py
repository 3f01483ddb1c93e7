"""The table that reviewers of papers on pruned spiking networks ask for: one row an arm, on one backbone and T."""

import math
from collections.abc import Mapping, Sequence

from spikeprune.lab.study.compare import ComparedRun, Comparison
from spikeprune.lab.study.tables import NONE, percent, short
from spikeprune.record.run import ClassRecord, RunRecord

HEADS = [
    "arm", "T", "seeds", "accuracy %", "dense %", "SynOps", "fewer than dense", "of it weights", "of it rates",
    "spikes/neuron/step", "training MACs", "of dense",
]  # fmt: skip
_ALL_CLASSES, _FEW_CLASSES = 20, 10  # up to so many classes are all shown; of more, the few that lose most


def reviewer_table(comparison: Comparison, runs: Sequence[ComparedRun]) -> list[tuple[str, list[list[str]]]]:
    """(title, rows below their heads), one table for each data set, model and sparsity.

    The saving of synaptic operations is a product: SynOps = MACs of alive weights x mean input rate. So

        ln(SynOps dense / pruned) = ln(MACs dense / pruned) + ln(rate dense / pruned),

    and each logarithm's share of the sum is the share of the saving that weights or rates have. Training MACs credit
    the zeros; "of dense" divides them by those of the same epochs without zeros.
    """
    by_name = {run.path.name: run.record for run in runs}
    found: list[tuple[str, list[list[str]]]] = []
    for block in comparison.blocks:
        rows = [HEADS]
        dense = [by_name[name] for arm in block.rows if arm.target is None for name in arm.runs if name in by_name]
        for arm in block.rows:
            records = [by_name[name] for name in arm.runs if name in by_name]
            rows.append([arm.label, *_cells(records, dense)] if records else [arm.label, *[NONE] * (len(HEADS) - 1)])
            if records:
                rows[-1][3] = percent(arm.values["accuracy"])
        found.append((block.title, rows))
    return found


def class_table(comparison: Comparison, runs: Sequence[ComparedRun]) -> list[tuple[str, list[list[str]]]]:
    """(title, rows below their heads): accuracy of each class in percent, mean over seeds, one column an arm.

    Of many classes, those are shown that lose most against the dense network, or, without one, those with the lowest
    accuracy. Runs of version 0.1 did not record classes; arms with such runs are left out.
    """
    by_name = {run.path.name: run.record for run in runs}
    found: list[tuple[str, list[list[str]]]] = []
    for block in comparison.blocks:
        arms: dict[str, list[Mapping[str, ClassRecord]]] = {}
        for arm in block.rows:
            scored = [classes_of(by_name[name]) for name in arm.runs if name in by_name]
            if scored and all(scored):
                arms[arm.label] = scored
        beside = [classes_of(by_name[name], "dense") for arm in block.rows for name in arm.runs if name in by_name]
        if beside and all(beside) and not any(arm.target is None for arm in block.rows):
            arms = {"dense": beside, **arms}
        if arms:
            found.append(_class_rows(block.title, arms))
    return found


def classes_of(record: RunRecord, network: str = "pruned") -> Mapping[str, ClassRecord]:
    """Class name -> its score in the run's dense or pruned network; empty where it was not recorded."""
    if record.squeeze is not None:
        scores = [
            ClassRecord(name=c.name, images=c.images, right=c.dense if network == "dense" else c.pruned)
            for c in record.squeeze.classes
        ]
    else:
        scores = (record.dense if network == "dense" else record.pruned).classes or ()
    return {score.name: score for score in scores if score.images}


def _class_rows(title: str, arms: Mapping[str, Sequence[Mapping[str, ClassRecord]]]) -> tuple[str, list[list[str]]]:
    names = [name for name in next(iter(arms.values()))[0] if all(name in s for seeds in arms.values() for s in seeds)]
    share = {
        name: [_mean([seed[name].right / seed[name].images for seed in seeds]) for seeds in arms.values()]
        for name in names
    }
    if len(names) > _ALL_CLASSES:
        base = list(arms).index("dense") if "dense" in arms else None
        lost = {name: min(row) - (row[base] if base is not None else 0.0) for name, row in share.items()}
        names = sorted(names, key=lambda name: lost[name])[:_FEW_CLASSES]
        title += f": the {_FEW_CLASSES} of {len(share)} classes that " + (
            "lose most against dense" if base is not None else "are lowest"
        )
    images = next(iter(arms.values()))[0]
    rows = [[name, f"{images[name].images:,}", *(f"{100 * mean:.1f}" for mean in share[name])] for name in names]
    return f"{title}: accuracy by class, %", [["class", "images", *arms], *rows]


def explanation() -> list[str]:
    """How to read the tables."""
    return [
        "SynOps are accumulates through alive weights, per image and over all T. Logarithms split the saving into "
        "the part of the weights (fewer MACs) and that of the rates (fewer spikes); negative means that it went up.",
        "Training MACs credit the zeros, forward and backward; hardware that does not skip zeros saves nothing of it.",
        "Accuracy: mean and 95 % t interval over seeds. Same backbone and T in each table; SynOps are those of the "
        "synapses alone, without neuron updates and packets.",
        "Where no dense network was trained, dense SynOps are those of the same spikes through all connections.",
        "Accuracy by class is the mean over seeds; one image of a class with 50 test images is 2 points.",
    ]


def _cells(records: Sequence[RunRecord], alone: Sequence[RunRecord]) -> list[str]:
    """The row of an arm; `alone` are runs of the dense network by itself, for runs that trained none beside."""
    beside = [record.dense for record in records if record.dense.accuracy is not None]
    base = beside or [record.pruned for record in alone] or [record.dense for record in records]
    dense = [network.accuracy for network in base if network.accuracy is not None]
    pruned = _mean([record.pruned.synops for record in records])
    whole = _mean([network.synops for network in base])
    macs_left, macs_whole = _mean([r.pruned.macs for r in records]), _mean([network.macs for network in base])
    measured = bool(beside or alone)  # without a dense network, its counts are of the pruned one's spikes
    weights, rates = _shares((macs_whole, whole), (macs_left, pruned)) if measured else (NONE, NONE)
    macs = _mean([record.cost.train_macs_effective for record in records])
    as_dense = _mean([record.cost.train_macs for record in records])
    return [
        ", ".join(sorted({str(record.settings.T) for record in records})),
        str(len(records)),
        "",
        f"{100 * _mean(dense):.2f}" if dense else NONE,
        short(pruned),
        f"{whole / pruned:.3g}x" if pruned else NONE,
        weights,
        rates,
        f"{_mean([record.pruned.firing_rate for record in records]):.4f}",
        short(macs),
        f"{macs / as_dense:.0%}" if as_dense else NONE,
    ]


def _shares(dense: tuple[float, float], pruned: tuple[float, float]) -> tuple[str, str]:
    """The shares of the saved SynOps that come from fewer weights and from lower rates. NONE if nothing is saved.

    Args:
        dense, pruned: (MACs of the alive weights, SynOps) of the networks.
    """
    if min(*dense, *pruned) <= 0 or abs(total := math.log(dense[1] / pruned[1])) < 0.01:
        return NONE, NONE
    of_weights = math.log(dense[0] / pruned[0]) / total
    return f"{of_weights:.0%}", f"{1 - of_weights:.0%}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
