"""Import paths of version 0.1 that moved: each still works for one version, with a warning that names the new path.

A finder at the front of `sys.meta_path` knows the old names. It must come before the finder of files: a moved folder
has a path, so `spikeprune.train.data.cifar` would otherwise be imported a second time, with classes of its own
(docs/decisions/0010-rooms.md).
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

# Old path below `spikeprune` -> new one. The longest match counts, so that single modules may leave their folder.
MOVED = {
    "core.callable": "host.callable",
    "core.counts": "count.formulas",
    "core.objects": "host.objects",
    "methods.lottery": "methods.shared.lottery",
    "pruner": "prune",
    "pruner.adapter": "model.adapter",
    "pruner.channels": "model.channel_values",
    "pruner.costs": "count.costs",
    "pruner.count": "count.counts",
    "pruner.groups": "model.groups",
    "pruner.prunable": "model.prunable",
    "pruner.table": "count.layers",
    "pruner.trace": "model.trace",
    "pruner.probe": "model.probe",
    "pruner.pattern": "core.pattern",
    "pruner.recorder": "model.observer",
    "pruner.rewind": "upkeep.rewind",
    "pruner.sensitivity": "count.sensitivity",
    "pruner.space": "prune.spaces.space",
    "pruner.update": "core.update",
    "pruner.upkeep": "upkeep.upkeep",
    "report": "lab.page",
    "study": "lab.study",
    "study.estimate": "lab.sweep.estimate",
    "study.findings": "lab.page.analysis",
    "study.page": "lab.page.comparison",
    "study.plots": "lab.page.charts",
    "study.statistics": "lab.study.significance",
    "study.sweep": "lab.sweep.sweep",
    "study.workers": "lab.sweep.workers",
    "train": "lab.train",
    "train.augment": "data.augment",
    "train.data": "data",
    "train.data.cifar": "data.formats.cifar",
    "train.data.files": "data.formats.files",
    "train.data.folder": "data.formats.folders",
    "train.data.idx": "data.formats.idx",
    "train.data.images": "data.formats.images",
    "train.packed": "record.packed",
    "train.plan": "lab.recipe.timetable",
    "train.statistics": "lab.train.layers",
    "train.recipe": "lab.recipe",
}


def new_path(name: str) -> str | None:
    """The new path of a module that has moved, else None.

    >>> new_path("spikeprune.pruner.adapter")
    'spikeprune.model.adapter'
    """
    head, _, rest = name.partition(".")
    if head != "spikeprune":
        return None
    parts = rest.split(".")
    for end in range(len(parts), 0, -1):
        old = ".".join(parts[:end])
        if old in MOVED:
            return ".".join(["spikeprune", MOVED[old], *parts[end:]])
    return None


class _Alias(importlib.abc.Loader):
    """Hands out the module at the new path under the old name."""

    def __init__(self, target: str) -> None:
        self.target = target
        self._spec: importlib.machinery.ModuleSpec | None = None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = importlib.import_module(self.target)
        self._spec = module.__spec__
        message = f"{spec.name} moved to {self.target}; the old path goes away in version 0.3"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has just put the old name there


class MovedFinder(importlib.abc.MetaPathFinder):
    """Import hook: an import of a module's path in version 0.1 gives the module at its new path."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec of the module at the new path, None for every name that did not move."""
        moved = new_path(fullname)
        if moved is None:
            return None
        return importlib.machinery.ModuleSpec(fullname, _Alias(moved), is_package=True)


def install() -> None:
    """Puts a `MovedFinder` first in `sys.meta_path`, unless there is one already."""
    if not any(isinstance(finder, MovedFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, MovedFinder())
