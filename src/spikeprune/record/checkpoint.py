"""The contents of checkpoints: the keys of `pruner.state_dict()` and of the files in `checkpoint/`, with types.

All of it is plain types and tensors, so that `torch.load` reads it weights-only.
"""

import ast
from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict, cast

import torch
from torch import Tensor

from spikeprune.core.errors import InvalidValue
from spikeprune.record.base import Json


class PrunerSettings(TypedDict):
    """The settings that decide a Pruner's masks. A saved state must agree with them."""

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
    """The state of single weights beside the masks: parameter name -> values of dead weights when they were cut."""

    last: dict[str, Tensor]


class ChannelsState(TypedDict):
    """The state of channels beside the masks.

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
    """`pruner.state_dict()`. Masks are packed, eight weights to a byte.

    Keys:
        began: the sparsity of given masks.
        joined: the step at which a state of another schedule or network was taken up; later rounds are of this one.
    """

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
    joined: NotRequired[int]


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
    """The complete state of a training phase: its continuation depends on nothing else.

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
    """The result of a cut, with the fields of `Pruned`."""

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
    """The results of the training before a single cut, and of the cut."""

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
    """The results of a squeeze. `scores`: right answers and images by class, of the dense and the squeezed network."""

    trained: TrainedState
    dense: dict[str, Json]
    statistics: dict[str, Json]
    scores: list[list[list[int]]]
    before: dict[str, Tensor]
    masks: dict[str, Tensor]
    entry: dict[str, Json]


class LastCheckpoint(TypedDict):
    """`checkpoint/last.pt`: a run resumes from it. `metrics` is the length of metrics.jsonl in bytes at that time."""

    hash: str
    checksum: str
    precision: str
    threads: int
    metrics: int
    done: PhasesState | SqueezeState
    phase: PhaseState


class BestCheckpoint(TypedDict):
    """`checkpoint/best.pt`: the weights of the epoch of the best validation score after the last mask update."""

    phase: str
    epoch: int
    model: Mapping[str, Tensor]


def check_kinds(state: PrunerState) -> None:
    """Raises: TypeError if a part of a saved `pruner.state_dict()` holds another kind of value."""
    for key in ("masks", "regrown", "ever_regrown", "totals", "memory", "space", "rewind"):
        _check_kind(key, state.get(key))
    step, began = cast(object, state["step"]), cast(object, state.get("began"))
    if type(step) is not int or not 0 <= step < 1 << 53:
        raise TypeError(f"step is {step!r:.40}")
    joined = cast(object, state.get("joined"))
    if joined is not None and not (type(joined) is int and 0 <= joined <= step):
        raise TypeError(f"joined is {joined!r:.40}")
    if began is not None and not (type(began) in (int, float) and 0 <= cast(float, began) <= 1):
        raise TypeError(f"began is {began!r:.40}")


def _check_kind(key: str, value: object) -> None:
    if value is None and key in ("regrown", "ever_regrown", "rewind"):
        return
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise TypeError(f"{key} is no mapping of names but {type(value).__name__}")
    entries = cast(Mapping[str, object], value)
    if key in ("masks", "regrown", "ever_regrown"):
        wrong = next((n for n, bits in entries.items() if not _is_bits(bits)), None)
    elif key == "totals":
        wrong = next((n for n, total in entries.items() if not _is_total(total)), None)
    elif key in ("memory", "space"):
        wrong = next((n for n, kept in entries.items() if not _all_tensors(kept)), None)
    else:
        wrong = None if _all_tensors(entries.get("point")) and type(entries.get("since")) is int else "point or since"
    if wrong is not None:
        raise TypeError(f"{key} holds another kind of value under {wrong[:40]!r}")


def _is_bits(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype is torch.uint8 and value.dim() == 1


def _is_total(value: object) -> bool:
    if not isinstance(value, (tuple, list)) or len(cast(Sequence[object], value)) != 2:
        return False
    total, number = cast(tuple[object, object], value)
    return (total is None or isinstance(total, Tensor)) and type(number) in (int, float)


def _all_tensors(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(v, Tensor) for v in cast(Mapping[str, object], value).values())


def check_settings(mine: PrunerSettings, theirs: PrunerSettings) -> None:
    """Raises: InvalidValue if a state was saved under settings that make other masks."""
    for key, value in mine.items():
        if value != theirs.get(key) and not same_call(value, theirs.get(key)):
            raise InvalidValue(
                f"the saved pruner state was made with another {key}: {str(theirs.get(key))[:80]}; make the Pruner "
                "alike, or pass strict=False"
            )


def same_call(a: object, b: object) -> bool:
    """Whether two representations of an object say the same; 0.1 wrote the settings of a method in another order."""
    try:
        calls = [ast.parse(text, mode="eval").body for text in (a, b) if isinstance(text, str)]
    except SyntaxError:
        return False
    said = [
        (ast.dump(call.func), sorted((str(k.arg), ast.dump(k.value)) for k in call.keywords))
        for call in calls
        if isinstance(call, ast.Call) and not call.args
    ]
    return len(said) == 2 and said[0] == said[1]
