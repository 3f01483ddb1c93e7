"""Trains a network of `sp.pretrained` anew: weights with their model card, on one core, resumable.

    python study/pretrained/train.py fashion-small --seed 0 --root DIR --out DIR

Called again after an interruption, it goes on from the last whole epoch. BatchNorm's running statistics may then differ
in the last bit, since `sp.fuse` computes the first batch of a process in PyTorch's way.

The recipes stand in recipes.py. With `--budget SECONDS` progress follows the clock in place of the recipe's, so that
the training ends in that time at any load of the machine. The progress that it made is written to NAME.progress.json,
from which the training can be repeated.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from recipes import RECIPES, Recipe, Stage
from safetensors.torch import save_file
from spikingjelly.activation_based import base, functional
from torch import Tensor

import spikeprune as sp
from spikeprune.data import Dataset, batches, load, steps_per_epoch
from spikeprune.data.augment import Augment
from spikeprune.zoo.net import SpikingNet
from spikeprune.zoo.pretrained import Card
from spikeprune.zoo.readout import predict

LICENCES = {
    "digits": "Apache-2.0; data: UCI Optical Recognition of Handwritten Digits, CC BY 4.0, as in scikit-learn",
    "fashion-mnist": "Apache-2.0; data: Fashion-MNIST, Zalando SE, MIT",
    "cifar10": "Apache-2.0; data: CIFAR-10, Krizhevsky 2009, published without an explicit licence",
}


@final
@dataclass
class State:
    """Where a training stands between two epochs.

    Args:
        epoch: epochs done. progress: as in `Recipe`, as far as it was made. log: one entry an epoch.
        wall, cpu: seconds.
    """

    epoch: int = 0
    progress: list[float] = field(default_factory=list)
    log: list[dict[str, Any]] = field(default_factory=list)
    wall: float = 0.0
    cpu: float = 0.0


@final
class Training:
    """One training of one network. `run` goes on from the checkpoint in `out`, if there is one."""

    def __init__(self, name: str, seed: int, root: str | None, out: Path, budget: float | None):
        self.name, self.seed, self.out, self.budget = name, seed, out, budget
        self.recipe: Recipe = RECIPES[name]
        self.data: Dataset = load(self.recipe.data, root, T=self.recipe.T, validation=self.recipe.validation, seed=0)
        self.steps = steps_per_epoch(len(self.data.train), self.recipe.batch)
        torch.manual_seed(seed)
        self.model = _build(self.recipe).to(memory_format=torch.channels_last)
        self.fused = False
        # Kept apart from the model's own, which change with the stage.
        self.shape = self.model.image_shape
        self.optimizer = _optimizer(self.model, self.recipe)
        self.state = State()
        self._began = time.time()
        self._cpu = time.process_time()
        self._stages = self.recipe.stages or (Stage(1.0, self.recipe.size, self.recipe.T),)

    @property
    def stem(self) -> str:
        """The name of this seed's files; seed 0 has the network's own."""
        return f"{self.name}-{self.seed}" if self.seed else self.name

    def run(self) -> Card:
        """Trains to the end, writes weights and card, and returns the card."""
        self._resume()
        at = 0.0
        while at < 1:
            at = self._epoch()
        self._whole()
        if self.recipe.half:
            _round_to_half(self.model)
        card = self._card()
        write(self.model, card, self.out, self.recipe.half)
        (self.out / f"{self.stem}.progress.json").write_text(json.dumps(self.state.progress) + "\n")
        return card

    def _epoch(self) -> float:
        """One epoch, or the part of one that is left. Returns: the progress after it."""
        augment = Augment(self.recipe.crop, self.recipe.flip)
        feed = batches(
            self.data,
            "train",
            self.recipe.batch,
            shuffle=True,
            seed=self.seed,
            epoch=self.state.epoch,
            augment=None if augment == Augment() else augment,
        )
        loss_sum, right, seen = 0.0, 0, 0
        at = 0.0
        for step, (at, (x, target)) in enumerate(zip(self._progress(), feed, strict=False)):
            if at >= 1:
                break
            stage = next(stage for stage in self._stages if at < stage.until)
            if step == 0 or not self.recipe.held or step % self.recipe.held == 0:
                self._set(stage, at)
            loss, logits = self._step(_sized(x, stage.size, self.state.epoch * 100_003 + step), target)
            loss_sum += loss * len(target)
            right += int((predict(logits) == target).sum())
            seen += len(target)
            if not math.isfinite(loss_sum):
                raise SystemExit(f"the loss is not a number at step {step}; lower lr")
        if not self.recipe.held and len(self.state.progress) == self.state.epoch + 1:
            at = self.recipe.progress[self.state.epoch + 1]
            self.state.progress.append(at)
        self.state.epoch += 1
        if seen:
            self._note(at, loss_sum / seen, right / seen)
        return at

    def _step(self, x: Tensor, target: Tensor) -> tuple[float, Tensor]:
        self.model.image_shape = (self.shape[0], x.shape[-1], x.shape[-1])
        functional.reset_net(self.model)
        logits = self.model(x.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.mean(0), target, label_smoothing=self.recipe.smoothing)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach()), logits.detach()

    def _progress(self) -> Iterator[float]:
        """The progress before each step of this epoch; a last 1 where the training ends within it."""
        epoch, held = self.state.epoch, self.recipe.held
        if not held:
            if epoch == 0:
                self.state.progress.append(self.recipe.progress[0])
            first, last = self.recipe.progress[epoch : epoch + 2]
            for step in range(self.steps):
                yield first + (last - first) * step / self.steps
            return
        for step in range(self.steps):
            if step % held == 0:
                recorded = len(self.state.progress)
                if self.budget is not None:
                    self.state.progress.append(min(1.0, (time.time() - self._began) / self.budget))
                else:
                    self.state.progress.append(self.recipe.progress[recorded])
            yield self.state.progress[-1]

    def _set(self, stage: Stage, at: float) -> None:
        """Learning rate, time steps and neurons for the steps to come."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe.lr, at)
        self.model.T = stage.T
        _set_neurons(self.model, 3 + 5 * at / stage.until if stage.smooth else None, bool(self.recipe.stages))
        if self.fused == stage.smooth:  # the fused kernel is the faster one for spikes, and not for smooth curves
            (sp.unfuse if self.fused else sp.fuse)(self.model)
            self.fused = not self.fused

    def _whole(self) -> None:
        """The network as it will be used."""
        self.model.image_shape, self.model.T = self.shape, self.recipe.T
        _set_neurons(self.model, None, bool(self.recipe.stages))

    def _note(self, at: float, loss: float, accuracy: float) -> None:
        self._whole()
        validation = score(self.model, self.data, "validation") if len(self.data.validation) else None
        state = self.state
        state.wall, state.cpu = time.time() - self._began, time.process_time() - self._cpu
        entry = {"epoch": state.epoch, "progress": at, "train_loss": loss, "train_accuracy": accuracy}
        state.log.append(entry | {"validation_accuracy": validation, "wall": state.wall, "cpu": state.cpu})
        print(json.dumps(state.log[-1]), flush=True)
        kept = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "state": vars(state)}
        _replace(lambda path: torch.save(kept, path), self.out / f"{self.stem}.checkpoint")

    def _resume(self) -> None:
        path = self.out / f"{self.stem}.checkpoint"
        if not path.exists():
            return
        found = torch.load(path, weights_only=True)
        self.model.load_state_dict(found["model"])
        self.optimizer.load_state_dict(found["optimizer"])
        self.state = State(**found["state"])
        self._began, self._cpu = time.time() - self.state.wall, time.process_time() - self.state.cpu

    def _card(self) -> Card:
        return card_of(
            self.name, self.stem, self.seed, self.model, self.data, epochs=self.state.epoch, cpu=self.state.cpu
        )


