"""A run folder as plain, checked values: all that the page shows."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, final

from spikeprune.core.errors import UserError
from spikeprune.lab.train.folder import RunFolder, read_safetensors
from spikeprune.lab.train.statistics import QUANTILES
from spikeprune.prune.pattern import unit_of
from spikeprune.shrink.plan import ChannelPlan

# What only the template reads of a record; `float` stands for any finite number.
_PRINTED: dict[str, dict[str, type | UnionType]] = {
    "settings": {
        "method": str, "model": str, "allocate": str, "pattern": str, "budget": str, "start": str, "regrow": float,
        "T": float, "epochs": float, "data": dict,
    },
    "environment": {
        "versions": dict, "platform": str, "device": str, "threads": float, "precision": str, "git": str | None,
    },
    "data": {"name": str, "counts": dict, "notes": list, "counted": float, "checksum": str},
    "cost": {
        "epochs": float, "seconds": float, "train_macs": float, "train_macs_effective": float,
        "pruning_seconds": float, "search_epochs": float,
    },
}  # fmt: skip


@final
@dataclass(frozen=True)
class Side:
    """The dense or the pruned network, as in record.json; `accuracy` is None where it was not measured."""

    accuracy: float | None
    parameters: float
    alive: float
    bytes: float
    macs: float
    synops: float
    energy_pj: float
    firing_rate: float


@final
@dataclass(frozen=True)
class Round:
    """One event. `layers` is layer, or group of channels -> regrown in it; empty where that was not recorded."""

    step: int
    target: float
    kept: int
    regrown: int
    rescued: int
    survived: int | None
    layers: Mapping[str, int]


@final
@dataclass(frozen=True)
class Epoch:
    """One line of metrics.jsonl. `accuracy` is of the validation split, or of training where there is none."""

    phase: str
    epoch: int
    step: int
    accuracy: float
    train_loss: float
    val_loss: float | None
    sparsity: float
    lr: float


@final
@dataclass(frozen=True)
class Layer:
    """A prunable weight; `neuron` is the one it feeds, None for the classifier, "" where that is not known."""

    name: str
    weights: int
    alive: int
    neuron: str | None


@final
@dataclass(frozen=True)
class Operations:
    """Of one layer, per image: accumulates and multiply-accumulates."""

    acs: float
    mac_ops: float


@final
@dataclass(frozen=True)
class Neurons:
    """A neuron layer: spikes per neuron and step, and quantiles of its channels' criticality, where there are any."""

    firing_rate: float
    criticality: tuple[float, ...]
    peak: float


@final
@dataclass(frozen=True)
class Statistics:
    """One network's part of statistics.json."""

    operations: Mapping[str, Operations]
    neurons: Mapping[str, Neurons]


@final
@dataclass(frozen=True)
class Timing:
    """An engine at one batch size and number of threads; `over` names the fastest dense engine beside one of ours."""

    threads: int
    clock: str
    batch: int
    engine: str
    milliseconds: float
    images_per_s: float
    over: str | None


@final
@dataclass(frozen=True)
class Bench:
    """What `spikeprune bench` left. `accuracy` is engine -> share of the test split, empty if not measured."""

    cpu: str
    kernels: str
    multiplies_kept: float
    repeats: int
    int16_flipped: float
    accuracy: Mapping[str, float]
    timings: tuple[Timing, ...]


@final
@dataclass(frozen=True)
class Run:
    """All of a finished run that its page shows. `record` keeps what is only printed: settings, environment, data."""

    path: Path
    record: Mapping[str, Any]
    name: str
    dense: Side
    pruned: Side
    sparsity: float
    rounds: tuple[Round, ...]
    epochs: tuple[Epoch, ...]
    validated: bool
    layers: tuple[Layer, ...]
    dense_statistics: Statistics | None
    statistics: Statistics | None
    channels: Mapping[str, tuple[int, int]]
    bench: Bench | None

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.record["settings"]

    @property
    def pruning(self) -> bool:
        """Whether anything was pruned."""
        return self.settings["method"] != "dense"

    @property
    def unit(self) -> str:
        """What is cut and regrown."""
        return unit_of(self.settings["pattern"])

    @property
    def test_images(self) -> int:
        return int(self.record["data"]["counts"]["test"])


def read_run(folder: RunFolder) -> Run:
    """Read what the page needs.

    Raises: UserError naming the file that is missing or damaged.
    """
    record = folder.read_record()
    with _whole(folder.record):
        dense, pruned = _side(record["dense"]), _side(record["pruned"])
        if pruned.accuracy is None:
            raise ValueError("pruned.accuracy is null")
        rounds = tuple(_round(event) for event in record["rounds"])
        sparsity, name = float(record["sparsity"]), str(record["name"])
        _check_printed(record)
    statistics = _statistics(folder.statistics)
    epochs, validated = _epochs(folder.metrics)
    return Run(
        path=folder.path,
        record=record,
        name=name,
        dense=dense,
        pruned=pruned,
        sparsity=sparsity,
        rounds=rounds,
        epochs=epochs,
        validated=validated,
        layers=_layers(folder.masks, statistics[2]),
        dense_statistics=statistics[0],
        statistics=statistics[1],
        channels=ChannelPlan.load(folder.plan).layers if folder.plan.is_file() else {},
        bench=_bench(folder.bench),
    )


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Whatever goes wrong inside means that `path` is damaged."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; a finished run has this file") from error
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}: {str(error)[:80]}); "
            "restore it, or run again with another --out"
        ) from error


