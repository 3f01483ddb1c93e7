"""Why runs came out as they did: everything of analysis.json, from the files of a run and its networks on images."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from spikeprune import data as datasets
from spikeprune.core.errors import InvalidValue, UserError
from spikeprune.lab.study import avalanches, compare, mechanism, seeds
from spikeprune.lab.study.features import (
    SeenActivity,
    consistency,
    correlation,
    entropy,
    inverted_min_max,
    mean_of,
    observe,
)
from spikeprune.lab.train.code import NO_CODE, Code, recipe_of
from spikeprune.lab.train.device import choose_device, repeatable
from spikeprune.lab.train.folder import RunFolder, read_safetensors
from spikeprune.lab.train.layers import channel_criticality
from spikeprune.lab.train.parts import load_data, restore
from spikeprune.record.analysis import (
    SCHEMA,
    AgainstRun,
    AnalysisRecord,
    ClassConsistency,
    Consistency,
    CriticalityStates,
    Importance,
    ImportanceOfDifference,
    LayerConsistency,
    LayerEntropy,
    Mechanism,
    PooledArm,
    Survival,
)
from spikeprune.record.epoch import read_epochs
from spikeprune.record.round import Round
from spikeprune.record.whole import write_whole

FEATURES = ("rate", "inverted-min-max")
_STATES = {
    "before_pruning": "the dense network of this run, dense.safetensors, at the end of its own training",
    "after_pruning": "the final network with its regrown weights set to 0: what pruning alone has left of it",
    "after_regeneration": "the final network, model.safetensors",
}


def analyze(
    runs: str | Path | Sequence[str | Path],
    against: Sequence[str | Path] = (),
    *,
    features: str = "rate",
    images: int = 2000,
    root: str | None = None,
    code: Code = NO_CODE,
) -> AnalysisRecord:
    """Analyse finished runs and write `analysis.json` into the folder of each of `runs`.

    Args:
        runs: one run, or several that differ in the seed alone.
        against: other finished runs, such as those without regrowth at the same sparsity. A single run is compared
            with each of them; several runs are paired with them by seed.
        features: "rate", or "inverted-min-max" as in the authors' code.
        images: how many images of the training split, and of the test split, are used (the first ones).
        root: where the data lies now, if not where the run found it.
        code: which user code the analysis may run, and what replaces the code that the folders name.
    Returns: the content of the first run's analysis.json; what does not exist is None. Its `seeds` are means and
        spreads over several runs, None for one.
    Raises: UserError if a folder is no finished run, or InvalidValue for what cannot be compared.
    """
    if features not in FEATURES:
        raise InvalidValue(f"--features must be {' or '.join(FEATURES)}, got {features!r}; rate is spikes over (T H W)")
    if images < 1:
        raise InvalidValue(f"--images must be at least 1, got {images}; 2000 takes a few seconds on small networks")
    paths = [runs] if isinstance(runs, str | Path) else runs
    mine, others = ([_Analysed(path, root, code) for path in side] for side in (paths, against))
    _check_data([*mine, *others])
    name, arms = _arms(mine, others)
    parts = {run: run.parts(features, images) for run in [*mine, *others]}
    pooled = _over_seeds(mine, name, arms, parts) if len(mine) > 1 else None
    found = {run: _of_run(run, others, parts, pooled, features, images, every=len(mine) == 1) for run in mine}
    for run, record in found.items():
        write_whole(run.folder.path / "analysis.json", record.as_json(indent=1).encode() + b"\n")
    return found[mine[0]]


def _of_run(
    run: "_Analysed",
    others: Sequence["_Analysed"],
    parts: Mapping["_Analysed", Mechanism],
    pooled: PooledArm | None,
    features: str,
    images: int,
    *,
    every: bool,
) -> AnalysisRecord:
    """The record of one run's analysis.

    The run is compared with every other run if `every`, else with runs of its seed.
    """
    partners = [other for other in others if every or other.seed == run.seed]
    against = [
        AgainstRun.read(
            {
                "run": other.folder.path.name,
                "method": other.recipe.method,
                "seed": other.seed,
                "sparsity": other.record.sparsity,
                **parts[other],
                "importance_of_difference": _importance_between(run, other),
            }
        )
        for other in partners
    ]
    return AnalysisRecord.read(
        {
            "schema": SCHEMA,
            "run": run.folder.path.name,
            "method": run.recipe.method,
            "seed": run.seed,
            "features": features,
            "images": images,
            **parts[run],
            "against": against,
            "seeds": pooled,
        }
    )


def _check_data(runs: Sequence["_Analysed"]) -> None:
    first = runs[0]
    for other in runs[1:]:
        if other.recipe.data.name != first.recipe.data.name:
            raise InvalidValue(
                f"{other.folder.path} learned from {other.recipe.data.name}, {first.folder.path} from "
                f"{first.recipe.data.name}; analyze takes runs on the same data"
            )


def _arms(mine: Sequence["_Analysed"], others: Sequence["_Analysed"]) -> tuple[str, dict[str, list["_Analysed"]]]:
    """The name of the first arm, and the runs after `--against` by the name of their arm.

    Names of arms of one method tell the settings in which they differ.

    Raises: InvalidValue if several runs are not of one arm or a seed comes twice, or an arm has no seed in common.
    """
    if len(mine) == 1:
        return mine[0].recipe.method, {}
    if len(compare.grouped([run.compared for run in mine])) > 1:
        raise InvalidValue(
            "several runs before --against must differ in the seed alone; put those of another arm after --against"
        )
    by_path = {run.compared.path: run for run in others}
    own, found = mine[0].recipe.method, dict[str, list[_Analysed]]()
    every = [run.compared for run in mine if run.compared.path not in by_path] + [run.compared for run in others]
    for label, group in compare.grouped(every).items():
        theirs = [by_path[run.path] for run in group if run.path in by_path]
        if len(theirs) < len(group):
            own = label
        if theirs:
            found[label if len(theirs) == len(group) else f"{label}, other runs"] = theirs
    for label, group in {"the first arm": mine, **found}.items():
        seeds = [run.seed for run in group]
        if len(set(seeds)) < len(seeds):
            raise InvalidValue(f"two runs of {label} have the same seed ({seeds}); give one run a seed")
        if not set(seeds) & {run.seed for run in mine}:
            raise InvalidValue(f"no run of {label} has a seed of the runs before --against; runs are paired by seed")
    return own, found


def _over_seeds(
    mine: Sequence["_Analysed"],
    name: str,
    arms: Mapping[str, Sequence["_Analysed"]],
    parts: Mapping["_Analysed", Mechanism],
) -> PooledArm:
    """Means and spreads of the runs and of each arm that they are set against, and the differences paired by seed."""
    by_seed = {run.seed: run for run in mine}

    def pooled(label: str, runs: Sequence["_Analysed"], more: Mapping[str, Any]) -> PooledArm:
        runs = sorted(runs, key=lambda run: run.seed)
        named = {"arm": label, "seeds": [run.seed for run in runs], "runs": [run.folder.path.name for run in runs]}
        return PooledArm.read({**named, **Mechanism.read(seeds.over_seeds([parts[run] for run in runs])), **more})

    def against(label: str, group: Sequence["_Analysed"]) -> PooledArm:
        group = sorted(group, key=lambda run: run.seed)
        between = [_importance_between(by_seed[run.seed], run) for run in group if run.seed in by_seed]
        difference = seeds.differences({run.seed: parts[run] for run in mine}, {run.seed: parts[run] for run in group})
        more = {"importance_of_difference": seeds.over_seeds(between), "difference": difference}
        return pooled(label, group, more)

    others = [against(label, group) for label, group in arms.items()]
    return pooled(name, mine, {"against": others})


def _importance_between(run: "_Analysed", other: "_Analysed") -> ImportanceOfDifference:
    return mechanism.importance_between(run.model, run.masks, other.model, other.masks)


@final
class _Analysed:
    """One finished run and what its files tell."""

    def __init__(self, path: str | Path, root: str | None, code: Code):
        self.folder = RunFolder.existing(path)
        self.record = self.folder.read_record()
        if self.record.squeeze is not None and not self.folder.metrics.is_file():
            raise UserError(
                f"{path} trained no epoch, and analyze is about training; its report shows what the squeeze did"
            )
        self.recipe = recipe_of(self.folder.path, root, code)
        self.root = root
        self.model = read_safetensors(self.folder.model)
        self.masks = self.folder.read_masks(self.record)
        there = self.folder.regrown.is_file()
        self.regrown = read_safetensors(self.folder.regrown) if there else None
        self.seed = self.record.seed
        self.compared = compare.ComparedRun(self.folder.path, self.record, self.recipe.method, self.recipe.sparsity)

    def parts(self, features: str, images: int) -> Mechanism:
        """All measured effects of regrowth in this run, as analysis.json stores them."""
        data, device = load_data(self.recipe), choose_device(self.recipe.device)
        data = data.to(device)
        rounds = self.record.rounds
        with repeatable(self.record.environment.threads):
            seen = self._states(data, device, images)
            train = self._observe(data, device, images, "train", None)
        test = seen["after_regeneration"][0]
        epochs = read_epochs(self.folder.metrics)
        states = {
            name: dataclasses.replace(
                avalanches.summary(observed.activity),
                layers=tuple(layers),
                mean_entropy=mean_of(bits for _, bits in entropies),
            )
            for name, (observed, layers, entropies) in seen.items()
        }
        return Mechanism(
            accuracy=self.record.accuracy,
            survival=self._survival(rounds),
            consistency=_consistency(train, test, len(data.classes), features),
            importance=self._importance(),
            overfitting=mechanism.overfitting(epochs, rounds[-1].step if rounds else None),
            criticality=CriticalityStates(
                states=_STATES,
                limits=avalanches.LIMITS,
                before_pruning=states.get("before_pruning"),
                after_pruning=states.get("after_pruning"),
                after_regeneration=states.get("after_regeneration"),
            ),
        )

    def _survival(self, rounds: Sequence[Round]) -> Survival | None:
        if not rounds:
            return None
        regrown = None if self.regrown is None else sum(int(mask.sum()) for mask in self.regrown.values())
        prunable, alive = self.record.dense.alive, self.record.pruned.alive
        start = prunable if self.recipe.start == "dense" else rounds[0].kept
        return mechanism.survival(rounds, start, regrown, alive)

    def _importance(self) -> Importance | None:
        if self.regrown is None:
            return None
        return mechanism.importance_within(self.model, self.masks, self.regrown)

    def _states(self, data: datasets.Dataset, device: torch.device, images: int) -> dict[str, "_Look"]:
        """Activity, and entropy beside criticality, on test images, for each state of the network that has files."""
        cut: dict[str, Tensor] | None = None
        if self.regrown is not None and any(bool(mask.any()) for mask in self.regrown.values()):
            cut = {name: self.model[name] * ~mask for name, mask in self.regrown.items()}
        found: dict[str, _Look] = {}
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
    ) -> "_Look":
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
        layers: list[LayerEntropy] = []
        entropies: list[tuple[str, float]] = []
        for name, features in seen.features.items():
            bits = entropy(features)
            score = scores.get(name)
            paired = score is not None and len(score) == len(bits)
            entropies.append((name, float(bits.mean())))
            layers.append(
                LayerEntropy(
                    neuron=name,
                    entropy=entropies[-1][1],
                    criticality=None if score is None else float(score.double().mean()),
                    correlation=correlation(bits, score.cpu()) if paired and score is not None else None,
                )
            )
        return seen, layers, entropies

    def _observe(
        self, data: datasets.Dataset, device: torch.device, images: int, split: Any, file: Path | None
    ) -> SeenActivity:
        return observe(restore(self.folder, self.recipe, data, device, file), data, split, images, self.recipe.batch)


def _consistency(train: SeenActivity, test: SeenActivity, classes: int, features: str) -> Consistency:
    layers: list[LayerConsistency] = []
    found: list[ClassConsistency] = []
    for name in train.features:
        sides = [(train.features[name], train.labels), (test.features[name], test.labels)]
        left_out = 0
        if features == "inverted-min-max":
            turned = [(*inverted_min_max(x), labels) for x, labels in sides]
            left_out = sum(int((~there).sum()) for _, there, _ in turned)
            sides = [(x, labels[there]) for x, there, labels in turned]
        (a, a_labels), (b, b_labels) = sides
        figures: dict[str, object] = {}
        if len(a) and len(b):
            found.append(consistency(a, a_labels, b, b_labels, classes))
            figures = dict(found[-1])
        layers.append(LayerConsistency.read({"neuron": name, "images_left_out": left_out, **figures}))
    means = ("mean_variance_train", "mean_variance_test", "mean_cosine", "mean_cosine_centred")
    return Consistency.read({"layers": layers, **{name: mean_of(getattr(f, name) for f in found) for name in means}})


_Look = tuple[SeenActivity, list[LayerEntropy], list[tuple[str, float]]]
