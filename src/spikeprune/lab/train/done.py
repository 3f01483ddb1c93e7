"""The results of the finished phases of a run, kept for its record. They are a part of every checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from torch import Tensor

from spikeprune.count.counts import Figures
from spikeprune.lab.train.by_class import ClassScores
from spikeprune.lab.train.structured import Pruned
from spikeprune.record.base import Positive, Record, recorded
from spikeprune.record.checkpoint import CutState, PhasesState
from spikeprune.record.round import Round
from spikeprune.record.run import ClassRecord, NetworkRecord
from spikeprune.record.statistics import NetworkStatistics


def network_record(
    figures: Figures,
    accuracy: float | None = None,
    alive: int | None = None,
    classes: tuple[ClassRecord, ...] | None = None,
) -> NetworkRecord:
    """One side of the counts as record.json has it; `alive` is given where channels are counted."""
    return NetworkRecord(
        accuracy=accuracy,
        parameters=figures.parameters,
        alive=figures.alive if alive is None else alive,
        bytes=figures.bytes,
        macs=figures.macs,
        synops=figures.synops,
        energy_pj=figures.energy_pj,
        firing_rate=figures.firing_rate,
        classes=classes,
    )


def scored_classes(names: Sequence[str], scores: ClassScores) -> tuple[ClassRecord, ...]:
    """The score of each class. A class without an output is left out, and so is an output without a class."""
    rows = zip(names, scores.images, scores.right, strict=False)
    return tuple(ClassRecord(name=name, images=images, right=right) for name, images, right in rows)


@final
@recorded
class DensePhase(Record):
    """The results of the dense training. Its weights are in dense.safetensors."""

    figures: NetworkRecord
    statistics: NetworkStatistics
    seconds: Positive


@final
@dataclass(frozen=True)
class CutPhase:
    """The results of the training before a single cut, and of the cut.

    Attributes:
        plan: of the cut, as plan.json has it.
        model: the small network's weights, until the next phase has taken them up.
        figures: of the whole network.
        pretrained, cut: test accuracy before and right after the cut.
        seconds: training and cut.
        samples: trained on.
    """

    plan: str
    model: Mapping[str, Tensor] | None
    pruned: Pruned
    figures: NetworkRecord
    pretrained: float
    cut: float
    seconds: float
    samples: float

    def state_dict(self) -> CutState:
        """Plain types and tensors."""
        did = self.pruned
        state = CutState(
            plan=self.plan,
            pruned={
                "masks": did.masks,
                "regrown": did.regrown,
                "channels": did.channels,
                "rounds": [update.as_dict() for update in did.rounds],
                "sparsity": did.sparsity,
                "seconds": did.seconds,
            },
            figures=self.figures.as_dict(),
            accuracy={"pretrained": self.pretrained, "pruned": self.cut},
            seconds=self.seconds,
            samples=self.samples,
        )
        if self.model is not None:
            state["model"] = dict(self.model)
        return state

    @classmethod
    def from_state(cls, state: CutState) -> "CutPhase":
        """Restores what `state_dict` returned, here or in version 0.1."""
        rounds = [Round.read(update) for update in state["pruned"]["rounds"]]
        return cls(
            plan=state["plan"],
            model=state.get("model"),
            pruned=Pruned(**{**state["pruned"], "rounds": rounds}),
            figures=NetworkRecord.read({"accuracy": None, **state["figures"]}, "figures"),
            pretrained=state["accuracy"]["pretrained"],
            cut=state["accuracy"]["pruned"],
            seconds=state["seconds"],
            samples=state["samples"],
        )


@final
@dataclass
class PhasesDone:
    """The phases that are over; None for those that are not, or that the run does not have."""

    dense: DensePhase | None = None
    pretrain: CutPhase | None = None

    def state_dict(self) -> PhasesState:
        """Plain types and tensors, for a checkpoint."""
        found = PhasesState()
        if self.dense is not None:
            found["dense"] = self.dense.as_dict()
        if self.pretrain is not None:
            found["pretrain"] = self.pretrain.state_dict()
        return found

    @classmethod
    def from_state(cls, state: PhasesState) -> "PhasesDone":
        """Restores what `state_dict` returned, here or in version 0.1."""
        dense, pretrain = state.get("dense"), state.get("pretrain")
        return cls(
            None if dense is None else DensePhase.read(dense),
            None if pretrain is None else CutPhase.from_state(pretrain),
        )
