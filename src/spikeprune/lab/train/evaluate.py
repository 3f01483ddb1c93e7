"""Score a finished run once more: the same number as in its record."""

from dataclasses import dataclass
from pathlib import Path
from typing import final

from spikeprune.core.pattern import unit_of
from spikeprune.lab.train.code import NO_CODE, Code, recipe_of
from spikeprune.lab.train.device import choose_device, repeatable
from spikeprune.lab.train.folder import RunFolder
from spikeprune.lab.train.measure import score_test
from spikeprune.lab.train.parts import load_data, restore


@final
@dataclass(frozen=True)
class Evaluation:
    """The accuracy found now, beside what the record says: `recorded`, `sparsity`, and `alive` of `unit`s."""

    accuracy: float
    recorded: float
    loss: float
    images: int
    sparsity: float
    alive: int
    unit: str
    run: str


def evaluate(path: str | Path, root: str | None = None, device: str | None = None, code: Code = NO_CODE) -> Evaluation:
    """Accuracy of the run's network on its test images, from model.safetensors.

    The sums of a network depend on device and number of threads, and a spike more or less may follow; so the run's own
    are used unless `device` says otherwise.

    Args:
        root: where the data lies now, if not where the run found it.
        code: what the user says about the code that the folder names.
    Raises: UserError if the folder is no finished run, or a file in it is damaged.
    """
    folder = RunFolder.existing(path)
    record = folder.read_record()
    recipe = recipe_of(folder.path, root, code)
    data = load_data(recipe)
    where = choose_device(device or recipe.device)
    with repeatable(record.environment.threads):
        network = restore(folder, recipe, data.to(where), where)
        result = score_test(network, data, recipe, where)
    return Evaluation(
        accuracy=result.accuracy,
        recorded=record.accuracy,
        loss=result.loss,
        images=len(data.test),
        sparsity=record.sparsity,
        alive=record.pruned.alive,
        unit=unit_of(recipe.pattern),
        run=str(path),
    )
