"""A run of the method `squeeze`: a dense network, `sp.squeeze`, perhaps training with its zeros held, and the record.

Training before and after the squeeze continues from its last checkpoint. A squeeze that is killed leaves nothing
half-done; the same command starts the squeeze anew.
"""

import dataclasses
import sys
import time
from pathlib import Path
from typing import cast, final

import torch
from torch import Tensor

from spikeprune.core.errors import InvalidValue, UserError
from spikeprune.core.mask import Masks
from spikeprune.data import batches
from spikeprune.lab.recipe import Recipe, complete
from spikeprune.lab.recipe.job import DataFacts, resolve
from spikeprune.lab.recipe.squeeze import squeeze_seed, squeeze_settings
from spikeprune.lab.train.by_class import ClassScores, score_classes
from spikeprune.lab.train.calibration import calibration
from spikeprune.lab.train.checkpointed import CheckpointedTraining, settle
from spikeprune.lab.train.device import choose_device, choose_precision, environment, repeatable
from spikeprune.lab.train.done import network_record
from spikeprune.lab.train.folder import RunFolder, carry_out, read_safetensors
from spikeprune.lab.train.loop import Phase, Setting
from spikeprune.lab.train.measure import counted, data_record
from spikeprune.lab.train.network import TimedNetwork
from spikeprune.lab.train.parts import load_data, make_network, set_layout
from spikeprune.lab.train.progress import OnEpoch, OnStage, ProgressBar
from spikeprune.lab.train.raster import raster
from spikeprune.lab.train.squeeze_done import (
    NOTHING_DONE,
    SqueezeDone,
    Trained,
    class_records,
    cost_of_squeeze,
    squeeze_record,
)
from spikeprune.model.prunable import prunable
from spikeprune.prune.once import hold
from spikeprune.record.checkpoint import LastCheckpoint, SqueezeState
from spikeprune.record.run import RunRecord, RunSettings, Stages
from spikeprune.record.schema import SCHEMA
from spikeprune.record.statistics import QUANTILES, StatisticsRecord
from spikeprune.runtime.fuse import fuse
from spikeprune.squeeze.certificate import certify, fingerprint
from spikeprune.squeeze.squeeze import squeeze

# Test images that the certificate keeps.
KEPT = 2


def run_squeeze(recipe: Recipe, on_epoch: OnEpoch | None = None, on_stage: OnStage | None = None) -> RunFolder:
    """Carry the recipe out; a finished run is left as it is. `on_epoch` and `on_stage` are those of `run`.

    Returns: the folder, as after every run.
    Raises: UserError for input that is wrong, before anything is written.
    """
    return carry_out(recipe, lambda folder: _SqueezeRun(recipe, folder, on_epoch, on_stage))


