"""The operations of a compiled network, one file each: recognised, lowered, computed, priced, run natively, exported.

A new operation is a new file in this folder (and, if it has a kernel of its own, one `engine_<name>.cpp` beside the
others); every file here is imported and registers itself. `base.Operation` says what it may define.
"""

import importlib
import pkgutil

from spikeprune.runtime.compile.ops.base import Operation, operation, operations

for _found in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_found.name}")

__all__ = ["Operation", "operation", "operations"]
