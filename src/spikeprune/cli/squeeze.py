"""Make a trained network small without labels or training: a run folder like any other."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spikeprune.cli._terminal import show
from spikeprune.core.errors import InvalidValue, UserError, unknown
from spikeprune.record.base import Json

if TYPE_CHECKING:
    from spikeprune.record.run import RunRecord

_HELP = """usage: spikeprune squeeze RUN [--key value ...]
       spikeprune squeeze --model NAME [--weights FILE] [--data.name NAME]
                          [--data.root FOLDER] [--key value ...]

Cuts most weights of a trained network and solves the remaining ones again, so
that each layer still computes what it did: no labels, no training. Calibration
images are drawn from the training split. The test split is scored once for the
dense and once for the squeezed network.

RUN is a run folder, or a name of `spikeprune list pretrained`. --model is a zoo
network, a pretrained one, or your own `package.module:build`; --weights is its
state_dict (safetensors, or a checkpoint that is read weights-only).
The last line of the output is the folder of the squeezed network. `eval`,
`bench`, `shrink`, `export`, `report`, `compare` and `verify` take it. The same
command again prints the folder. A squeeze that was stopped starts anew.

With a RUN, the keys that are not given are those of the run, except --sparsity,
--epochs and --lr.

examples:
  spikeprune squeeze digits --sparsity 0.8        a network that comes trained
  spikeprune squeeze runs/digits-81ff6b346a --network dense --sparsity 0.9
  spikeprune squeeze --model mynets:build --weights trained.pt \\
                     --data.name cifar10 --data.root DIR --T 4