def card_of(name: str, stem: str, seed: int, model: SpikingNet, data: Dataset, *, epochs: int, cpu: float) -> Card:
    """Scores a trained network on the test split, once, and writes down what a user has to know.

    It is scored without `sp.fuse`, as `sp.pretrained` gives it: a sum rounded otherwise can be a spike more or less.
    """
    recipe = RECIPES[name]
    plain = _build(recipe)
    plain.load_state_dict(model.state_dict())
    return Card(
        name=stem,
        model=recipe.model,
        classes=len(data.classes),
        T=recipe.T,
        size=recipe.size,
        in_channels=recipe.in_channels,
        data=recipe.data,
        data_checksum=data.checksum,
        scale=data.scale,
        mean=data.mean,
        std=data.std,
        validation=recipe.validation,
        counts=data.counts,
        accuracy=score(plain, data, "test"),
        validation_accuracy=score(plain, data, "validation") if len(data.validation) else None,
        epochs=epochs,
        seed=seed,
        cpu_hours=round(cpu / 3600, 3),
        recipe=f"python study/pretrained/train.py {name} --seed {seed}",
        notes=data.notes,
        licence=LICENCES[recipe.data],
    )


def write(model: SpikingNet, card: Card, out: Path, half: bool) -> None:
    """Writes the file that `sp.pretrained` reads; `half` stores weights that equal their float16 values as such."""
    tensors = {
        key: (value.half() if half and value.is_floating_point() and value.dim() > 1 else value).contiguous()
        for key, value in model.state_dict().items()
    }
    _replace(lambda path: save_file(tensors, path, card.metadata()), out / f"{card.name}.safetensors")


