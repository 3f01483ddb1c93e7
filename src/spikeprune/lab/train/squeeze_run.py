"""A run of the method `squeeze`: a trained network is scored, squeezed, scored again, and written down.

A squeeze that is killed leaves the recipe in its folder and nothing half-done; the same command starts it anew.
"""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from spikeprune.core.errors import InvalidValue, UserError
from spikeprune.core.mask import Masks
from spikeprune.data import Dataset, batches
from spikeprune.lab.recipe import Recipe, complete, settings_hash
from spikeprune.lab.recipe.squeeze import squeeze_seed, squeeze_settings
from spikeprune.lab.train.by_class import ClassScores, score_classes
from spikeprune.lab.train.calibration import calibration
from spikeprune.lab.train.device import choose_device, environment, repeatable
from spikeprune.lab.train.done import network_record
from spikeprune.lab.train.folder import RunFolder, read_safetensors
from spikeprune.lab.train.measure import counted, data_record
from spikeprune.lab.train.network import TimedNetwork
from spikeprune.lab.train.parts import load_data, make_network
from spikeprune.lab.train.raster import raster
from spikeprune.lab.train.run import folder_of
from spikeprune.model.prunable import prunable
from spikeprune.record.run import Cost, NetworkRecord, RunRecord, RunSettings
from spikeprune.record.schema import SCHEMA
from spikeprune.record.squeeze import ClassAccuracy, SqueezedLayerRecord, SqueezedNeuronRecord, SqueezeRecord
from spikeprune.record.statistics import QUANTILES, NetworkStatistics, StatisticsRecord
from spikeprune.squeeze.certificate import certify, fingerprint
from spikeprune.squeeze.squeeze import squeeze
from spikeprune.squeeze.table import Squeezed

# Test images that the certificate keeps.
_KEPT = 2


def run_squeeze(recipe: Recipe) -> RunFolder:
    """Carry the recipe out; a finished run is left as it is.

    Returns: the folder, as after every run.
    Raises: UserError for input that is wrong, before anything is written.
    """
    folder = folder_of(recipe)
    if folder.record.is_file():
        folder.open(complete(recipe))
        folder.read_record()
        return folder
    run = _SqueezeRun(recipe, folder)
    folder.open(complete(recipe))
    with folder.locked():
        if not folder.record.is_file():  # another process may have finished it meanwhile
            run.work()
    return folder