"""
# Keys of every recipe that make sense here, beside those of the group `squeeze.`, which are given by their own names.
_SHARED = ("model", "weights", "sparsity", "T", "batch", "budget", "pattern", "floor", "exclude", "device", "out")
_SHARED += ("epochs", "lr", "loss", "fuse")
_DATA = ("data.name", "data.root", "data.limit", "data.test_limit", "data.validation", "data.download")
_NETWORKS = ("pruned", "dense")


def main(arguments: Sequence[str]) -> int:
    words = list(arguments)
    if not words or "--help" in words or "-h" in words:
        _help()
        if words:
            return 0
        raise InvalidValue("squeeze needs a run folder, or --model with --weights; see `spikeprune squeeze --help`")
    trust = "--trust" in words
    words = [word for word in words if word != "--trust"]
    run = None if not words or words[0].startswith("--") else words.pop(0)
    given = _pairs(words)
    from spikeprune.lab.recipe import from_values

    name, values = _base(run, given, trust)
    overrides = [word for key, text in given.items() for word in (f"--{_recipe_key(key)}", text)]
    recipe = from_values(name, values, overrides)
    from spikeprune.lab.page import write_report
    from spikeprune.lab.train.squeeze_run import run_squeeze

    folder = run_squeeze(recipe)
    if not folder.report.is_file():
        write_report(folder.path)
    record = folder.read_record()
    show([*summary(record), *_other_data(record)], hang=10)
    print(folder.path)
    return 0


def _other_data(record: "RunRecord") -> list[str]:
    """One warning if a pretrained network was squeezed with other data than it was trained on; else an empty list."""
    from spikeprune.zoo.pretrained import card, file_of, names

    weights = record.settings.extra.get("weights")
    cards = [card(name) for name in names() if str(file_of(name)) == weights]
    if all(found.data_checksum == record.data.checksum for found in cards):
        return []
    return ["note      the data here is not the data that the network was trained on: pixels or labels differ"]


def summary(record: "RunRecord") -> list[str]:
    """The result of a squeeze run as a few lines: accuracy, operations, agreement of spikes, and seconds."""
    entry, dense, pruned = record.squeeze, record.dense, record.pruned
    assert entry is not None
    images = f"{record.data.counts['test']:,} test images"
    agreement = sum(n.equal for n in entry.neurons.values()) / max(1, len(entry.neurons))
    tuned = []
    if record.stages is not None:
        squeezed = f"squeezed  accuracy {record.stages.pruned:.2%}"
        tuned = [f"{squeezed}  before {entry.tuned_epochs} epochs of training with its zeros held"]
    lines = [
        f"dense     accuracy {dense.accuracy or 0:.2%}  {dense.synops:,.0f} synaptic operations an image",
        *tuned,
        f"{'tuned   ' if tuned else 'squeezed'}  accuracy {record.accuracy:.2%}  "
        f"{pruned.synops:,.0f} synaptic operations an image  "
        f"sparsity {record.sparsity:.4f} ({pruned.alive:,} of {dense.alive:,} weights alive)",
        f"spikes    {agreement:.2%} as in the dense network, mean over {len(entry.neurons)} neuron layers  "
        f"({entry.images:,} calibration images; {images})",
        f"seconds   {entry.seconds:.1f} ({entry.cpu_seconds:.1f} of CPU): "
        + ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in entry.phases.items()),
    ]
    return lines


def _help() -> None:
    from spikeprune.lab.recipe.help import key_lines, written

    lines = [_HELP, "The network and how it is squeezed:", "  --network  pruned or dense; default pruned"]
    lines += ["      which network of a RUN with a baseline is squeezed", "  --trust"]
    lines += ["      run the Python code that a RUN names; or name it with --model, --data.name"]
    ours = {key: written(value) for key, value in _settings().items()}
    for key in _keys():
        lines += key_lines(_recipe_key(key), key, ours.get(key))
    print("\n".join(lines))


def _options() -> list[str]:
    from spikeprune.lab.recipe.squeeze_settings import SqueezeOptions

    return [entry.name for entry in dataclasses.fields(SqueezeOptions)]


def _keys() -> list[str]:
    return [*_SHARED, *_DATA, *_options()]


def _recipe_key(key: str) -> str:
    """The key of a recipe that a flag stands for: `--images` is `squeeze.images`."""
    return f"squeeze.{key}" if key in _options() else key


def _pairs(words: Sequence[str]) -> dict[str, str]:
    """`--key value` and `--key=value` as a mapping.

    Raises: UserError for a word of another form, a key that `squeeze` does not know, or a key without a value.
    """
    pairs: dict[str, str] = {}
    rest = list(words)
    known = [*_keys(), "network"]
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise InvalidValue(
                f"expected --key value, got {word[:80]!r}; one run folder comes first, then keys such as --sparsity 0.9"
            )
        key, equals, text = word.removeprefix("--").partition("=")
        key = key.replace("-", "_")  # --regrow-schedule is the key regrow_schedule
        if key not in known:
            raise unknown("setting", key, known, "(`spikeprune squeeze --help` lists all)")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise InvalidValue(f"--{key} needs a value after it, as in --{key} VALUE")
            text = rest.pop(0)
        pairs[key] = text
    return pairs


def _base(run: str | None, given: dict[str, str], trust: bool) -> tuple[str, dict[str, Json]]:
    """Name and flat values of the recipe that the keys change. Removes from `given` what is no recipe key."""
    from spikeprune.zoo.pretrained import names

    network = given.pop("network", _NETWORKS[0])
    if network not in _NETWORKS:
        raise InvalidValue(f"--network must be pruned or dense, got {network[:40]!r}")
    if run is not None and "model" in given and ":" not in given["model"]:
        raise InvalidValue(f"give a run folder or --model, not both: {run[:80]!r} and --model {given['model'][:40]}")
    chosen = run if run is not None else given.get("model")
    if chosen in names() and "weights" not in given and not Path(chosen).exists():
        given.pop("model", None)
        return _of_card(chosen)
    if run is not None:
        _refuse_misspelt(run)
        return _of_run(run, network, given, trust)
    if chosen is None:
        raise InvalidValue("squeeze needs a run folder, or --model with --weights; see `spikeprune squeeze --help`")
    if "weights" not in given:
        raise InvalidValue(
            f"--model {chosen[:60]} needs --weights FILE, a trained state_dict; `spikeprune list pretrained` names "
            "networks that come with weights"
        )
    if "data.name" not in given:
        raise InvalidValue(
            "squeeze needs --data.name, the data that the network was trained on; `spikeprune list datasets` lists all"
        )
    return f"{chosen.replace(':', '.')}-squeezed", _settings()


def _settings() -> dict[str, Json]:
    """The settings that all squeezes from the command line share."""
    return {"method": "squeeze", "sparsity": 0.95, "epochs": 1, "lr": 0.01, "baseline": False, "start": "dense"}


def _of_card(name: str) -> tuple[str, dict[str, Json]]:
    """Recipe name and values for a pretrained network, taken from its card."""
    from spikeprune.zoo.pretrained import card, file_of

    found = card(name)
    own = {
        "model": found.model,
        "weights": str(file_of(name)),
        "T": found.T,
        "data.name": found.data,
        "data.validation": found.validation,
        "batch": 250,
    }
    return f"{name}-squeezed", {**_settings(), **own}


def _refuse_misspelt(run: str) -> None:
    """Raises: UnknownName for a word that is no folder but nearly a name of `spikeprune list pretrained`."""
    from spikeprune.zoo.pretrained import names

    if not Path(run).exists() and difflib.get_close_matches(run, names(), n=1, cutoff=0.6):
        raise unknown("run folder or pretrained network", run, names(), "(`spikeprune list pretrained` lists all)")


def _of_run(run: str, network: str, given: Mapping[str, str], trust: bool) -> tuple[str, dict[str, Json]]:
    """Recipe name and values for the network of a finished run, with the run's own settings."""
    from spikeprune.lab.recipe import read_values
    from spikeprune.lab.train.code import Code, recipe_of
    from spikeprune.lab.train.folder import RunFolder

    folder = RunFolder.existing(run)
    record = folder.read_record()
    weights = folder.model if network == "pruned" else folder.dense
    if record.channels is not None and network == "pruned":
        raise UserError(
            f"the network in {run} is smaller than its model, since channels were cut out, and cannot be squeezed yet; "
            "take a run of --pattern weight, or --network dense"
        )
    if not weights.is_file():
        if record.sparsity == 0:
            raise UserError(f"the network in {run} is itself dense; leave --network dense out")
        raise UserError(f"{run} holds no {weights.name}; a run with --baseline true keeps its dense network")
    recipe_of(folder.path, code=Code(trust, given.get("model"), given.get("data.name")))  # for its refusal
    _, values = read_values(str(folder.recipe))
    for key in [key for key in values if key.startswith(("squeeze.", "prune."))]:
        del values[key]
    name = record.name if record.name.endswith(("-squeezed", "-squeeze")) else f"{record.name}-squeezed"
    return name, {**values, **_settings(), "name": name, "weights": str(weights), "pattern": "weight"}
