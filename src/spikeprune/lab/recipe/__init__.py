"""Recipes: everything that decides the result of a run, as data.

`settings` has the keys, `validate` checks them, `read` reads YAML files and command lines, `hash` tells two runs apart,
`method` builds the method, `timetable` lays the phases out in steps, and `job` resolves all of it once for a run.
"""

from spikeprune.lab.recipe.hash import complete, deciding, file_digest, settings_hash
from spikeprune.lab.recipe.method import make_method
from spikeprune.lab.recipe.read import about, describe_keys, from_values, load, read_values, shipped
from spikeprune.lab.recipe.settings import DataSettings, OptimSettings, PruneSettings, Recipe

__all__ = ["DataSettings", "OptimSettings", "PruneSettings", "Recipe", "about", "complete", "deciding", "describe_keys"]
__all__ += ["file_digest", "from_values", "load", "make_method", "read_values", "settings_hash", "shipped"]