def _side(values: Mapping[str, Any]) -> Side:
    names = ("parameters", "alive", "bytes", "macs", "synops", "energy_pj", "firing_rate")
    accuracy = values["accuracy"]
    return Side(None if accuracy is None else _number(accuracy), *(_number(values[name]) for name in names))


def _number(value: Any) -> float:
    """Raises: ValueError for what is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a number")
    return value


def _round(event: Mapping[str, Any]) -> Round:
    survived = event["survived"]
    return Round(
        step=int(event["step"]),
        target=_number(event["target"]),
        kept=int(event["kept"]),
        regrown=int(event["regrown"]),
        rescued=int(event["rescued"]),
        survived=None if survived is None else int(survived),
        layers={str(n).removesuffix(".weight"): int(v["regrown"]) for n, v in event.get("layers", {}).items()},
    )


def _check_printed(record: Mapping[str, Any]) -> None:
    """What the template prints or compares without further ado must be there, and of the kind that it takes it for."""
    for group, names in _PRINTED.items():
        for name, kind in names.items():
            value = record[group][name]
            if kind is float:
                _number(value)
            elif not isinstance(value, kind):
                raise TypeError(f"{group}.{name} is {value!r}")
    for split in ("train", "validation", "test"):
        _number(record["data"]["counts"][split])
    for name in ("seed", "settings_hash"):
        record[name]
    record["environment"]["versions"]["spikeprune"]


def _epochs(path: Path) -> tuple[tuple[Epoch, ...], bool]:
    """The lines of metrics.jsonl, and whether their accuracy is of a validation split."""
    with _whole(path):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if not lines:
            raise ValueError("it holds no epoch")
        validated = all(line["val_accuracy"] is not None for line in lines)
        accuracy = "val_accuracy" if validated else "train_accuracy"
        epochs = tuple(
            Epoch(
                str(line["phase"]),
                int(line["epoch"]),
                int(line["step"]),
                _number(line[accuracy]),
                _number(line["train_loss"]),
                None if line["val_loss"] is None else _number(line["val_loss"]),
                _number(line["sparsity"]),
                _number(line["lr"]),
            )
            for line in lines
        )
        if not any(line.phase == "pruned" for line in epochs):
            raise ValueError("it holds no epoch of the pruned run")
    return epochs, validated


def _statistics(path: Path) -> tuple[Statistics | None, Statistics | None, dict[str, str | None]]:
    """Of the dense and the pruned network, and layer -> neuron in the model's order; nothing if there is no file."""
    if not path.is_file():
        return None, None, {}
    with _whole(path):
        content = json.loads(path.read_text(encoding="utf-8"))
        sides = [None if content[side] is None else _network(content[side]) for side in ("dense", "pruned")]
        feeds = {str(name): layer["neuron"] for name, layer in content["pruned"]["layers"].items()}
    return sides[0], sides[1], feeds


def _network(values: Mapping[str, Any]) -> Statistics:
    return Statistics(
        {str(n): Operations(_number(v["acs"]), _number(v["mac_ops"])) for n, v in values["layers"].items()},
        {
            str(name): Neurons(
                _number(v["firing_rate"]),
                _quantiles(v["criticality"]) if "criticality" in v else (),
                _number(v["peak"]) if "peak" in v else 1.0,
            )
            for name, v in values["neurons"].items()
        },
    )


def _quantiles(values: Any) -> tuple[float, ...]:
    if len(values) != len(QUANTILES):
        raise ValueError(f"{len(values)} quantiles, not {len(QUANTILES)}")
    return tuple(_number(value) for value in values)


def _bench(path: Path) -> Bench | None:
    """The measured speed, or nothing if `spikeprune bench` was not asked."""
    if not path.is_file():
        return None
    with _whole(path):
        content = json.loads(path.read_text(encoding="utf-8"))
        timings = tuple(
            Timing(
                int(timing["threads"]),
                {"cpu": "CPU time", "wall": "wall clock"}[timing["clock"]],
                int(row["batch"]),
                str(row["engine"]),
                _number(row["median_ms"]),
                _number(row["images_per_s"]),
                None if row["opponent"] is None else str(row["opponent"]),
            )
            for timing in content["timings"]
            for row in timing["rows"]
        )
        if not timings or min(row.milliseconds for row in timings) <= 0:
            raise ValueError("it holds no times")
        return Bench(
            str(content["cpu"]),
            str(content["isa"]),
            _number(content["multiplies_kept"]),
            int(content["repeats"]),
            _number(content["int16_flipped"]),
            {str(engine): _number(share) for engine, share in (content.get("accuracy") or {}).items()},
            timings,
        )


def _layers(path: Path, feeds: Mapping[str, str | None]) -> tuple[Layer, ...]:
    """Sizes from the masks; the file has them in no particular order, the statistics in the model's."""
    order = {name: place for place, name in enumerate(feeds)}
    found = [
        Layer(name.removesuffix(".weight"), mask.numel(), int(mask.count_nonzero()), "")
        for name, mask in read_safetensors(path).items()
        if mask.dim() > 1  # pruned channels mask normalisation and biases too
    ]
    found.sort(key=lambda layer: (order.get(layer.name, len(order)), layer.name))
    return tuple(Layer(layer.name, layer.weights, layer.alive, feeds.get(layer.name, "")) for layer in found)
