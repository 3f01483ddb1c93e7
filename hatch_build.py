"""Wheels with kernels: what `python -m spikeprune.runtime.native` built goes in, and makes the wheel this platform's.

Without libraries in `kernels/built/` the wheel is one for all platforms, which builds its kernels at first use.
"""

import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

BUILT = "src/spikeprune/runtime/kernels/built"


class Kernels(BuildHookInterface):
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        for library in sorted(Path(self.root, BUILT).glob("*.so")):
            build_data["force_include"][str(library)] = f"spikeprune/runtime/kernels/built/{library.name}"
            # A plain C interface loaded with ctypes: any Python will do, but only this platform.
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data.update(pure_python=False, tag=f"py3-none-{platform}")