@final
class _SqueezeRun:
    """A run in progress. Making one checks all input and writes nothing."""

    def __init__(self, recipe: Recipe, folder: RunFolder, on_epoch: OnEpoch | None, on_stage: OnStage | None) -> None:
        self.on_epoch = on_epoch
        self.stage = ProgressBar(0, 0, None, on_stage).stage
        self.recipe, self.folder = recipe, folder
        device = choose_device(recipe.device)
        data = load_data(recipe)
        facts = DataFacts(data.shape, len(data.classes), len(data.train))
        job = resolve(recipe, facts, device, choose_precision(recipe.precision, device))
        self.setting = Setting(job, data.to(device))
        self.training = CheckpointedTraining(folder, self.setting)
        self.masks = None if recipe.squeeze.masks is None else Masks(read_masks(Path(recipe.squeeze.masks)))
        self.settings = squeeze_settings(recipe, self.masks)
        network = make_network(recipe, self.setting.data, device)
        if recipe.weights is not None:
            self._check_sparsity(network)

    def _check_sparsity(self, network: TimedNetwork) -> None:
        if self.recipe.squeeze.tolerance is not None:
            return
        weights = prunable(network.model).values()
        zeros = sum(int((w == 0).sum()) for w in weights) / max(1, sum(w.numel() for w in weights))
        if self.masks is None and self.recipe.budget == "weights" and 0 < self.recipe.sparsity <= zeros:
            raise InvalidValue(
                f"the network has {zeros:.4f} zeros already, so there is nothing to cut at {self.recipe.sparsity:g}; "
                "pass a higher --sparsity, or squeeze a dense network (of a run with a baseline: --network dense)"
            )

    # ---- the whole ------------------------------------------------------------------------------------------------

    def work(self) -> None:
        """All of it, from the last checkpoint on, to the finished record."""
        state = self.training.resume()
        if state is not None:
            job = dataclasses.replace(self.setting.job, precision=state["precision"])
            self.setting = dataclasses.replace(self.setting, job=job)
        plan = self.setting.plan
        steps = {name: plan.of(name).steps for name in ("pretrain", "pruned")}
        with repeatable(None if state is None else state["threads"]):
            if state is not None and state["phase"]["name"] == "pruned":
                done = SqueezeDone.from_state(cast("SqueezeState", state["done"]))
                network = make_network(self.recipe, self.setting.data, self.setting.device)
            else:
                network, trained = self.dense(state, steps["pretrain"])
                done, state = self.squeeze(network, trained), None
            if steps["pruned"]:
                phase = self.tune(network, done, state, steps["pruned"])
                self.finish(network, done, phase)
            else:
                self.finish(network, done, None)

    def dense(self, state: LastCheckpoint | None, steps: int) -> tuple[TimedNetwork, Trained]:
        """The dense network: from the recipe's weights, or trained here; then its weights are kept."""
        network = make_network(self.recipe, self.setting.data, self.setting.device)
        network.model.eval()
        if self.recipe.weights is not None:
            return network, Trained(0, 0.0, 0.0)
        setting = dataclasses.replace(self.setting, job=self.setting.job.of("pretrain"))
        self._fuse(network)
        phase = self.training.begin(Phase("pretrain", setting, network, None), state)
        with ProgressBar(steps, phase.step, self.on_epoch) as bar:
            self.training.train(phase, NOTHING_DONE, setting.plan.epochs, bar)
        settle(self.folder, phase)
        network.model.eval()
        self.folder.save_tensors(self.folder.dense, network.model.state_dict())
        return network, Trained(setting.plan.epochs, phase.seconds, phase.samples)

    def _fuse(self, network: TimedNetwork) -> None:
        if self.recipe.fuse:
            fuse(network.model)
            if self.setting.device.type == "cpu":  # the layout that the fused kernels are fastest in
                set_layout(network.model, torch.channels_last)

    def squeeze(self, network: TimedNetwork, trained: Trained) -> SqueezeDone:
        """Scores the network, squeezes it in place, and scores it again."""
        data, recipe = self.setting.data, self.recipe
        dense_scores = self.score(network)
        counts, statistics = counted(network, data, recipe, self.setting.device, None)
        before = self.spikes(network)
        images = calibration(data, recipe.squeeze.images, recipe.batch, squeeze_seed(recipe), self.setting.device)
        feed = [(network.fed(x, data.time_first), y) for x, y in images]
        taken = {name: value for name, value in vars(self.settings).items() if name not in ("images", "progress")}
        self.stage(f"squeezing with {recipe.squeeze.images:,} images")
        began, cpu = time.perf_counter(), time.process_time()
        with network.one_call(data.time_first) as model:
            found = squeeze(model, feed, images=sum(len(y) for _, y in images), progress=sys.stderr.isatty(), **taken)
        spent = time.perf_counter() - began, time.process_time() - cpu
        return SqueezeDone(
            trained=trained,
            dense=network_record(counts.dense, dense_scores.accuracy),
            statistics=statistics,
            dense_scores=dense_scores,
            scores=self.score(network),
            before=before,
            masks=dict(found.masks),
            entry=squeeze_record(found, squeeze_seed(recipe), spent),
        )

    def tune(self, network: TimedNetwork, done: SqueezeDone, state: LastCheckpoint | None, steps: int) -> Phase:
        """Trains with the zeros held, on labels or on the dense network's outputs."""
        setting = dataclasses.replace(self.setting, job=self.setting.job.of("pruned"))
        pruner = hold(network.model, Masks(done.masks))
        teacher = self._teacher() if self.recipe.squeeze.targets == "dense" else None
        self._fuse(network)
        phase = Phase("pruned", setting, network, pruner, done.trained.epochs, pruner.sparsity, teacher)
        self.training.begin(phase, state)
        if state is None:
            self.training.save(phase, done)
        with ProgressBar(steps, phase.step, self.on_epoch) as bar:
            self.training.train(phase, done, setting.plan.epochs, bar)
        pruner.finish()
        settle(self.folder, phase)
        network.model.eval()
        return phase

    def _teacher(self) -> TimedNetwork:
        network = make_network(self.recipe, self.setting.data, self.setting.device)
        if self.recipe.weights is None:
            network.model.load_state_dict(read_safetensors(self.folder.dense))
        network.model.eval()
        return network

    # ---- measuring and writing ------------------------------------------------------------------------------------

    def score(self, network: TimedNetwork) -> ClassScores:
        """The test split, once for each network."""
        data = self.setting.data
        self.stage(f"scoring {len(data.test):,} test images")
        feed = batches(data, "test", self.recipe.batch, device=self.setting.device)
        return score_classes(network, feed, len(data.classes), data.time_first)

    def example(self, network: TimedNetwork) -> Tensor:
        """The first test images, as the model takes them."""
        x, _ = next(batches(self.setting.data, "test", KEPT, device=self.setting.device))
        return network.fed(x, self.setting.data.time_first)

    def spikes(self, network: TimedNetwork) -> dict[str, Tensor]:
        with network.one_call(self.setting.data.time_first) as model:
            return dict(fingerprint(model, self.example(network), network.adapter).spikes)

    def finish(self, network: TimedNetwork, done: SqueezeDone, phase: Phase | None) -> None:
        """Files and record; the run is finished with the last line but one."""
        folder, recipe, data = self.folder, self.recipe, self.setting.data
        masks = Masks(done.masks)
        scores = done.scores if phase is None else self.score(network)
        counts, statistics = counted(network, data, recipe, self.setting.device, masks)
        with network.one_call(data.time_first) as model:
            certificate = certify(model, masks, self.example(network), network.adapter)
        folder.save_tensors(folder.model, network.model.state_dict(), {"certificate": certificate.as_text()})
        folder.save_tensors(folder.masks, done.masks)
        folder.save_statistics(
            StatisticsRecord(schema=SCHEMA, quantiles=QUANTILES, dense=done.statistics, pruned=statistics)
        )
        folder.save_certificate(certificate.as_bytes())
        entry = dataclasses.replace(
            done.entry,
            tuned_epochs=0 if phase is None else phase.epoch,
            classes=class_records(data.classes, done.dense_scores, scores),
            raster=raster(done.before, certificate.fingerprint.spikes, recipe.T, min(KEPT, len(data.test))),
        )
        stages = Stages(pretrained=done.dense_scores.accuracy, pruned=done.scores.accuracy, finetuned=scores.accuracy)
        folder.save_record(
            RunRecord(
                schema=SCHEMA,
                name=recipe.name,
                settings=RunSettings.read(complete(recipe) | {"T": network.ran or recipe.T}, "settings"),
                settings_hash=self.setting.job.hash,
                seed=squeeze_seed(recipe),
                environment=environment(self.setting.device, self.setting.precision if phase else "fp32"),
                data=data_record(data),
                dense=done.dense,
                pruned=network_record(counts.pruned, scores.accuracy),
                sparsity=masks.sparsity,
                density=1.0 - masks.sparsity,
                rounds=(),
                best_epoch=None if phase is None or phase.best is None else phase.first + phase.best["epoch"],
                cost=cost_of_squeeze(self.setting.job, done, phase, counts),
                status="finished",
                channels=None,
                stages=None if phase is None else stages,
                squeeze=entry,
            )
        )
        folder.drop_older_checkpoints()


def read_masks(path: Path) -> dict[str, Tensor]:
    """The masks of a file. Raises: UserError if it holds something else."""
    masks = read_safetensors(path)
    wrong = next((name for name, mask in masks.items() if mask.dtype is not torch.bool), None)
    if wrong is not None or not masks:
        raise UserError(f"{path} holds no masks (true or false for each weight); give a masks.safetensors file")
    return masks
