"""The effect of regrowth, read from the files of a run: survival, importance after recovery, overfitting.

Plain functions.
"""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from spikeprune.lab.study.features import mean_of
from spikeprune.record.analysis import (
    EpochGap,
    Importance,
    ImportanceOfDifference,
    Overfitting,
    Survival,
    UpdateSurvival,
)
from spikeprune.record.epoch import Epoch
from spikeprune.record.round import Round


def survival(rounds: Sequence[Round], prunable: int, regrown_alive: int | None, alive: int) -> Survival:
    """The fate of regrown weights: how many survived the next cut, and how many are alive at the end, by mask update.

        rescued_share  = rescued / weights that magnitude newly cuts at the mask update (alive before less kept after)
        survived_share = survived / regrown: what the next magnitude cut keeps
        to_end         = regrown weights alive at the end without a later cut / all that were regrown, one mask update
        after another

    The last mask update's weights meet no cut; they count in `to_end`. Shares of nothing are None.

    Args:
        rounds: as in record.json.
        regrown_alive: regrown weights alive at the end; None where the run does not tell.
        alive: all weights alive at the end.
    """
    before = prunable
    updates: list[UpdateSurvival] = []
    for update in rounds:
        newly_cut = before - update.kept
        updates.append(
            UpdateSurvival(
                step=update.step,
                regrown=update.regrown,
                rescued=update.rescued,
                survived=update.survived,
                rescued_share=_share(update.rescued, newly_cut) if update.regrown else None,
                survived_share=_share(update.survived, update.regrown),
            )
        )
        before = update.kept
    judged = [(u.regrown, u.survived) for u in rounds if u.survived is not None and u.regrown]
    survived = sum(part for _, part in judged) if judged else None
    total = sum(update.regrown for update in rounds)
    return Survival(
        events=tuple(updates),
        regrown=total,
        rescued=sum(update.rescued for update in rounds),
        survived=survived,
        survived_share=_share(survived, sum(part for part, _ in judged)),
        alive_at_end=regrown_alive if total else None,
        to_end=_share(regrown_alive, total),
        share_of_alive=_share(regrown_alive, alive) if total else None,
    )


def _share(part: int | None, whole: int) -> float | None:
    return None if part is None or whole <= 0 else part / whole


def relative(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """|w| over its largest in the layer; a layer of zeros is left out."""
    sizes = {name: value.detach().double().abs() for name, value in tensors.items()}
    return {name: size / size.max() for name, size in sizes.items() if size.numel() and float(size.max()) > 0}


def mean_at(values: Mapping[str, Tensor], where: Mapping[str, Tensor]) -> float | None:
    """Mean over all positions that are True in `where`; None if there is none."""
    chosen = [v[where[name]] for name, v in values.items() if name in where]
    count = sum(len(values) for values in chosen)
    # Exactly rounded, so that it does not depend on how a tensor lies in memory.
    return math.fsum(x for values in chosen for x in values.tolist()) / count if count else None


def importance_within(
    tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor], regrown: Mapping[str, Tensor]
) -> Importance:
    """Regrown weights that are alive at the end against the other alive ones, by |w| / max |w| of the layer."""
    size = relative({name: tensors[name] for name in regrown})
    others = {name: masks[name] & ~regrown[name] for name in regrown}
    return Importance(
        regrown=mean_at(size, regrown),
        others=mean_at(size, others),
        regrown_count=sum(int(mask.sum()) for mask in regrown.values()),
        others_count=sum(int(mask.sum()) for mask in others.values()),
    )


def importance_between(
    mine: Mapping[str, Tensor],
    my_masks: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    their_masks: Mapping[str, Tensor],
) -> ImportanceOfDifference:
    """The importance |w| / max |w| of weights that only this network kept, and of those that only the other one kept.

    Where both have masks of gamma, the scale of normalisation of pruned channels, that is the importance; else weights.
    """
    both = [name for name in my_masks if name in their_masks and my_masks[name].shape == their_masks[name].shape]
    gamma = [name for name in both if my_masks[name].dim() == 1 and name.endswith("weight")]
    names = gamma or [name for name in both if my_masks[name].dim() > 1]
    only_mine = {name: my_masks[name] & ~their_masks[name] for name in names}
    only_theirs = {name: their_masks[name] & ~my_masks[name] for name in names}
    return ImportanceOfDifference(
        of="gamma" if gamma else "weight",
        only_this=mean_at(relative({name: mine[name] for name in names}), only_mine),
        only_other=mean_at(relative({name: theirs[name] for name in names}), only_theirs),
        only_this_count=sum(int(mask.sum()) for mask in only_mine.values()),
        only_other_count=sum(int(mask.sum()) for mask in only_theirs.values()),
    )


def overfitting(metrics: Sequence[Epoch], last_event: int | None) -> Overfitting:
    """Mean cross-entropy per image on training and validation images, both in eval mode, and their gap, by epoch.

    `recovery_gap` is the mean gap of the epochs that lie wholly after the last mask update, `final_gap` that of the
    last one.

    Args:
        metrics: lines of metrics.jsonl.
        last_event: its step; None without events.
    """
    epochs: list[EpochGap] = []
    before = 0
    gaps: list[float | None] = []
    in_recovery: list[float | None] = []
    for line in metrics:
        if line.phase == "pruned":
            gap, recovery = _difference(line.val_loss, line.seen_loss), last_event is not None and before >= last_event
            epochs.append(
                EpochGap(
                    epoch=line.epoch,
                    train_loss=line.seen_loss,
                    validation_loss=line.val_loss,
                    gap=gap,
                    recovery=recovery,
                )
            )
            gaps.append(gap)
            in_recovery += [gap] if recovery else []
            before = line.step
    return Overfitting(epochs=tuple(epochs), final_gap=gaps[-1] if gaps else None, recovery_gap=mean_of(in_recovery))


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b
