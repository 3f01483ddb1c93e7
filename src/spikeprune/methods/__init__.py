"""Pruning methods, one file each. `spikeprune.methods()` lists their names, so this package can be called."""

import sys
from types import ModuleType

from spikeprune.methods.registry import make_method, names, settings_of

__all__ = ["make_method", "names", "settings_of"]


class _Listing(ModuleType):
    # `sp.methods()` is the public list of names and `spikeprune.methods` the package that holds them: importing the
    # package binds that very name, so the module answers the call itself (docs/decisions/0003-callable-packages.md).
    def __call__(self) -> list[str]:
        """Sorted names of the pruning methods."""
        return names()


sys.modules[__name__].__class__ = _Listing
