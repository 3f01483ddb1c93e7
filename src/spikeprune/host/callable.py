"""Packages that answer a call: a public function has the same name (docs/decisions/0003-callable-packages.md)."""

import importlib
import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    answer: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function()(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        """The signature of the function, which editors and notebooks show."""
        return inspect.signature(self._function())

    def _function(self) -> Callable[..., Any]:
        module, _, function = self.answer.partition(":")
        return getattr(importlib.import_module(module), function)


def answer_calls(package: str, answer: str) -> None:
    """Lets `package(...)` call the function at `answer`, "module:function".

    `sp.shrink` is a public function, and `spikeprune.shrink` is the package that holds it. Importing the package binds
    the name `shrink` of `spikeprune` to the package, so a call of the package has to run the function.
    """
    module = sys.modules[package]
    module.__class__ = _CallablePackage
    module.answer = answer  # type: ignore[attr-defined]
