"""When a run does what: the recipe's phases in optimizer steps."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast, final

from spikeprune.core.errors import InvalidValue
from spikeprune.core.schedule import SCHEDULES, OneShot, Schedule, duration, turnover_steps
from spikeprune.lab.recipe.method import make_method
from spikeprune.lab.recipe.settings import Recipe
from spikeprune.lab.recipe.squeeze_settings import SQUEEZE
from spikeprune.methods.base import Method
from spikeprune.methods.registry import hints_of


@final
@dataclass(frozen=True)
class Timetable:
    """The length of a run and its pruning schedule, in optimizer steps.

    Args:
        steps_per_epoch: the last batch of an epoch may be smaller, and counts.
        epochs: of the pruned run, and of the dense one.
        schedule: when the network is pruned, and how far.
        finetune: the last epochs of the pruned run, with the shrunk network, if it is pruned between two trainings.
    """

    steps_per_epoch: int
    epochs: int
    schedule: Schedule
    finetune: int | None = None

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.epochs

    def of(self, phase: str) -> "Timetable":
        """The part of the run that a phase is: where a network is pruned between two trainings, each is a whole."""
        if self.finetune is None or phase == "dense":
            return self
        epochs = self.epochs - self.finetune if phase == "pretrain" else self.finetune
        return Timetable(self.steps_per_epoch, epochs, self.schedule)


def lay_out(recipe: Recipe, train_count: int, method: Method | None = None) -> Timetable:
    """Lay the recipe's phases out over a training split of `train_count` images.

    With M = floor((end - begin) / every) below `prune.events`, `every` shrinks until there are so many updates, as far
    as there are steps; a very short run prunes from its first step on.

    Args:
        method: the recipe's, if it has been made already.
    Raises: InvalidValue if pruning would outlast the run, or no mask update fits.
    """
    per_epoch = math.ceil(train_count / recipe.batch)
    total = per_epoch * recipe.epochs
    if recipe.method == SQUEEZE:
        return _lay_out_squeeze(recipe, per_epoch)
    turnover = turnover_of(recipe)
    begin, end, every = (
        duration(text, per_epoch, turnover) for text in (recipe.prune.begin, recipe.prune.end, recipe.prune.every)
    )
    if recipe.prune.finetune is not None:
        epochs = round(duration(recipe.prune.finetune, per_epoch, turnover) / per_epoch)
        if epochs > recipe.epochs:
            raise InvalidValue(
                f"prune.finetune {recipe.prune.finetune} is longer than the whole run, {recipe.epochs} epochs; "
                "shorten it or raise epochs"
            )
        return Timetable(per_epoch, recipe.epochs, OneShot(recipe.sparsity), max(1, epochs))
    own = hints_of(recipe.method).schedule
    if own is not None:
        return Timetable(
            per_epoch, recipe.epochs, own(method or make_method(recipe), recipe.sparsity, total, per_epoch)
        )
    every = max(1, every)
    if end > total:
        raise InvalidValue(
            f"prune.end {recipe.prune.end} is step {end}, after the run's last, {total}; shorten it or raise epochs"
        )
    if (end - begin) // every < recipe.prune.events:
        every = max(1, (end - begin) // recipe.prune.events)
        end = min(total, max(end, begin + recipe.prune.events * every))
        begin = max(0, min(begin, end - recipe.prune.events * every))
    make = cast(Callable[..., Schedule], SCHEDULES[recipe.prune.schedule])
    rising = {} if recipe.prune.schedule == "constant" else {"initial": min(recipe.prune.initial, recipe.sparsity)}
    return Timetable(per_epoch, recipe.epochs, make(recipe.sparsity, begin, end, every, **rising))


def _lay_out_squeeze(recipe: Recipe, per_epoch: int) -> Timetable:
    """Dense epochs, then those after the squeeze, which may be 0; with `weights` there are no dense ones.

    Raises: InvalidValue if the training after the squeeze is longer than the run.
    """
    tune = math.ceil(duration(recipe.squeeze.tune, per_epoch, None) / per_epoch)
    if tune > recipe.epochs or (tune == recipe.epochs and recipe.weights is None):
        raise InvalidValue(
            f"squeeze.tune {recipe.squeeze.tune} leaves no epoch of {recipe.epochs} to train the dense network in; "
            "shorten it, raise epochs, or start from a trained network with --weights"
        )
    return Timetable(per_epoch, recipe.epochs, OneShot(recipe.sparsity), tune)


def turnover_of(recipe: Recipe) -> float | None:
    """Steps in which a weight turns over under the recipe's optimizer; None without weight decay."""
    optim = recipe.optim
    return turnover_steps(recipe.lr, optim.weight_decay, optim.momentum if optim.name == "sgd" else 0.0)


def learning_rate(recipe: Recipe, step: int, timetable: Timetable, span: tuple[int, int | None] = (0, None)) -> float:
    """The learning rate of the step after `step` completed ones.

    cosine: lr * (1 + cos(pi p)) / 2;  step: lr * drop^(milestones passed by p);  p is the share of the training done,
    of whole epochs with `stepping: epoch`.

    Args:
        span: first and last step of a training within the run, which has the whole course for itself; None is the end.
    """
    first, last = span
    done = step - first
    if recipe.optim.stepping == "epoch":
        done -= done % timetable.steps_per_epoch
    progress = done / ((timetable.steps if last is None else last) - first)
    if recipe.optim.decay == "cosine":
        return recipe.lr * (1 + math.cos(math.pi * progress)) / 2
    if recipe.optim.decay == "step":
        return recipe.lr * recipe.optim.drop ** sum(progress >= milestone for milestone in recipe.optim.milestones)
    return recipe.lr
