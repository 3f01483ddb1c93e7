"""A recipe resolved once: what a run is, as objects and in steps, handed down to all that carries it out."""

import dataclasses
from dataclasses import dataclass
from typing import Literal, final

import torch

from spikeprune.lab.recipe.hash import settings_hash
from spikeprune.lab.recipe.method import make_method
from spikeprune.lab.recipe.settings import Recipe
from spikeprune.lab.recipe.timetable import Timetable, lay_out
from spikeprune.methods.base import Method

PhaseName = Literal["dense", "pretrain", "pruned"]


@final
@dataclass(frozen=True)
class DataFacts:
    """The sizes of a run's data, known before the files are read.

    Args:
        shape: (C, H, W) or (F,) of one sample at one time step.
        classes: number of classes.
        train: number of training samples.
    """

    shape: tuple[int, ...]
    classes: int
    train: int


@final
@dataclass(frozen=True)
class Job:
    """All that is decided about a run before it starts.

    Args:
        recipe: the settings as they were given.
        method: the method object, made once for the run.
        hash: of the settings that decide the result; the run folder's name has it.
        facts: the sizes of the data.
        timetable: when phases, mask updates and epochs happen, in steps.
        device: where it runs.
        precision: fp32, bf16 or fp16; never auto.
    """

    recipe: Recipe
    method: Method
    hash: str
    facts: DataFacts
    timetable: Timetable
    device: torch.device
    precision: str

    @property
    def phases(self) -> list[PhaseName]:
        """The trainings of this run, in order."""
        phases: list[PhaseName] = ["pruned"] if self.timetable.finetune is None else ["pretrain", "pruned"]
        return ["dense", *phases] if self.recipe.baseline and self.recipe.method != "dense" else phases

    def of(self, phase: PhaseName) -> "Job":
        """The job of one phase: the same settings with the timetable of that phase."""
        return dataclasses.replace(self, timetable=self.timetable.of(phase))


def resolve(recipe: Recipe, facts: DataFacts, device: torch.device, precision: str) -> Job:
    """Resolve a recipe for data of these facts.

    Raises: InvalidValue if pruning would outlast the run, no mask update fits, or the method refuses a setting.
    """
    method = make_method(recipe)
    timetable = lay_out(recipe, facts.train, method)
    return Job(recipe, method, settings_hash(recipe), facts, timetable, device, precision)
