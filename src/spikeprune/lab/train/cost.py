"""The cost of a run, in seconds and in operations."""

from collections.abc import Mapping

from torch import Tensor

from spikeprune.count.counts import Counts
from spikeprune.lab.recipe.job import Job
from spikeprune.lab.train.done import CutPhase
from spikeprune.lab.train.loop import Phase
from spikeprune.record.run import Cost

# A step of the backward pass costs two passes: gradients for the inputs and for the weights.
PASSES = 3


def cost_of_one(job: Job, phase: Phase, counts: Counts, masks: Mapping[str, Tensor]) -> Cost:
    """The cost of the pruned run: `search` counts up to the last change of a mask, the other numbers are totals.

    Zeros are credited in all passes, but where the method needed the gradients of dead weights (to regrow by them,
    or to keep their momentum) not in the one that computes them.
    """
    samples = phase.samples
    effective = 0.0
    for name, layer in counts.layers.items():
        weight = f"{name}.weight"
        if weight in masks:
            passes = PASSES * phase.kept_samples[weight] + phase.filled_samples[weight]
            effective += layer.dense.macs * passes / masks[weight].numel()
        else:
            effective += PASSES * layer.dense.macs * samples
    return Cost(
        epochs=job.recipe.epochs,
        seconds=phase.seconds,
        train_macs=PASSES * counts.dense.macs * samples,
        train_macs_effective=effective,
        pruning_seconds=phase.pruning_seconds,
        search_epochs=phase.search_step / job.timetable.steps_per_epoch,
        search_seconds=phase.search_seconds,
    )


def cost_of_two(job: Job, phase: Phase, counts: Counts, cut: CutPhase) -> Cost:
    """The cost of a run that pruned its network between two trainings. `counts` are those of the small network."""
    whole, small, after = cut.figures.macs, counts.dense.macs, phase.samples
    return Cost(
        epochs=job.recipe.epochs,
        seconds=cut.seconds + phase.seconds,
        train_macs=PASSES * whole * (cut.samples + after),
        train_macs_effective=PASSES * (whole * cut.samples + small * after),
        pruning_seconds=cut.pruned.seconds,
        search_epochs=float(job.recipe.epochs - job.timetable.of("pruned").epochs),
        search_seconds=cut.seconds,
    )
