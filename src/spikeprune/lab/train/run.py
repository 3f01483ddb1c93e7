"""One run from recipe to run folder: the dense baseline, the pruned network, their scores and counts, the record.

A run killed at any moment and started again by the same command ends with the same masks and weights, bit for bit:
all that the rest of the run depends on is in the last checkpoint.
"""

import dataclasses
import importlib.util
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor

from spikeprune import data as datasets
from spikeprune.core.errors import MissingDependency, RunFailed, UserError
from spikeprune.count.counts import Counts, count
from spikeprune.lab.recipe import Recipe, complete, make_method, settings_hash
from spikeprune.lab.recipe.timetable import Timetable, lay_out
from spikeprune.lab.train.device import choose_device, choose_precision, environment, repeatable
from spikeprune.lab.train.done import CutPhase, DensePhase, PhasesDone, network_record
from spikeprune.lab.train.folder import RunFolder, read_safetensors
from spikeprune.lab.train.layers import layer_statistics
from spikeprune.lab.train.loop import Phase, Setting
from spikeprune.lab.train.network import Network, build, connect, load_weights
from spikeprune.lab.train.progress import ProgressBar
from spikeprune.lab.train.score import Score, score
from spikeprune.lab.train.structured import Pruned, cut_out, example_of, latencies, prune_once
from spikeprune.prune.pruner import Pruner
from spikeprune.record.epoch import Epoch
from spikeprune.record.run import ChannelsRecord, Cost, DataRecord, Latency, RunRecord, RunSettings, Stages
from spikeprune.record.schema import SCHEMA
from spikeprune.record.statistics import QUANTILES, NetworkStatistics, StatisticsRecord
from spikeprune.runtime.fuse import fuse, unfuse
from spikeprune.shrink.plan import ChannelPlan

PhaseName = Literal["dense", "pretrain", "pruned"]

# A step of the backward pass costs two passes: gradients for the inputs and for the weights.
_PASSES = 3
# Between two checkpoints at most so much work is lost, in seconds.
_CHECKPOINT_EVERY = 60.0
# Spikes are counted on so many test images, in the order of the files.
_COUNTED = 1000


def run(recipe: Recipe) -> RunFolder:
    """Carry the recipe out, or what is left of it; a finished run is left as it is.

    Returns: the folder with `record.json` and `model.safetensors`.
    Raises: UserError for input that is wrong, before anything is written; RunFailed if the loss is not a number.
    """
    folder = folder_of(recipe)
    if folder.record.is_file():
        folder.open(complete(recipe))
        folder.read_record()
        return folder
    job = _Job(recipe, folder)
    folder.open(complete(recipe))
    with folder.locked():
        if not folder.record.is_file():  # another process may have finished it meanwhile
            job.work()
    return folder


def folder_of(recipe: Recipe) -> RunFolder:
    """Where a recipe's run stands or will stand: `<out>/<name>-<hash of the settings>`."""
    return RunFolder(Path(recipe.out) / f"{recipe.name}-{settings_hash(recipe)}")


def preview(recipe: Recipe) -> list[str]:
    """What `run` would do, without training: events and quotas as plain lines.

    The sizes of built-in datasets are known without their files; data of the user's own is loaded.
    """
    name = recipe.data.name
    facts = datasets.facts_of(name)
    if facts is not None:
        classes, shape = facts.classes, facts.shape
        train_count = datasets.sizes(facts.train, recipe.data.limit, recipe.data.validation)[0]
    else:
        data = load_data(recipe)
        classes, shape, train_count = len(data.classes), data.shape, len(data.train)
    model = build(recipe.model, classes, recipe.T, shape, recipe.seed)
    if recipe.weights is not None:
        load_weights(model, recipe.weights)
    laid_out = lay_out(recipe, train_count)
    pruner = make_pruner(recipe, laid_out.schedule, model)
    if recipe.pattern in ("channel", "gate"):
        return _preview_channels(recipe, laid_out, pruner, model, classes, shape, train_count)
    total = {name: mask.numel() for name, mask in pruner.masks.items()}
    events = pruner.preview()
    lines = [
        f"prunable weights: {sum(total.values())}",
        f"training images: {train_count}",
        f"steps per epoch: {laid_out.steps_per_epoch}",
        f"steps: {laid_out.steps}",
        f"events: {len(events)}",
    ]
    lines += [
        f"event {n}: step {event.step} target {event.target:.4f} kept {event.kept}" for n, event in enumerate(events, 1)
    ]
    if events:
        quota = pruner.quota(events[-1].target)
        lines += [f"quota {name}: {kept} of {total[name]}" for name, kept in quota.items()]
    return lines


