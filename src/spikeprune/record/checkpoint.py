"""What checkpoints hold: the keys of `pruner.state_dict()` and of the files in `checkpoint/`, with their types.

All of it is plain types and tensors, so that `torch.load` reads it weights-only.
"""

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

from torch import Tensor

from spikeprune.record.base import Json


class PrunerSettings(TypedDict):
    """What decides which masks a Pruner makes; a saved state must agree with it."""

    method: str
    schedule: str
    allocate: str
    pattern: str
    budget: str
    floor: float
    seed: int
    start: str
    regrow_exclude: NotRequired[list[str]]
    parameters: dict[str, list[int]]


class WeightsState(TypedDict):
    """What single weights know beside the masks: parameter name -> values that dead ones had when they were cut."""

    last: dict[str, Tensor]


class ChannelsState(TypedDict):
    """What channels know beside the masks.

    Keys:
        alive: group name -> bool [C].
        stash: parameter name -> what cut entries were.
        rates: weight name -> share of non-zero inputs, of cut channels as it was before.
    """

    alive: dict[str, Tensor]
    stash: dict[str, Tensor]
    rates: dict[str, Tensor]


SpaceState = WeightsState | ChannelsState


class RewindState(TypedDict):
    """The point to go back to, and the step of the last rewind."""

    since: int
    point: dict[str, Tensor]


class PrunerState(TypedDict):
    """`pruner.state_dict()`. Masks are packed, eight weights to a byte."""

    version: int
    settings: PrunerSettings
    step: int
    masks: dict[str, Tensor]
    regrown: dict[str, Tensor] | None
    ever_regrown: dict[str, Tensor]
    rounds: list[dict[str, Json]]
    totals: dict[str, tuple[Tensor | None, float]]
    space: SpaceState
    memory: dict[str, dict[str, Tensor]]
    rewind: RewindState | None
    began: NotRequired[float]


class RandomState(TypedDict):
    """The states of all random number generators."""

    torch: Tensor
    cuda: list[Tensor]
    numpy: tuple[str, Tensor, int, int, float]
    python: tuple[int, list[int], float | None]


class BestEpoch(TypedDict):
    """The epoch that is chosen so far, counted within its phase, and its scores on the validation split."""

    epoch: int
    accuracy: float
    loss: float


class PhaseState(TypedDict):
    """All that the rest of a training phase depends on.

    Keys:
        batch: of the present epoch; `sums` are its loss, right answers and images so far.
        optimizer, scaler: torch's own.
    """

    name: str
    epoch: int
    batch: int
    sums: tuple[float, int, int]
    best: BestEpoch | None
    seconds: float
    search_seconds: float
    search_step: int
    pruning_seconds: float
    kept_samples: dict[str, float]
    filled_samples: dict[str, float]
    samples: float
    search_T: int | None
    model: Mapping[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    pruner: PrunerState | None
    random: RandomState


class PrunedState(TypedDict):
    """What a cut did, as `Pruned` has it."""

    masks: dict[str, Tensor]
    regrown: dict[str, Tensor]
    channels: dict[str, Tensor]
    rounds: list[dict[str, Json]]
    sparsity: float
    seconds: float


class CutAccuracy(TypedDict):
    """Test accuracy before and right after a cut."""

    pretrained: float
    pruned: float


class CutState(TypedDict):
    """What the training before a single cut left, and the cut."""

    plan: str
    pruned: PrunedState
    figures: dict[str, Json]
    accuracy: CutAccuracy
    seconds: float
    samples: float
    model: NotRequired[dict[str, Tensor]]


class PhasesState(TypedDict, total=False):
    """The phases of a run that are over."""

    dense: dict[str, Json]
    pretrain: CutState


class TrainedState(TypedDict):
    """The dense training before a squeeze."""

    epochs: int
    seconds: float
    samples: float


class SqueezeState(TypedDict):
    """What a squeeze left; `scores` are right answers and images by class, of the dense and of the squeezed network."""

    trained: TrainedState
    dense: dict[str, Json]
    statistics: dict[str, Json]
    scores: list[list[list[int]]]
    before: dict[str, Tensor]
    masks: dict[str, Tensor]
    entry: dict[str, Json]


class LastCheckpoint(TypedDict):
    """`checkpoint/last.pt`: a run can go on from it. `metrics` is the length of metrics.jsonl in bytes."""

    hash: str
    checksum: str
    precision: str
    threads: int
    metrics: int
    done: PhasesState | SqueezeState
    phase: PhaseState


class BestCheckpoint(TypedDict):
    """`checkpoint/best.pt`: the weights of the chosen epoch."""

    phase: str
    epoch: int
    model: Mapping[str, Tensor]
