"""Why a run came out as it did: everything of analysis.json, from the files of the run and its networks on images."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from spikeprune.core.errors import InvalidValue, UserError
from spikeprune.study import avalanches, mechanism
from spikeprune.study.features import (
    Observation,
    consistency,
    correlation,
    entropy,
    inverted_min_max,
    mean_of,
    observe,
)
from spikeprune.train import data as datasets
from spikeprune.train.device import choose_device, repeatable
from spikeprune.train.folder import RunFolder, read_safetensors, write_whole
from spikeprune.train.recipe import load
from spikeprune.train.run import load_data, restore
from spikeprune.train.statistics import channel_criticality

SCHEMA = 1
FEATURES = ("rate", "inverted-min-max")
_STATES = {
    "before_pruning": "the dense network of this run, dense.safetensors, at the end of its own training",
    "after_pruning": "the final network with its regrown weights set to 0: what pruning alone has left of it",
    "after_regeneration": "the final network, model.safetensors",
}


def analyze(
    path: str | Path,
    against: Sequence[str | Path] = (),
    *,
    features: str = "rate",
    images: int = 2000,
    root: str | None = None,
) -> dict[str, Any]:
    """Analyse a finished run and write `analysis.json` into its folder.

    Args:
        against: other finished runs, such as one without regrowth of the same seed and sparsity.
        features: "rate", or "inverted-min-max" as in the authors' code.
        images: of the training and of the test split, the first ones.
        root: where the data lies now, if not where the run found it.
    Returns: the content of analysis.json; what does not exist is None.
    Raises: UserError if a folder is no finished run, or InvalidValue for what cannot be compared.
    """
    if features not in FEATURES:
        raise InvalidValue(f"--features must be {' or '.join(FEATURES)}, got {features!r}; rate is spikes over (T H W)")
    if images < 1:
        raise InvalidValue(f"--images must be at least 1, got {images}; 2000 takes a few seconds on small networks")
    mine, others = _Analysed(path, root), [_Analysed(other, root) for other in against]
    for other in others:
        if other.recipe.data.name != mine.recipe.data.name:
            raise InvalidValue(
                f"{other.folder.path} learned from {other.recipe.data.name}, {mine.folder.path} from "
                f"{mine.recipe.data.name}; --against takes runs on the same data"
            )
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "run": mine.folder.path.name,
        "features": features,
        "images": images,
        **mine.parts(features, images),
        "against": [
            {
                "run": other.folder.path.name,
                "method": other.recipe.method,
                "seed": other.recipe.seed,
                "sparsity": other.record["sparsity"],
                **other.parts(features, images),
                "importance_of_difference": mechanism.importance_between(
                    mine.model, mine.masks, other.model, other.masks
                ),
            }
            for other in others
        ],
    }
    write_whole(mine.folder.path / "analysis.json", json.dumps(found, indent=1, allow_nan=False).encode() + b"\n")
    return found


@final
class _Analysed:
    """One finished run and what its files tell."""

    def __init__(self, path: str | Path, root: str | None):
        self.folder = RunFolder.existing(path)
        self.record = self.folder.read_record()
        self.recipe = load(str(self.folder.recipe), [] if root is None else ["--data.root", root])
        self.root = root
        self.model = read_safetensors(self.folder.model)
        self.masks = read_safetensors(self.folder.masks)
        there = self.folder.regrown.is_file()
        self.regrown = read_safetensors(self.folder.regrown) if there else None

    def parts(self, features: str, images: int) -> dict[str, Any]:
        """The keys that contract and page name."""
        data, device = load_data(self.recipe), choose_device(self.recipe.device)
        data = data.to(device)
        rounds = self.record["rounds"]
        with repeatable(self.record["environment"]["threads"]):
            seen = self._states(data, device, images)
            train = self._observe(data, device, images, "train", None)
        test, _ = seen["after_regeneration"]
        return {
            "survival": self._survival(rounds),
            "consistency": _consistency(train, test, len(data.classes), features),
            "importance": self._importance(),
            "overfitting": mechanism.overfitting(_metrics(self.folder), rounds[-1]["step"] if rounds else None),
            "criticality": {
                "states": _STATES,
                "limits": avalanches.LIMITS,
                **{name: None for name in _STATES if name not in seen},
                **{name: avalanches.summary(o.activity) | {"layers": layers} for name, (o, layers) in seen.items()},
            },
        }

    def _survival(self, rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
        if not rounds:
            return None
        regrown = None if self.regrown is None else sum(int(mask.sum()) for mask in self.regrown.values())
        prunable, alive = self.record["dense"]["alive"], self.record["pruned"]["alive"]
        start = prunable if self.recipe.start == "dense" else rounds[0]["kept"]
        return mechanism.survival(rounds, start, regrown, alive)

    def _importance(self) -> dict[str, Any] | None:
        if self.regrown is None:
            return None
        return mechanism.importance_within(self.model, self.masks, self.regrown)

    def _states(self, data: datasets.Dataset, device: torch.device, images: int) -> dict[str, tuple[Observation, Any]]:
        """Those of `_STATES` that this run has, on test images: what was seen, and entropy against criticality."""
        cut: dict[str, Tensor] | None = None
        if self.regrown is not None and any(bool(mask.any()) for mask in self.regrown.values()):
            cut = {name: self.model[name] * ~mask for name, mask in self.regrown.items()}
        found = {}
        if self.folder.dense.is_file():
            found["before_pruning"] = self._look(data, device, images, self.folder.dense, None)
        if cut is not None:
            found["after_pruning"] = self._look(data, device, images, None, cut)
        found["after_regeneration"] = self._look(data, device, images, None, None)
        return found

    def _look(
        self,
        data: datasets.Dataset,
        device: torch.device,
        images: int,
        file: Path | None,
        changed: Mapping[str, Tensor] | None,
    ) -> tuple[Observation, list[dict[str, Any]]]:
        network = restore(self.folder, self.recipe, data, device, file)
        with torch.no_grad():
            parameters = dict(network.model.named_parameters())
            for name, value in (changed or {}).items():
                parameters[name].copy_(value)
        seen = observe(network, data, "test", images, self.recipe.batch)
        few = [
            network.fed(x, data.time_first)
            for (x, _), _ in zip(
                datasets.batches(data, "test", self.recipe.batch, device=device),
                range(0, images, self.recipe.batch),
                strict=False,
            )
        ]
        with network.one_call(data.time_first):
            _, scores = channel_criticality(network, few)
        layers: list[dict[str, Any]] = []
        for name, features in seen.features.items():
            bits = entropy(features)
            score = scores.get(name)
            paired = score is not None and len(score) == len(bits)
            layers.append(
                {
                    "neuron": name,
                    "entropy": float(bits.mean()),
                    "criticality": None if score is None else float(score.double().mean()),
                    "correlation": correlation(bits, score.cpu()) if paired and score is not None else None,
                }
            )
        return seen, layers

    def _observe(
        self, data: datasets.Dataset, device: torch.device, images: int, split: Any, file: Path | None
    ) -> Observation:
        return observe(restore(self.folder, self.recipe, data, device, file), data, split, images, self.recipe.batch)


def _consistency(train: Observation, test: Observation, classes: int, features: str) -> dict[str, Any]:
    layers = []
    for name in train.features:
        sides = [(train.features[name], train.labels), (test.features[name], test.labels)]
        left_out = 0
        if features == "inverted-min-max":
            turned = [(*inverted_min_max(x), labels) for x, labels in sides]
            left_out = sum(int((~there).sum()) for _, there, _ in turned)
            sides = [(x, labels[there]) for x, there, labels in turned]
        (a, a_labels), (b, b_labels) = sides
        found = consistency(a, a_labels, b, b_labels, classes) if len(a) and len(b) else {}
        layers.append({"neuron": name, "images_left_out": left_out, **found})
    means = ("mean_variance_train", "mean_variance_test", "mean_cosine", "mean_cosine_centred")
    return {"layers": layers, **{name: mean_of(layer.get(name) for layer in layers) for name in means}}


def _metrics(folder: RunFolder) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in folder.metrics.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{folder.metrics} cannot be read; restore it or make the run again") from error
