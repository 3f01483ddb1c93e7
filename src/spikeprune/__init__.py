"""spikeprune: small, fast spiking neural networks.

    import spikeprune as sp
    pruner = sp.Pruner(model, sp.Criticality(regrow=0.2), sp.Cubic(to=0.95, begin=0, end=40_000, every=2_000))
    pruner.attach(optimizer)

Names are loaded when first used, so that `import spikeprune` costs nothing but itself.
"""

import importlib
from typing import TYPE_CHECKING, Any

from spikeprune import _moved

if TYPE_CHECKING:
    from spikeprune.core.mask import Masks as Masks
    from spikeprune.core.schedule import Constant as Constant
    from spikeprune.core.schedule import Cosine as Cosine
    from spikeprune.core.schedule import Cubic as Cubic
    from spikeprune.core.schedule import Geometric as Geometric
    from spikeprune.core.schedule import Linear as Linear
    from spikeprune.core.schedule import OneShot as OneShot
    from spikeprune.core.schedule import Until as Until
    from spikeprune.core.schedule import names as schedules  # noqa: F401
    from spikeprune.count.counts import Counts as Counts
    from spikeprune.count.counts import count as count
    from spikeprune.count.sensitivity import sensitivity as sensitivity
    from spikeprune.data import names as datasets  # noqa: F401
    from spikeprune.methods.criticality import Criticality as Criticality
    from spikeprune.methods.dense import Dense as Dense
    from spikeprune.methods.gradient import Gradient as Gradient
    from spikeprune.methods.magnitude import Magnitude as Magnitude
    from spikeprune.methods.random import Random as Random
    from spikeprune.methods.registry import names as methods  # noqa: F401
    from spikeprune.methods.shared.cited import cite as cite
    from spikeprune.prune.once import hold as hold
    from spikeprune.prune.once import prune as prune
    from spikeprune.prune.pruner import Pruner as Pruner
    from spikeprune.runtime.compile import CompiledSNN as CompiledSNN
    from spikeprune.runtime.compile import compile as compile
    from spikeprune.runtime.compile import load as load
    from spikeprune.runtime.fuse import fuse as fuse
    from spikeprune.runtime.fuse import unfuse as unfuse
    from spikeprune.runtime.interchange import export_nir as export_nir
    from spikeprune.runtime.interchange import export_onnx as export_onnx
    from spikeprune.shrink.plan import ChannelPlan as ChannelPlan
    from spikeprune.shrink.shrink import shrink as shrink
    from spikeprune.squeeze.squeeze import squeeze as squeeze
    from spikeprune.squeeze.table import Squeezed as Squeezed
    from spikeprune.upkeep.packed import load_packed as load_packed
    from spikeprune.upkeep.packed import save_packed as save_packed
    from spikeprune.zoo import build as model  # noqa: F401
    from spikeprune.zoo import names as models  # noqa: F401
    from spikeprune.zoo.pretrained import pretrained as pretrained

__version__ = "0.2.0"

_moved.install()

# Public name -> where it stands. Beside these every class of a registered method is public by its own name.
# `methods`, `shrink` and `squeeze` are packages too, which answer the call themselves.
_PUBLIC = {
    "ChannelPlan": "shrink.plan",
    "CompiledSNN": "runtime.compile",
    "Constant": "core.schedule",
    "Cosine": "core.schedule",
    "Counts": "count.counts",
    "Cubic": "core.schedule",
    "Geometric": "core.schedule",
    "Linear": "core.schedule",
    "Masks": "core.mask",
    "OneShot": "core.schedule",
    "Pruner": "prune.pruner",
    "Until": "core.schedule",
    "Squeezed": "squeeze.table",
    "cite": "methods.shared.cited",
    "compile": "runtime.compile",
    "count": "count.counts",
    "datasets": "data:names",
    "export_nir": "runtime.interchange",
    "export_onnx": "runtime.interchange",
    "fuse": "runtime.fuse",
    "hold": "prune.once",
    "load": "runtime.compile",
    "load_packed": "upkeep.packed",
    "methods": "methods.registry:names",
    "model": "zoo:build",
    "models": "zoo:names",
    "pretrained": "zoo.pretrained",
    "prune": "prune.once",
    "save_packed": "upkeep.packed",
    "schedules": "core.schedule:names",
    "sensitivity": "count.sensitivity",
    "shrink": "shrink.shrink",
    "squeeze": "squeeze.squeeze",
    "unfuse": "runtime.fuse",
}

__all__ = sorted(_PUBLIC)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        place, _, attribute = _PUBLIC[name].partition(":")
        value = getattr(importlib.import_module(f"spikeprune.{place}"), attribute or name)
    elif name[:1].isupper() and name in (classes := _method_classes()):
        value = classes[name]
    else:
        raise AttributeError(f"module 'spikeprune' has no attribute {name!r}")
    globals()[name] = value
    return value


def _method_classes() -> dict[str, type]:
    from spikeprune.methods.registry import classes

    return {cls.__name__: cls for cls in classes()}


def __dir__() -> list[str]:
    own = {name for name in globals() if name.startswith("__") and name.endswith("__")}  # as any module has
    return sorted({*own, *_PUBLIC, *_method_classes()})