@final
class _SqueezeRun:
    """A squeeze in progress. Making one checks all input and writes nothing."""

    def __init__(self, recipe: Recipe, folder: RunFolder) -> None:
        self.recipe, self.folder = recipe, folder
        self.device = choose_device(recipe.device)
        self.data: Dataset = load_data(recipe).to(self.device)
        self.network: TimedNetwork = make_network(recipe, self.data, self.device)
        self.network.model.eval()
        self.masks = None if recipe.squeeze.masks is None else Masks(read_masks(Path(recipe.squeeze.masks)))
        self.settings = squeeze_settings(recipe, self.masks)
        self._check_sparsity()

    def _check_sparsity(self) -> None:
        weights = prunable(self.network.model).values()
        zeros = sum(int((w == 0).sum()) for w in weights) / max(1, sum(w.numel() for w in weights))
        if self.masks is None and self.recipe.budget == "weights" and 0 < self.recipe.sparsity <= zeros:
            raise InvalidValue(
                f"the network has {zeros:.4f} zeros already, so there is nothing to cut at {self.recipe.sparsity:g}; "
                "pass a higher --sparsity, or squeeze a dense network (of a run with a baseline: --network dense)"
            )

    def work(self) -> None:
        """Everything, to the finished record."""
        with repeatable():
            dense_scores = self.score()
            dense, dense_statistics = self.measure(dense_scores, None)
            example = self.example()
            before = self.spikes(example)
            squeezed, seconds, cpu = self.squeeze()
            self.finish(dense, dense_statistics, dense_scores, squeezed, (seconds, cpu), before, example)

    def score(self) -> ClassScores:
        """The test split, once for each network."""
        feed = batches(self.data, "test", self.recipe.batch, device=self.device)
        return score_classes(self.network, feed, len(self.data.classes), self.data.time_first)

    def measure(
        self, scores: ClassScores, masks: Mapping[str, Tensor] | None
    ) -> tuple[NetworkRecord, NetworkStatistics]:
        """What the record says of the network as it is now."""
        counts, statistics = counted(self.network, self.data, self.recipe, self.device, masks)
        return network_record(counts.dense if masks is None else counts.pruned, scores.accuracy), statistics

    def example(self) -> Tensor:
        """The first test images, as the model takes them."""
        x, _ = next(batches(self.data, "test", _KEPT, device=self.device))
        return self.network.fed(x, self.data.time_first)

    def spikes(self, example: Tensor) -> Mapping[str, Tensor]:
        with self.network.one_call(self.data.time_first) as model:
            return fingerprint(model, example, self.network.adapter).spikes

    def squeeze(self) -> tuple[Squeezed, float, float]:
        """Squeezes the network in place; also gives its seconds and its CPU seconds."""
        settings, options = self.settings, self.recipe.squeeze
        images = calibration(self.data, options.images, self.recipe.batch, squeeze_seed(self.recipe), self.device)
        feed = [(self.network.fed(x, self.data.time_first), y) for x, y in images]
        taken = {name: value for name, value in vars(settings).items() if name not in ("images", "progress")}
        began, cpu = time.perf_counter(), time.process_time()
        with self.network.one_call(self.data.time_first) as model:
            found = squeeze(model, feed, images=sum(len(y) for _, y in images), progress=sys.stderr.isatty(), **taken)
        return found, time.perf_counter() - began, time.process_time() - cpu

    def finish(
        self,
        dense: NetworkRecord,
        dense_statistics: NetworkStatistics,
        dense_scores: ClassScores,
        squeezed: Squeezed,
        spent: tuple[float, float],
        before: Mapping[str, Tensor],
        example: Tensor,
    ) -> None:
        """Scores, files and record; the run is finished with the last line."""
        folder, recipe = self.folder, self.recipe
        scores = self.score()
        pruned, statistics = self.measure(scores, squeezed.masks)
        with self.network.one_call(self.data.time_first) as model:
            certificate = certify(model, squeezed.masks, example, self.network.adapter)
        facts = {"certificate": certificate.as_text()}
        folder.save_tensors(folder.model, self.network.model.state_dict(), facts)
        folder.save_tensors(folder.masks, dict(squeezed.masks))
        folder.save_statistics(
            StatisticsRecord(schema=SCHEMA, quantiles=QUANTILES, dense=dense_statistics, pruned=statistics)
        )
        folder.save_certificate(certificate.as_bytes())
        entry = SqueezeRecord(
            images=squeezed.images,
            seed=squeeze_seed(recipe),
            squeezed_accuracy=None,
            tuned_epochs=0,
            seconds=spent[0],
            cpu_seconds=spent[1],
            phases=squeezed.phases,
            layers={
                layer.name: SqueezedLayerRecord(
                    weights=layer.weights, alive=layer.alive, neuron=layer.neuron, rows=layer.rows,
                    error=layer.error, seconds=layer.seconds, note=layer.note,
                )
                for layer in squeezed.layers
            },
            neurons={
                name: SqueezedNeuronRecord(equal=n.equal, kept=n.kept, rate_before=n.rate_before, rate=n.rate)
                for name, n in squeezed.neurons.items()
            },
            classes=tuple(
                ClassAccuracy(name=name, images=count, dense=was, pruned=now)
                for name, count, was, now in zip(
                    self.data.classes, scores.images, dense_scores.right, scores.right, strict=True
                )
            ),
            raster=raster(before, certificate.fingerprint.spikes, recipe.T, _KEPT),
            notes=tuple(squeezed.notes),
        )  # fmt: skip
        folder.save_record(
            RunRecord(
                schema=SCHEMA,
                name=recipe.name,
                settings=RunSettings.read(complete(recipe), "settings"),
                settings_hash=settings_hash(recipe),
                seed=squeeze_seed(recipe),
                environment=environment(self.device, "fp32"),
                data=data_record(self.data),
                dense=dense,
                pruned=pruned,
                sparsity=squeezed.sparsity,
                density=1.0 - squeezed.sparsity,
                rounds=(),
                best_epoch=None,
                cost=Cost(
                    epochs=0,
                    seconds=spent[0],
                    train_macs=0.0,
                    train_macs_effective=0.0,
                    pruning_seconds=spent[0],
                    search_epochs=0.0,
                    search_seconds=spent[0],
                ),
                status="finished",
                squeeze=entry,
            )
        )


def read_masks(path: Path) -> dict[str, Tensor]:
    """The masks of a file. Raises: UserError if it holds something else."""
    masks = read_safetensors(path)
    wrong = next((name for name, mask in masks.items() if mask.dtype is not torch.bool), None)
    if wrong is not None or not masks:
        raise UserError(f"{path} holds no masks (true or false for each weight); give a masks.safetensors file")
    return masks
