"""One run from recipe to run folder: the dense baseline, the pruned network, their scores and counts, the record.

A run killed at any moment and started again by the same command ends with the same masks and weights, bit for bit:
all that the rest of the run depends on is in the last checkpoint.
"""

import dataclasses
import importlib.util
from collections.abc import Mapping
from typing import cast, final

import torch
from torch import Tensor

from spikeprune.core.errors import InvalidValue, MissingDependency, RunFailed
from spikeprune.count.counts import Counts
from spikeprune.data.batches import batches
from spikeprune.lab.recipe import Recipe, complete
from spikeprune.lab.recipe.job import DataFacts, PhaseName, resolve
from spikeprune.lab.recipe.squeeze_settings import SQUEEZE
from spikeprune.lab.train.checkpointed import CheckpointedTraining, settle
from spikeprune.lab.train.cost import cost_of_one, cost_of_two
from spikeprune.lab.train.device import choose_device, choose_precision, environment, repeatable
from spikeprune.lab.train.done import CutPhase, DensePhase, PhasesDone, network_record, scored_classes
from spikeprune.lab.train.folder import RunFolder, carry_out, read_safetensors
from spikeprune.lab.train.loop import Phase, Setting
from spikeprune.lab.train.measure import counted, data_record, score_test
from spikeprune.lab.train.network import TimedNetwork
from spikeprune.lab.train.parts import load_data, make_network, make_pruner, set_layout
from spikeprune.lab.train.progress import OnEpoch, OnStage, ProgressBar
from spikeprune.lab.train.raster import save_spikes
from spikeprune.lab.train.score import Score
from spikeprune.lab.train.structured import Pruned, cut_out, example_of, latencies, prune_once
from spikeprune.lab.train.together import Together
from spikeprune.record.checkpoint import PhasesState
from spikeprune.record.run import ChannelsRecord, ClassRecord, Latency, RunRecord, RunSettings, Stages
from spikeprune.record.schema import SCHEMA
from spikeprune.record.statistics import QUANTILES, NetworkStatistics, StatisticsRecord
from spikeprune.runtime.fuse import fuse, unfuse
from spikeprune.shrink.plan import ChannelPlan


def run(
    recipe: Recipe,
    on_epoch: OnEpoch | None = None,
    on_stage: OnStage | None = None,
    together: Together | None = None,
) -> RunFolder:
    """Carry the recipe out, or what is left of it; a finished run is left as it is.

    Args:
        on_epoch: hears each epoch as it ends: its line of metrics.jsonl, and how many epochs there are in all.
        on_stage: hears what a run does between epochs, such as "scoring 10,000 test images", where stderr is no
            terminal; on a terminal the progress bar says it.
        together: the processes that train this one network; each calls `run`.
    Returns: the folder with `record.json` and `model.safetensors`.
    Raises: UserError for input that is wrong, before anything is written; RunFailed if the loss is not a number.
    """
    if recipe.method == SQUEEZE:
        from spikeprune.lab.train.squeeze_run import run_squeeze

        if together is not None:
            raise InvalidValue("method squeeze trains no network, so it runs in one process; start it without torchrun")
        return run_squeeze(recipe, on_epoch, on_stage)
    return carry_out(recipe, lambda folder: _RunInProgress(recipe, folder, on_epoch, on_stage, together))


