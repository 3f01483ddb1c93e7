"""The method `squeeze` of a recipe: a dense training, `sp.squeeze`, and a training that holds its zeros.

With `weights` the network comes trained, and only what follows is done.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from spikeprune.lab.recipe.settings import Recipe, leaves
from spikeprune.squeeze.settings import SqueezeSettings

# Keys of the group that `sp.squeeze` does not take, or takes in another form.
_OTHERS = ("include", "masks", "seed", "tune", "targets")


def squeeze_settings(recipe: Recipe, masks: Mapping[str, Tensor] | None = None) -> SqueezeSettings:
    """The settings of `sp.squeeze` that a recipe asks for.

    Args:
        masks: the content of the masks file that the recipe names; None without one.
    Raises: InvalidValue or UnknownName for settings that do not go together.
    """
    options = recipe.squeeze
    values: dict[str, Any] = {
        entry.name: getattr(options, entry.name) for entry in leaves(type(options)) if entry.name not in _OTHERS
    }
    if recipe.floor is not None:
        values["floor"] = recipe.floor
    return SqueezeSettings(
        sparsity=recipe.sparsity,
        masks=masks,
        budget=recipe.budget,
        pattern=recipe.pattern,
        include=None if options.include is None else options.include.split(),
        exclude=None if recipe.exclude is None else recipe.exclude.split(),
        seed=squeeze_seed(recipe),
        **values,
    )


def squeeze_seed(recipe: Recipe) -> int:
    """The seed that calibration images and rows are drawn by."""
    return recipe.seed if recipe.squeeze.seed is None else recipe.squeeze.seed
