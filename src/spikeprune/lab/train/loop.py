"""The training loop: one phase of a run, dense or pruned, that can stop after any step and go on as if it had not.

The loop is what a user would write; the Pruner only attaches to the optimizer.
"""

import copy
import itertools
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, cast, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spikeprune.core.errors import InvalidValue, RunFailed
from spikeprune.data import Dataset, batches
from spikeprune.data.augment import Augment
from spikeprune.lab.recipe import Recipe
from spikeprune.lab.recipe.job import Job, PhaseName
from spikeprune.lab.recipe.timetable import Timetable, learning_rate
from spikeprune.lab.train.curvature import show_curvature
from spikeprune.lab.train.device import PRECISIONS, random_states, restore_random_states, seed_everything
from spikeprune.lab.train.distill import distillation, outputs_of
from spikeprune.lab.train.early_time import fewer_steps
from spikeprune.lab.train.network import TimedNetwork
from spikeprune.lab.train.score import Score, score
from spikeprune.lab.train.together import Together
from spikeprune.methods.registry import hints_of
from spikeprune.prune.pruner import Pruner
from spikeprune.record.checkpoint import BestEpoch, PhaseState, PrunerState
from spikeprune.record.epoch import Epoch
from spikeprune.runtime.sparse_train import SparseLayer, sparsify
from spikeprune.zoo.readout import LOSSES, predict

_log = logging.getLogger("spikeprune")

_ET_EPOCHS = 2  # Early-Time chooses its time steps after so many epochs, as its authors' code


@final
@dataclass(frozen=True)
class Setting:
    """Shared by the phases of a run: the job, the data on its device, and the processes that train, if several do."""

    job: Job
    data: Dataset
    together: Together | None = None

    @property
    def recipe(self) -> Recipe:
        return self.job.recipe

    @property
    def plan(self) -> Timetable:
        return self.job.timetable

    @property
    def device(self) -> torch.device:
        return self.job.device

    @property
    def precision(self) -> str:
        return self.job.precision


def make_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """The recipe's optimizer over all parameters, normalisation and biases included, as in the paper's code."""
    if recipe.optim.name == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.optim.weight_decay)
    return torch.optim.SGD(
        model.parameters(), lr=recipe.lr, momentum=recipe.optim.momentum, weight_decay=recipe.optim.weight_decay
    )