@final
class _RunInProgress:
    """A run in progress. Making one checks all input and writes nothing."""

    def __init__(
        self,
        recipe: Recipe,
        folder: RunFolder,
        on_epoch: OnEpoch | None,
        on_stage: OnStage | None,
        together: Together | None,
    ):
        self.recipe = recipe
        self.on_epoch, self.on_stage = on_epoch, on_stage
        self.bar = ProgressBar(0, 0, on_epoch, on_stage)
        self.folder = folder
        device = choose_device(recipe.device)
        if recipe.tensorboard and importlib.util.find_spec("tensorboard") is None:
            raise MissingDependency("--tensorboard needs TensorBoard; try: pip install 'spikeprune[tensorboard]'")
        data = load_data(recipe)
        facts = DataFacts(data.shape, len(data.classes), len(data.train))
        job = resolve(recipe, facts, device, choose_precision(recipe.precision, device))
        self.setting = Setting(job, data.to(device), together)
        self.hash, self.phases = job.hash, job.phases
        self.training = CheckpointedTraining(folder, self.setting)
        self.check_model()

    def make_phase(self, name: PhaseName, done: PhasesDone) -> Phase:
        """A phase from the initial weights, or from those of the network that was shrunk before it."""
        setting = dataclasses.replace(self.setting, job=self.setting.job.of(name))
        network = make_network(self.recipe, setting.data, setting.device)
        cut = done.pretrain if name == "pruned" else None
        pruner = None
        if cut is not None:
            ChannelPlan.from_json(cut.plan).apply(network.model)
            if cut.model is not None:  # a checkpoint of this phase has the weights instead
                network.model.load_state_dict(dict(cut.model))
                done.pretrain = dataclasses.replace(cut, model=None)
            network.model.to(setting.device)
        elif name == "pruned":
            pruner = make_pruner(setting.job, network.model)
        if self.recipe.fuse:
            fuse(network.model)
            if setting.device.type == "cpu":  # the layout that the fused kernels are fastest in
                set_layout(network.model, torch.channels_last)
        first = 0 if cut is None else self.recipe.epochs - setting.plan.epochs
        return Phase(name, setting, network, pruner, first, 0.0 if cut is None else cut.pruned.sparsity)

    def check_model(self) -> None:
        """A model that cannot be pruned, or a weight whose neuron cannot be told, shows before anything is written."""
        setting = self.setting
        network = make_network(self.recipe, setting.data, setting.device)
        pruner = make_pruner(setting.job, network.model)
        pruner.trace(example_of(network, setting.data, setting.device))

    def work(self) -> None:
        """All phases, from the last checkpoint on, to the finished record."""
        state = self.training.resume()
        done = PhasesDone()
        threads, remaining = torch.get_num_threads(), self.phases
        if state:
            threads = state["threads"]
            done = PhasesDone.from_state(cast("PhasesState", state["done"]))
            remaining = self.phases[self.phases.index(cast("PhaseName", state["phase"]["name"])) :]
            job = dataclasses.replace(self.setting.job, precision=state["precision"])
            self.setting = dataclasses.replace(self.setting, job=job)
        lengths = {name: self.setting.plan.of(name).steps for name in self.phases}
        behind = sum(lengths[name] for name in self.phases if name not in remaining)
        bar = ProgressBar(sum(lengths.values()), behind, self.on_epoch, self.on_stage)
        self.bar = bar
        with repeatable(threads), bar:
            for name in remaining:
                phase = self.training.begin(self.make_phase(name, done), state)
                if state is None:
                    self.training.save(phase, done)
                state = None
                self.training.train(phase, done, self.setting.plan.of(name).epochs, bar)
                if name == "dense":
                    done.dense = self.finish_dense(phase)
                elif name == "pretrain":
                    done.pretrain = self.cut(phase)
                else:
                    self.finish(phase, done)

    def score_test(self, network: TimedNetwork) -> Score:
        """The test split, once for each network that is reported."""
        self.bar.stage(f"scoring {len(self.setting.data.test):,} test images")
        return score_test(network, self.setting.data, self.recipe, self.setting.device)

    def classes(self, result: Score) -> tuple[ClassRecord, ...]:
        """The score of each class, as record.json has it."""
        return scored_classes(self.setting.data.classes, result.classes)

    def score_between(self, network: TimedNetwork) -> float:
        """Test accuracy of a network that training goes on from: shown in the record, nothing is chosen by it."""
        if self.recipe.fuse:
            fuse(network.model)
        accuracy = self.score_test(network).accuracy
        unfuse(network.model)
        return accuracy

    def finish_dense(self, phase: Phase) -> DensePhase:
        """The dense run's part of the record. Writes its weights to a file too."""
        settle(self.folder, phase)
        result = self.score_test(phase.network)
        self.folder.save_tensors(self.folder.dense, phase.network.model.state_dict())
        counts, statistics = self.count(phase.network, None)
        figures = network_record(counts.dense, result.accuracy, classes=self.classes(result))
        return DensePhase(figures=figures, statistics=statistics, seconds=phase.seconds)

    def cut(self, phase: Phase) -> CutPhase:
        """Prunes the trained network and shrinks it: what the next phase starts from and what the record says of it."""
        setting, network = self.setting, phase.network
        settle(self.folder, phase)
        accuracy = self.score_between(network)
        counts, _ = self.count(network, None)
        pruner = make_pruner(setting.job, network.model)
        self.bar.stage("ranking channels on the training images")
        pruned = prune_once(pruner, network, setting.data, self.recipe.batch, setting.device)
        pruned = dataclasses.replace(pruned, rounds=[dataclasses.replace(u, step=phase.step) for u in pruned.rounds])
        small, plan = cut_out(network, pruned.masks, example_of(network, setting.data, setting.device))
        return CutPhase(
            plan=plan.to_json(),
            model=small.model.state_dict(),
            pruned=pruned,
            figures=network_record(counts.dense),
            pretrained=accuracy,
            cut=self.score_between(small),
            seconds=phase.seconds + pruned.seconds,
            samples=phase.samples,
        )

    def finish(self, phase: Phase, done: PhasesDone) -> None:
        """Masks, weights and record of the pruned run, and the report."""
        pruner, network, dense, cut = phase.pruner, phase.network, done.dense, done.pretrain
        if pruner is not None:
            pruner.finish()
            missed = len(self.setting.plan.schedule.steps()) - len(pruner.rounds)
            if missed and self.recipe.method != "dense":
                raise RunFailed(
                    f"{missed} of {missed + len(pruner.rounds)} mask updates did not happen, since fp16 skipped as "
                    "many steps; let prune.end come earlier, or take --precision bf16"
                )
        settle(self.folder, phase)
        plan = None if cut is None else ChannelPlan.from_json(cut.plan)
        if cut is not None:
            pruned = cut.pruned
        else:
            assert pruner is not None
            pruned = Pruned.by(pruner, phase.pruning_seconds)
        counts, statistics = self.count(network, None if plan else pruned.masks)
        whole = cut.figures if cut is not None else network_record(counts.dense)
        cost = (
            cost_of_one(self.setting.job, phase, counts, pruned.masks)
            if cut is None
            else cost_of_two(self.setting.job, phase, counts, cut)
        )
        if pruned.channels and plan is None:
            network, plan = cut_out(network, pruned.masks, example_of(network, self.setting.data, self.setting.device))
            counts, statistics = self.count(network, None)
        result = self.score_test(network)
        channels: ChannelsRecord | None = None
        if plan is not None:
            self.folder.save_plan(plan.to_json())
            channels = pruned.record(plan)
            whole_network = make_network(self.recipe, self.setting.data, self.setting.device)
            images, times = latencies([whole_network, network], self.setting.data, self.setting.device)
            cost = dataclasses.replace(cost, latency_ms=Latency(batch=images, before=times[0], after=times[1]))
        self.folder.save_tensors(self.folder.model, network.model.state_dict())
        self.folder.save_tensors(self.folder.masks, pruned.masks)
        if any(update.regrown for update in pruned.rounds):
            self.folder.save_tensors(self.folder.regrown, pruned.regrown)
        self.folder.save_statistics(
            StatisticsRecord(
                schema=SCHEMA, quantiles=QUANTILES, dense=dense.statistics if dense else None, pruned=statistics
            )
        )
        # Without a dense run there is no accuracy of it; its size and operations are those of the same spikes.
        accuracy = result.accuracy if self.recipe.method == "dense" else None
        figures = dense.figures if dense else dataclasses.replace(whole, accuracy=accuracy)
        if dense is not None and plan is None:
            self.save_spikes(network)
        stages = None
        if cut is not None:
            stages = Stages(pretrained=cut.pretrained, pruned=cut.cut, finetuned=result.accuracy)
        self.folder.save_record(
            RunRecord(
                schema=SCHEMA,
                name=self.recipe.name,
                settings=RunSettings.read(complete(self.recipe) | {"T": network.ran or self.recipe.T}, "settings"),
                settings_hash=self.hash,
                seed=self.recipe.seed,
                environment=environment(self.setting.device, self.setting.precision),
                data=data_record(self.setting.data),
                dense=figures if channels is None else dataclasses.replace(figures, alive=channels.before),
                pruned=network_record(
                    counts.pruned, result.accuracy, channels.after if channels else None, self.classes(result)
                ),
                sparsity=pruned.sparsity,
                density=1.0 - pruned.sparsity,
                rounds=tuple(pruned.rounds),
                best_epoch=phase.first + phase.best["epoch"] if phase.best else self.recipe.epochs,
                cost=dataclasses.replace(cost, dense_seconds=dense.seconds if dense else None),
                status="finished",
                channels=channels,
                stages=stages,
            )
        )
        self.folder.drop_older_checkpoints()

    def save_spikes(self, pruned: TimedNetwork) -> None:
        """One test image's spikes in the dense and in the pruned network, for the report."""
        data, device = self.setting.data, self.setting.device
        dense = make_network(self.recipe, data, device)
        dense.model.load_state_dict(read_safetensors(self.folder.dense))
        images, _ = next(batches(data, "test", 2, device=device))
        save_spikes(self.folder, dense, pruned, images, data.time_first)

    def count(self, network: TimedNetwork, masks: Mapping[str, Tensor] | None) -> tuple[Counts, NetworkStatistics]:
        """MACs, SynOps, energy and firing rates on the first test images, and what each layer does on them."""
        self.bar.stage("counting operations and spikes on test images")
        return counted(network, self.setting.data, self.recipe, self.setting.device, masks)