def learning_rate(highest: float, at: float) -> float:
    """highest * at / 0.08 while at < 0.08, then highest * (1 + cos(pi (at - 0.08) / 0.92)) / 2.

    1e-5 is added, so that no step is in vain.
    """
    warm = 0.08
    rise = at / warm if at < warm else 0.5 * (1 + math.cos(math.pi * (at - warm) / (1 - warm)))
    return highest * rise + 1e-5


def score(model: SpikingNet, data: Dataset, split: Any) -> float:
    """Accuracy on a split in eval mode, in batches of 250."""
    model.eval()
    right = 0
    with torch.no_grad():
        for x, target in batches(data, split, 250):
            functional.reset_net(model)
            right += int((predict(model(x)) == target).sum())
    functional.reset_net(model)
    model.train()
    return right / len(data.split(split))


def _build(recipe: Recipe) -> SpikingNet:
    return sp.model(recipe.model, T=recipe.T, size=recipe.size, in_channels=recipe.in_channels)


def _optimizer(model: SpikingNet, recipe: Recipe) -> torch.optim.Optimizer:
    weights = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": weights, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0}]
    return torch.optim.SGD(groups, recipe.lr, momentum=0.9, nesterov=True)


def _set_neurons(model: SpikingNet, slope: float | None, staged: bool) -> None:
    """Smooth neurons with this slope, or spiking ones with their own."""
    for module in model.modules():
        if isinstance(module, base.MemoryModule) and hasattr(module, "surrogate_function"):
            module.surrogate_function.spiking = slope is None
            if staged:
                module.surrogate_function.alpha = 4.0 if slope is None else slope


def _sized(x: Tensor, size: int, key: int) -> Tensor:
    """The batch at another size, as `Stage` says; the place of the crop depends on `key` alone."""
    if size == x.shape[-1]:
        return x
    if 2 * size == x.shape[-1]:
        return F.avg_pool2d(x, 2)
    generator = torch.Generator().manual_seed(key)
    top, left = torch.randint(x.shape[-1] - size + 1, (2,), generator=generator).tolist()
    return x[..., top : top + size, left : left + size]


def _round_to_half(model: SpikingNet) -> None:
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point() and tensor.dim() > 1:
                tensor.copy_(tensor.half().float())


def _replace(write_to: Any, path: Path) -> None:
    """Writes a file that is never there by half."""
    temporary = path.with_name(path.name + ".part")
    write_to(temporary)
    os.replace(temporary, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--root", default=None, help="where the data lies; by default SPIKEPRUNE_DATA")
    parser.add_argument("--out", type=Path, default=Path("runs/pretrained"))
    parser.add_argument("--budget", type=float, default=None, help="seconds; only for recipes with `held`")
    options = parser.parse_args()
    if options.budget is not None and not RECIPES[options.name].held:
        parser.error(f"--budget is for recipes whose progress may follow the clock; {options.name} has its own")
    if options.budget is None and not RECIPES[options.name].progress:
        parser.error(f"{options.name} has no recorded progress; give --budget SECONDS")
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    card = Training(options.name, options.seed, options.root, options.out, options.budget).run()
    print(f"test accuracy {card.accuracy:.4f}")


if __name__ == "__main__":
    main()