def _preview_channels(
    recipe: Recipe,
    laid_out: Timetable,
    pruner: Pruner,
    model: torch.nn.Module,
    classes: int,
    shape: tuple[int, ...],
    train_count: int,
) -> list[str]:
    """The same for channels, which show in a forward: noise of the images' shape does for that."""
    few = torch.rand(2 * recipe.T + 2, *shape)
    network = connect(model, few, recipe.T, classes, recipe.loss, False)
    pruner.trace(network.fed(few[:2]))
    before = laid_out.steps - laid_out.of("pruned").steps
    events = pruner.preview()
    lines = [
        f"prunable channels: {pruner.prunable}",
        f"training images: {train_count}",
        f"steps per epoch: {laid_out.steps_per_epoch}",
        f"steps: {laid_out.steps}",
        f"events: {len(events)}",
    ]
    lines += [
        f"event {n}: step {before or event.step} target {event.target:.4f} kept {event.kept}"
        for n, event in enumerate(events, 1)
    ]
    if laid_out.finetune is not None:
        lines += [f"epochs before pruning: {laid_out.epochs - laid_out.finetune}", f"fine-tuning: {laid_out.finetune}"]
    if recipe.allocate == "global" or not events:  # fresh scales are all alike and would rank by chance
        return lines + [f"channels {name}: {len(alive)}" for name, alive in pruner.channels.items()]
    quota = pruner.quota(events[-1].target)
    return lines + [f"quota {name}: {kept} of {len(pruner.channels[name])}" for name, kept in quota.items()]


def load_data(recipe: Recipe) -> datasets.Dataset:
    """The recipe's data, split by its seed."""
    settings = recipe.data
    return datasets.load(
        settings.name,
        settings.root,
        T=recipe.T,
        limit=settings.limit,
        seed=recipe.seed,
        validation=settings.validation,
        download=settings.download,
    )


def make_network(recipe: Recipe, data: datasets.Dataset, device: torch.device) -> Network:
    """The recipe's network with its initial weights, which depend on the seed or on `weights`."""
    classes = len(data.classes)
    model = build(recipe.model, classes, recipe.T, data.shape, recipe.seed)
    if recipe.weights is not None:
        load_weights(model, recipe.weights)
    model.to(device)
    example = next(datasets.batches(data, "train", 2 * recipe.T + 2, device=device))[0]
    return connect(model, example, recipe.T, classes, recipe.loss, data.time_first)


def _lay_out(model: Any, form: torch.memory_format) -> None:
    """In place; torch's stubs know no `Module.to` with a memory format alone."""
    model.to(memory_format=form)


def make_pruner(recipe: Recipe, schedule: Any, model: torch.nn.Module) -> Pruner:
    """The recipe's Pruner, not yet attached."""
    floor: dict[str, Any] = {} if recipe.floor is None else {"floor": recipe.floor}
    return Pruner(
        model,
        make_method(recipe),
        schedule,
        allocate=recipe.allocate,
        pattern=recipe.pattern,
        budget=recipe.budget,
        exclude=None if recipe.exclude is None else recipe.exclude.split(),
        seed=recipe.seed,
        start=recipe.start,
        **floor,
    )