@final
class Phase:
    """One training from the initial weights to the last epoch: `begin`, then `train_epoch` and `end_epoch` in turn.

    Args:
        name: `dense`, `pretrain` or `pruned`, as in metrics.jsonl.
        pruner: not yet attached; None trains as it is.
        first_epoch: how many epochs of the run came before this phase.
        sparsity: of a network that was pruned before.
        teacher: a network whose outputs are learned in place of the labels, which then choose no epoch either.
    """

    def __init__(
        self,
        name: PhaseName,
        setting: Setting,
        network: TimedNetwork,
        pruner: Pruner | None,
        first_epoch: int = 0,
        sparsity: float = 0.0,
        teacher: TimedNetwork | None = None,
    ):
        self.name = name
        self._teacher = teacher
        self.first = first_epoch
        self._sparsity = sparsity
        scales = [p for m in network.model.modules() if isinstance(m, _BatchNorm) for p in [m.weight] if p is not None]
        self._scales = scales if setting.recipe.optim.slim else []
        self._slim_until = setting.plan.steps if name == "pretrain" else 0
        if pruner is not None and pruner.preview():
            self._slim_until = pruner.preview()[-1].step
        self.network = network
        self.pruner = pruner
        self.epoch = 0
        self.best: BestEpoch | None = None
        self.seconds = 0.0
        self.search_seconds = 0.0
        self.search_step = 0
        self._pruning_before = 0.0
        # Samples trained on, times the weights alive in each layer; a sample of fewer time steps counts in proportion.
        self.kept_samples: dict[str, float] = {}
        # The same times dead weights, where a method needed the gradients of those as well.
        self.filled_samples: dict[str, float] = {}
        self.samples: float = 0
        self.search_T: int | None = None
        self._setting = setting
        # What became of each masked layer since the masks are final; empty before, and without `sparse_kernels`.
        self.sparse_layers: list[SparseLayer] = []
        self._whole_T = network.T
        self._batch = 0
        # Of the current epoch: summed loss and right answers, on the device, and samples.
        self._loss = torch.zeros((), dtype=torch.float64, device=setting.device)
        self._right = torch.zeros((), dtype=torch.int64, device=setting.device)
        self._seen = 0
        self._rounds = 0
        self._kept: dict[str, int] = {}
        self._numel: dict[str, int] = {}
        recipe = setting.recipe
        seed_everything(recipe.seed + first_epoch)
        network.model.train()
        self._optimizer = make_optimizer(recipe, network.model)
        self._scaler = torch.amp.GradScaler(setting.device.type, enabled=setting.precision == "fp16")
        augment = Augment(recipe.data.crop, recipe.data.flip, recipe.data.cutout)
        self._augment = augment if augment != Augment() else None

    def begin(self, state: PhaseState | None = None) -> "Phase":
        """Attach the Pruner and be ready for the first step, or for the one after `state` was saved.

        The first forward pass finds out which neuron a weight feeds and what the fused kernel may leave out. This
        decides roundings later on. So a forward pass is made here and everything is put back, before the first step of
        every process. A continued process then rounds like an undisturbed one.
        """
        start = copy.deepcopy(self.state_dict()) if state is None else state
        if self.pruner is not None:
            self.pruner.attach(self._optimizer)
        data = self._setting.data
        x, _ = next(batches(data, "train", min(4, self._setting.recipe.batch), device=self._setting.device))
        self.network(x, data.time_first)
        self.network.adapter.reset(self.network.model)
        self._load(start)
        self._count_alive()
        self._leave_out_dead()
        if self._setting.together is not None:
            self._setting.together.check_agreed(self.step)
        return self

    @property
    def precision(self) -> str:
        """fp32, bf16 or fp16."""
        return self._setting.precision

    @property
    def pruning_seconds(self) -> float:
        """Time in mask updates and mask upkeep, earlier processes included."""
        return self._pruning_before + (self.pruner.seconds if self.pruner is not None else 0.0)

    @property
    def step(self) -> int:
        """Batches trained so far."""
        return self.epoch * self._setting.plan.steps_per_epoch + self._batch

    def train_epoch(self) -> Iterator[float]:
        """The rest of this epoch, one optimizer step at a time; gives the loss of each step.

        Raises: RunFailed if the loss stops being a number.
        """
        setting = self._setting
        recipe, plan, data, together = setting.recipe, setting.plan, setting.data, setting.together
        # Looking at the loss waits for the device, so on an accelerator it is looked at only now and then.
        look_every = 1 if setting.device.type == "cpu" else 50
        loss_of = LOSSES[self.network.loss]
        shown = 0.0
        feed = batches(
            data,
            "train",
            recipe.batch,
            shuffle=True,
            seed=recipe.seed,
            epoch=self.first + self.epoch,
            start=self._batch,
            device=setting.device,
            augment=self._augment,
        )
        began = time.perf_counter()
        for x, target in feed:
            self._set_time(x)
            samples = len(target)
            if together is not None:
                x, target = together.share(x, target, data.time_first)
            if self.pruner is not None:
                show_curvature(
                    self.pruner,
                    self.network,
                    x,
                    target,
                    time_first=data.time_first,
                    step=self.step + 1,
                    fused=recipe.fuse,
                )
            span = (0, None) if self.pruner is None else self.pruner.round_steps
            for group in self._optimizer.param_groups:
                group["lr"] = learning_rate(recipe, self.step, plan, span)
            with torch.autocast(setting.device.type, PRECISIONS[setting.precision], setting.precision != "fp32"):
                logits = self.network(x, data.time_first)
            share = 1 if self._whole_T == self.network.T else self.network.T / self._whole_T
            if self._teacher is None:
                loss = loss_of(logits.float(), target)
            else:
                loss = distillation(logits.float(), outputs_of(self._teacher, x, data.time_first))
            self._optimizer.zero_grad(set_to_none=True)
            self._scaler.scale(loss if together is None else loss * (len(target) / samples)).backward()
            if together is not None:
                together.sum_gradients(self.network.model.parameters())
            self._slim()
            try:
                self._scaler.step(self._optimizer)
            except InvalidValue:
                self.check_weights()  # weights that are not numbers cannot be ranked at a mask update
                raise
            self._scaler.update()
            self._add(loss.detach() * len(target), (predict(logits.detach()) == target).sum())
            self._seen += samples
            self._batch += 1
            if self._batch % look_every == 0 or self._batch == plan.steps_per_epoch:
                shown = float(self._loss) / self._seen
                self._check(shown, "loss")
            now = time.perf_counter()
            self.seconds += now - began
            began = now
            self._account(samples * share)
            yield shown

    def _add(self, loss: Tensor, right: Tensor) -> None:
        """Adds a step's summed loss and right answers, of all processes."""
        if self._setting.together is not None:
            self._setting.together.sum(loss, right)
        self._loss += loss
        self._right += right

    def _slim(self) -> None:
        """Network slimming: add the gradient of slim * |gamma|, as long as the network is not pruned to its end.

        Source: Liu et al. 2017, arXiv:1708.06519.
        """
        if self.step >= self._slim_until:
            return
        pull = self._setting.recipe.optim.slim * self._scaler.get_scale()  # 1 unless fp16 scales its gradients
        for scale in self._scales:
            if scale.grad is not None:
                scale.grad.add_(scale.detach().sign(), alpha=pull)

    def end_epoch(self) -> Epoch:
        """Score the epoch and go on to the next; returns its line for metrics.jsonl."""
        setting, began = self._setting, time.perf_counter()
        self._set_time()
        if setting.together is not None:
            setting.together.take_buffers(self.network.model)
        held = self.validate("validation")
        seen = self.validate("train", len(setting.data.validation)) if held else None
        for part in (held, seen):
            self._check(part.loss if part else 0.0, "loss of the validation")
        line = Epoch(
            phase=self.name,
            epoch=self.first + self.epoch + 1,
            step=self.first * setting.plan.steps_per_epoch + self.step,
            lr=self._optimizer.param_groups[0]["lr"],
            train_loss=float(self._loss) / self._seen,
            train_accuracy=int(self._right) / self._seen,
            seen_loss=seen.loss if seen else None,
            seen_accuracy=seen.accuracy if seen else None,
            val_loss=held.loss if held else None,
            val_accuracy=held.accuracy if held else None,
            sparsity=self.pruner.sparsity if self.pruner is not None else self._sparsity,
        )
        self.epoch, self._batch, self._seen = self.epoch + 1, 0, 0
        self._loss.zero_()
        self._right.zero_()
        arrived = self.step >= setting.plan.schedule.steps()[-1]
        if held and arrived and self._teacher is None and self._better(held):
            self.best = {"epoch": self.epoch, "accuracy": held.accuracy, "loss": held.loss}
        self.seconds += time.perf_counter() - began
        return line

    def validate(self, split: Literal["train", "validation"], count: int | None = None) -> Score | None:
        """Score on the split, or on its first `count` samples, to the batch; None if it is empty."""
        setting = self._setting
        feed = batches(setting.data, split, setting.recipe.batch, device=setting.device)
        if count is not None:
            feed = itertools.islice(feed, math.ceil(count / setting.recipe.batch))
        return score(self.network, feed, setting.data.time_first) if len(setting.data.split(split)) else None

    def check_weights(self) -> None:
        """Raises: RunFailed if a parameter is not a number, before it is saved or relied upon."""
        for name, value in self.network.model.named_parameters():
            if not bool(value.isfinite().all()):
                raise RunFailed(
                    f"the weights of {name} are not numbers after step {self.step}, {self.name} run; a lower --lr than "
                    f"{self._setting.recipe.lr:g} may help"
                )

    def _check(self, value: float, what: str) -> None:
        if not math.isfinite(value):
            raise RunFailed(
                f"the {what} is not a number at step {self.step} (epoch {self.epoch + 1}), {self.name} run; a lower "
                f"--lr than {self._setting.recipe.lr:g} or --precision fp32 may help"
            )

    def _better(self, held: Score) -> bool:
        """Higher accuracy on the validation split wins, then lower loss, then the earlier epoch."""
        return self.best is None or (held.accuracy, -held.loss) > (self.best["accuracy"], -self.best["loss"])

    def _set_time(self, x: Tensor | None = None) -> None:
        """Sets the number of time steps for methods that search with fewer of them. `x` is the coming batch."""
        early_time = None if self.pruner is None else hints_of(self.pruner.method).search_T
        if self.pruner is None or early_time is None:
            return
        T = self._whole_T
        if self.search_T is None:
            self.search_T = early_time(self.pruner.method)
        if self.search_T is None and x is not None and (self.epoch, self._batch) == (_ET_EPOCHS, 0):
            self.search_T = fewer_steps(self.network, x, self._setting.data.time_first)
            if self.search_T == T:
                _log.warning(
                    "spikeprune: Early-Time leaves the search at all %d time steps, so that it saves nothing: none "
                    "of 2 to T - 1 steps has answers near enough; set --search_T 1 or a larger --T",
                    T,
                )
        wanted = min(self.search_T or T, T) if self.pruner.searching else T
        if wanted != self.network.T:
            self.network = self.network.at(wanted)

    def _account(self, samples: float) -> None:
        """Add one step's samples, times the weights that were alive in it, to each layer's sum."""
        self.samples += samples
        if self.pruner is None:
            return
        for name, kept in self._kept.items():
            self.kept_samples[name] = self.kept_samples.get(name, 0) + samples * kept
            filled = samples * self.pruner.full_gradients * (self._numel[name] - kept)
            self.filled_samples[name] = self.filled_samples.get(name, 0) + filled
        if len(self.pruner.rounds) != self._rounds:
            self._count_alive()
            self._leave_out_dead()
            if self.pruner.rounds[-1]["cut"]:
                self.search_seconds, self.search_step = self.seconds, self.step

    def _count_alive(self) -> None:
        if self.pruner is not None:
            self._rounds = len(self.pruner.rounds)
            masks = self.pruner.masks
            self._kept = {name: int(mask.sum()) for name, mask in masks.items()}
            self._numel = {name: mask.numel() for name, mask in masks.items()}

    def _leave_out_dead(self) -> None:
        """After the last mask update: passes over the weights alive alone, if the recipe asks for it.

        Whether a layer takes part depends on its shape and mask, so a continued run takes the same path.
        """
        if self._setting.recipe.sparse_kernels and self.pruner is not None and not self.pruner.searching:
            self.sparse_layers = sparsify(self.network.model, self.pruner.masks)

    def state_dict(self) -> PhaseState:
        """Everything that the rest of the phase depends on; loads weights-only."""
        return {
            "name": self.name,
            "epoch": self.epoch,
            "batch": self._batch,
            "sums": (float(self._loss), int(self._right), self._seen),
            "best": self.best,
            "seconds": self.seconds,
            "search_seconds": self.search_seconds,
            "search_step": self.search_step,
            "pruning_seconds": self.pruning_seconds,
            "kept_samples": self.kept_samples,
            "filled_samples": self.filled_samples,
            "samples": self.samples,
            "search_T": self.search_T,
            "model": self.network.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "pruner": self.pruner.state_dict() if self.pruner is not None else None,
            "random": random_states(),
        }

    def _load(self, state: PhaseState) -> None:
        self.epoch, self._batch = state["epoch"], state["batch"]
        loss, right, self._seen = state["sums"]
        self._loss.fill_(loss)
        self._right.fill_(right)
        self.best = state["best"]
        self.kept_samples, self.filled_samples = state["kept_samples"], state["filled_samples"]
        self.samples, self.search_T = state["samples"], state["search_T"]
        self.seconds = state["seconds"]
        self.search_seconds, self.search_step = state["search_seconds"], state["search_step"]
        self._pruning_before = state["pruning_seconds"]
        self.network.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        if self.pruner is not None:
            self.pruner.load_state_dict(cast("PrunerState", state["pruner"]))
        restore_random_states(state["random"])
