"""Estimates how long a run takes on this machine: the time of a few real steps on random images, times their number."""

import dataclasses
import time
from typing import final

import torch

from spikeprune import data as datasets
from spikeprune.core.errors import UserError
from spikeprune.data.dataset import Dataset, Split
from spikeprune.lab.recipe import Recipe
from spikeprune.lab.recipe.job import DataFacts, resolve
from spikeprune.lab.recipe.timetable import lay_out
from spikeprune.lab.train.device import choose_device, choose_precision, repeatable
from spikeprune.lab.train.loop import Phase, Setting
from spikeprune.lab.train.parts import load_data, make_network
from spikeprune.runtime.fuse import fuse

_STEPS = 3  # measured, after one to warm up
_COUNTED = 1000  # images on which a run counts operations, in two passes
_OFF_TO_START = 5.0  # seconds until a process trains


@final
class Estimator:
    """Seconds of a run. Recipes that share a network and its batches are measured once."""

    def __init__(self, threads: int = 1):
        self._threads = threads
        self._measured: dict[tuple[object, ...], tuple[float, float]] = {}
        self._data: dict[str, Dataset] = {}

    def seconds(self, recipe: Recipe) -> float | None:
        """Estimated time of a run: training, scoring after every epoch and on the test split, without mask updates.

        None if the run cannot be planned, such as for missing data.
        """
        key = (recipe.model, recipe.T, recipe.batch, recipe.data.name, recipe.precision, recipe.device, recipe.fuse)
        try:
            train, validation, test = self._sizes(recipe)
            if key not in self._measured:
                self._measured[key] = self._measure(recipe)
        except UserError:
            return None
        step, image = self._measured[key]
        steps = lay_out(recipe, train).steps
        scored = recipe.epochs * (validation + min(validation, train)) + test + 2 * min(_COUNTED, test)
        return _OFF_TO_START + steps * step + scored * image

    def _sizes(self, recipe: Recipe) -> tuple[int, int, int]:
        name, limit, share = recipe.data.name, recipe.data.limit, recipe.data.validation
        if (facts := datasets.facts_of(name)) is not None:
            return *datasets.sizes(facts.train, limit, share), facts.test
        counts = self._own(recipe).counts
        return counts["train"], counts["validation"], counts["test"]

    def _own(self, recipe: Recipe) -> Dataset:
        """The user's own data, loaded once: its sizes are known only from loading it."""
        name = recipe.data.name
        if name not in self._data:
            self._data[name] = load_data(recipe)
        return self._data[name]

    def _measure(self, recipe: Recipe) -> tuple[float, float]:
        """Seconds of a training step and of scoring an image."""
        device = choose_device(recipe.device)
        data = self._random(recipe).to(device)
        short = dataclasses.replace(
            recipe, epochs=1, data=dataclasses.replace(recipe.data, crop=0, flip=False, cutout=0)
        )
        one = dataclasses.replace(short.prune, begin="0it", end="1it", every="1it", events=1)
        short = dataclasses.replace(short, prune=one)
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)

        def now() -> float:
            """On a CPU the time that its threads had, so that other load does not count."""
            return time.process_time() / self._threads if device.type == "cpu" else time.perf_counter()

        try:
            with repeatable(self._threads):
                facts = DataFacts(data.shape, len(data.classes), len(data.train))
                setting = Setting(resolve(short, facts, device, choose_precision(recipe.precision, device)), data)
                network = make_network(short, data, device)
                if recipe.fuse:
                    fuse(network.model)
                phase = Phase("dense", setting, network, None).begin()
                steps = phase.train_epoch()
                next(steps)
                began = now()
                trained = sum(1 for _ in steps)
                step = (now() - began) / trained
                began = now()
                phase.validate("train")
                return step, (now() - began) / len(data.train)
        finally:
            torch.set_num_threads(before)

    def _random(self, recipe: Recipe) -> Dataset:
        name, generator = recipe.data.name, torch.Generator().manual_seed(0)
        count = (1 + _STEPS) * recipe.batch
        facts = datasets.facts_of(name)
        if facts is not None:
            shape, classes, frames = facts.shape, facts.classes, recipe.T if facts.time_first else 0
        else:
            own = self._own(recipe)
            shape, classes, frames = own.shape, len(own.classes), own.train.inputs.shape[0] if own.time_first else 0

        def split(images: int) -> Split:
            sizes = (frames, images, *shape) if frames else (images, *shape)
            pixels = torch.randint(0, 256, sizes, generator=generator).to(torch.uint8)
            return Split(pixels, torch.randint(0, classes, (images,), generator=generator), bool(frames))

        names = tuple(str(number) for number in range(classes))
        return Dataset(name, split(count), split(0), split(recipe.batch), names, scale=255.0, mean=(0.5,), std=(0.3,))