@final
class _Job:
    """A run in progress. Making one checks all input and writes nothing."""

    def __init__(self, recipe: Recipe, folder: RunFolder):
        self.recipe = recipe
        self.folder = folder
        self.hash = settings_hash(recipe)
        self.metrics = 0
        device = choose_device(recipe.device)
        if recipe.tensorboard and importlib.util.find_spec("tensorboard") is None:
            raise MissingDependency("--tensorboard needs TensorBoard; try: pip install 'spikeprune[tensorboard]'")
        data = load_data(recipe)
        laid_out = lay_out(recipe, len(data.train))
        self.setting = Setting(recipe, laid_out, data.to(device), device, choose_precision(recipe.precision, device))
        self.phases: list[PhaseName] = ["pruned"] if laid_out.finetune is None else ["pretrain", "pruned"]
        if recipe.baseline and recipe.method != "dense":
            self.phases.insert(0, "dense")
        self.check_model()

    def make_phase(self, name: PhaseName, done: PhasesDone) -> Phase:
        """A phase from the initial weights, or from those of the network that was shrunk before it."""
        setting = dataclasses.replace(self.setting, plan=self.setting.plan.of(name))
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
            pruner = make_pruner(self.recipe, setting.plan.schedule, network.model)
        if self.recipe.fuse:
            fuse(network.model)
            if setting.device.type == "cpu":  # the layout that the fused kernels are fastest in
                _lay_out(network.model, torch.channels_last)
        first = 0 if cut is None else self.recipe.epochs - setting.plan.epochs
        return Phase(name, setting, network, pruner, first, 0.0 if cut is None else cut.pruned.sparsity)

    def check_model(self) -> None:
        """A model that cannot be pruned, or a weight whose neuron cannot be told, shows before anything is written."""
        setting = self.setting
        network = make_network(self.recipe, setting.data, setting.device)
        pruner = make_pruner(self.recipe, setting.plan.schedule, network.model)
        pruner.trace(example_of(network, setting.data, setting.device))

    def work(self) -> None:
        """All phases, from the last checkpoint on, to the finished record."""
        state = self.folder.load_checkpoint("last", hash=self.hash)
        done = PhasesDone()
        threads, remaining = torch.get_num_threads(), self.phases
        if state:
            if state["checksum"] != self.setting.data.checksum:
                raise UserError(
                    f"the run in {self.folder.path} began with other data than {self.recipe.data.name} is now; "
                    "bring that data back, or use another --out"
                )
            threads, self.metrics = state["threads"], state["metrics"]
            done = PhasesDone.from_state(state["done"])
            remaining = self.phases[self.phases.index(state["phase"]["name"]) :]
            self.setting = dataclasses.replace(self.setting, precision=state["precision"])
        self.folder.cut_metrics(self.metrics)
        lengths = {name: self.setting.plan.of(name).steps for name in self.phases}
        behind = sum(lengths[name] for name in self.phases if name not in remaining)
        with repeatable(threads), ProgressBar(sum(lengths.values()), behind) as bar:
            for name in remaining:
                phase = self.make_phase(name, done).begin(state["phase"] if state else None)
                if state is None:
                    self.save(phase, done)
                state = None
                self.train(phase, done, bar)
                if name == "dense":
                    done.dense = self.finish_dense(phase)
                elif name == "pretrain":
                    done.pretrain = self.cut(phase)
                else:
                    self.finish(phase, done)

    def train(self, phase: Phase, done: PhasesDone, bar: ProgressBar) -> None:
        """The rest of a phase, with a checkpoint after every epoch and every minute."""
        epochs = self.setting.plan.of(phase.name).epochs
        while phase.epoch < epochs:
            saved = time.monotonic()
            for loss in phase.train_epoch():
                bar.advance(f"{phase.name} epoch {phase.epoch + 1}/{epochs} loss {loss:.3f}")
                if time.monotonic() - saved > _CHECKPOINT_EVERY:
                    self.save(phase, done)
                    saved = time.monotonic()
            best_before = phase.best
            line = phase.end_epoch()
            self.metrics = self.folder.add_metrics(line)
            if phase.best != best_before:
                best = {"phase": phase.name, "epoch": phase.epoch, "model": phase.network.model.state_dict()}
                self.folder.save_checkpoint("best", best)
            self.save(phase, done)
            if self.recipe.tensorboard:
                _to_tensorboard(self.folder, line)

    def save(self, phase: Phase, done: PhasesDone) -> None:
        """Write the last checkpoint. Raises: RunFailed rather than keep weights that are not numbers."""
        phase.check_weights()
        self.folder.save_checkpoint(
            "last",
            {
                "hash": self.hash,
                "checksum": self.setting.data.checksum,
                "precision": self.setting.precision,
                "threads": torch.get_num_threads(),
                "metrics": self.metrics,
                "done": done.state_dict(),
                "phase": phase.state_dict(),
            },
        )

    def settle(self, phase: Phase) -> None:
        """Put the chosen epoch's weights in place."""
        if phase.best is not None:
            best = self.folder.load_checkpoint("best", phase=phase.name, epoch=phase.best["epoch"])
            if best is not None:
                phase.network.model.load_state_dict(best["model"])
        # What is scored is the plain network that model.safetensors holds.
        _lay_out(unfuse(phase.network.model), torch.contiguous_format)

    def score_test(self, network: Network) -> Score:
        """The test split, once for each network that is reported."""
        return score_test(network, self.setting.data, self.recipe, self.setting.device)

    def score_between(self, network: Network) -> float:
        """Test accuracy of a network that training goes on from: shown in the record, nothing is chosen by it."""
        if self.recipe.fuse:
            fuse(network.model)
        accuracy = self.score_test(network).accuracy
        unfuse(network.model)
        return accuracy

    def finish_dense(self, phase: Phase) -> DensePhase:
        """What the record says of the dense run; its weights are kept beside."""
        self.settle(phase)
        result = self.score_test(phase.network)
        self.folder.save_tensors(self.folder.dense, phase.network.model.state_dict())
        counts, statistics = self.count(phase.network, None)
        figures = network_record(counts.dense, result.accuracy)
        return DensePhase(figures=figures, statistics=statistics, seconds=phase.seconds)

    def cut(self, phase: Phase) -> CutPhase:
        """Prunes the trained network and shrinks it: what the next phase starts from and what the record says of it."""
        setting, network = self.setting, phase.network
        self.settle(phase)
        accuracy = self.score_between(network)
        counts, _ = self.count(network, None)
        pruner = make_pruner(self.recipe, setting.plan.schedule, network.model)
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
                    f"{missed} pruning events did not happen, since fp16 skipped as many steps; "
                    "let prune.end come earlier"
                )
        self.settle(phase)
        plan = None if cut is None else ChannelPlan.from_json(cut.plan)
        if cut is not None:
            pruned = cut.pruned
        else:
            assert pruner is not None
            pruned = Pruned.by(pruner, phase.pruning_seconds)
        counts, statistics = self.count(network, None if plan else pruned.masks)
        whole = cut.figures if cut is not None else network_record(counts.dense)
        cost = self.cost(phase, counts, pruned.masks) if cut is None else self.cost_of_two(phase, counts, cut)
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
        stages = None
        if cut is not None:
            stages = Stages(pretrained=cut.pretrained, pruned=cut.cut, finetuned=result.accuracy)
        self.folder.save_record(
            RunRecord(
                schema=SCHEMA,
                name=self.recipe.name,
                settings=RunSettings.read(complete(self.recipe), "settings"),
                settings_hash=self.hash,
                seed=self.recipe.seed,
                environment=environment(self.setting.device, self.setting.precision),
                data=data_record(self.setting.data),
                dense=figures if channels is None else dataclasses.replace(figures, alive=channels.before),
                pruned=network_record(counts.pruned, result.accuracy, channels.after if channels else None),
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

    def cost(self, phase: Phase, counts: Counts, masks: Mapping[str, Tensor]) -> Cost:
        """What the pruned run took; see contract: search is up to the last change of a mask, the others are totals.

        Zeros are credited in all passes, but where the method needed the gradients of dead weights (to regrow by them,
        or to keep their momentum) not in the one that computes them.
        """
        layout: Timetable = self.setting.plan
        samples = phase.samples
        effective = 0.0
        for name, layer in counts.layers.items():
            weight = f"{name}.weight"
            if weight in masks:
                passes = _PASSES * phase.kept_samples[weight] + phase.filled_samples[weight]
                effective += layer.dense.macs * passes / masks[weight].numel()
            else:
                effective += _PASSES * layer.dense.macs * samples
        return Cost(
            epochs=self.recipe.epochs,
            seconds=phase.seconds,
            train_macs=_PASSES * counts.dense.macs * samples,
            train_macs_effective=effective,
            pruning_seconds=phase.pruning_seconds,
            search_epochs=phase.search_step / layout.steps_per_epoch,
            search_seconds=phase.search_seconds,
        )

    def cost_of_two(self, phase: Phase, counts: Counts, cut: CutPhase) -> Cost:
        """The same where the network was pruned between two trainings; `counts` are of the small one."""
        whole, small, after = cut.figures.macs, counts.dense.macs, phase.samples
        return Cost(
            epochs=self.recipe.epochs,
            seconds=cut.seconds + phase.seconds,
            train_macs=_PASSES * whole * (cut.samples + after),
            train_macs_effective=_PASSES * (whole * cut.samples + small * after),
            pruning_seconds=cut.pruned.seconds,
            search_epochs=float(self.recipe.epochs - self.setting.plan.of("pruned").epochs),
            search_seconds=cut.seconds,
        )

    def count(self, network: Network, masks: Mapping[str, Tensor] | None) -> tuple[Counts, NetworkStatistics]:
        """MACs, SynOps, energy and firing rates on the first test images, and what each layer does on them."""
        return counted(network, self.setting.data, self.recipe, self.setting.device, masks)


def counted(
    network: Network,
    data: datasets.Dataset,
    recipe: Recipe,
    device: torch.device,
    masks: Mapping[str, Tensor] | None,
) -> tuple[Counts, NetworkStatistics]:
    """Counts and layer statistics on the first test images."""
    size, recorded = recipe.batch, data.time_first
    batches = datasets.batches(data, "test", size, device=device)
    few = [(network.fed(x, recorded), y) for (x, y), _ in zip(batches, range(0, _COUNTED, size), strict=False)]
    with network.one_call(recorded) as model:
        counts = count(model, few, masks)
        return counts, layer_statistics(network, [x for x, _ in few], counts)


def score_test(network: Network, data: datasets.Dataset, recipe: Recipe, device: torch.device) -> Score:
    """The whole test split, in batches of the recipe's size."""
    return score(network, datasets.batches(data, "test", recipe.batch, device=device), data.time_first)


def restore(
    folder: RunFolder, recipe: Recipe, data: datasets.Dataset, device: torch.device, file: Path | None = None
) -> Network:
    """A network of a finished run, from model.safetensors or another `file` of its folder."""
    path = file or folder.model
    model = build(recipe.model, len(data.classes), recipe.T, data.shape, recipe.seed)
    tensors = read_safetensors(path)
    own = model.state_dict()
    if folder.plan.is_file() and any(name in own and own[name].shape != t.shape for name, t in tensors.items()):
        ChannelPlan.load(folder.plan).apply(model)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{path} does not fit the network {recipe.model}; restore it or run again") from error
    model.to(device)
    example = next(datasets.batches(data, "train", 2 * recipe.T + 2, device=device))[0]
    return connect(model, example, recipe.T, len(data.classes), recipe.loss, data.time_first)


def data_record(data: datasets.Dataset) -> DataRecord:
    """What record.json says of the data."""
    return DataRecord(
        name=data.name,
        counts=data.counts,
        shape=data.shape,
        classes=len(data.classes),
        checksum=data.checksum,
        published={True: "true", False: "false", None: "unknown"}[data.published],
        notes=tuple(data.notes),
        counted=min(_COUNTED, len(data.test)),
    )


def _to_tensorboard(folder: RunFolder, line: Epoch) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder.path / "tensorboard" / line.phase), purge_step=line.epoch) as writer:
        for key, value in line.items():
            if isinstance(value, float):
                writer.add_scalar(key, value, line.epoch)
