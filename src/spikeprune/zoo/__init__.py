"""Networks of the recipes: ordinary SpikingJelly 2 models, to be read, run and changed.

`build(name)` makes one, `names()` lists them; `readout` holds the losses that go with them.
"""

from spikeprune.zoo import catalog as _catalog  # noqa: F401  (fills the registry)
from spikeprune.zoo.registry import build, names

__all__ = ["build", "names"]
