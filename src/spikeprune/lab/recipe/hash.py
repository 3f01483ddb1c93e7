"""The identity of a run: its complete settings, the settings that decide the result, and their hash."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from spikeprune.core.errors import UserError
from spikeprune.host.files import ordinary
from spikeprune.lab.recipe.settings import GROUPS, Recipe
from spikeprune.lab.recipe.squeeze_settings import SQUEEZE, training_method
from spikeprune.lab.recipe.validate import shown
from spikeprune.record.base import Json

# They say where things stand, and change no number of the result. The rest decides.
_OUTSIDE = ("name", "out", "device", "weights", "tensorboard", "data.root", "data.download", "squeeze.masks")

# Keys that came after 0.1.0. At these values a run is what it was without them, so its hash is the same as well.
LATER: dict[str, Json] = {
    "data.mean": None,
    "data.std": None,
    "data.test_limit": None,
    "regrow_exclude": None,
    "sparse_kernels": False,
}


def complete(recipe: Recipe) -> dict[str, Json]:
    """The recipe as nested plain values, with the settings of its method filled in: what `recipe.yaml` holds."""
    values = dataclasses.asdict(recipe)
    values.update(values.pop("settings"))
    if recipe.method != SQUEEZE:
        del values["squeeze"]
    return values


def settings_hash(recipe: Recipe) -> str:
    """Ten hexadecimal digits that stand for every setting that can change a number of the result.

    Left out: where files stand (`out`, `data.root`, unless the folder is all that tells the data apart), the device,
    and settings that the chosen method does not use. A file of weights counts by its content, not its path.
    """
    from spikeprune import data
    from spikeprune.methods.registry import settings_of

    flat = deciding(complete(recipe))
    flat = {key: value for key, value in flat.items() if not (key in LATER and value == LATER[key])}
    if "regrow" not in settings_of(training_method(recipe.method)):
        del flat["regrow"], flat["regrow_schedule"]
    if recipe.data.root is not None and data.told_apart_by_root(recipe.data.name):
        flat["data.root"] = str(Path(recipe.data.root).resolve())
    if recipe.weights is not None:
        flat["weights content"] = file_digest(Path(recipe.weights))
    if recipe.method == SQUEEZE and recipe.squeeze.masks is not None:
        flat["squeeze.masks content"] = file_digest(Path(recipe.squeeze.masks))
    return hashlib.sha256(json.dumps(flat, sort_keys=True, default=str).encode()).hexdigest()[:10]


def deciding(settings: Mapping[str, Json]) -> dict[str, Json]:
    """The settings that can change a number of the result, with names `group.key`."""
    return {key: value for key, value in flatten(settings) if key not in _OUTSIDE}


def flatten(values: Mapping[str, Json], prefix: str = "") -> Iterator[tuple[str, Json]]:
    """Nested settings as pairs of `group.key` and value."""
    for key, value in values.items():
        if isinstance(value, dict) and not prefix and f"{key}." in GROUPS:
            yield from flatten(value, f"{key}.")
        else:
            yield f"{prefix}{key}", value


def file_digest(path: Path) -> str:
    """SHA-256 of a file. Raises: UserError if it cannot be read."""
    try:
        with ordinary(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(
            f"cannot read {shown(str(path))}: {error.strerror}; give the path of an existing file"
        ) from error
