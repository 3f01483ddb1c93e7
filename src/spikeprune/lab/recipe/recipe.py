"""A recipe: everything that decides the result of a run, as data.

A recipe is a YAML file or the name of a shipped one; `--key value` overrides any key. The keys are the fields of the
frozen dataclasses below (`data.`, `optim.` and `prune.` group some of them) and the settings of the registered
methods, such as `--unit synapse`. Unknown keys and names are refused, with the nearest known one.
"""

import dataclasses
import functools
import hashlib
import importlib.resources
import json
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

import yaml

from spikeprune.core.errors import InvalidValue, UserError, unknown
from spikeprune.core.schedule import Constant, Until, duration

if TYPE_CHECKING:
    from spikeprune.methods.base import Method


@final
@dataclass(frozen=True)
class DataSettings:
    """What the network learns from.

    Args:
        name: a dataset (`spikeprune list datasets`) or your own `package.module:loaders`
        root: folder that holds the files; without it SPIKEPRUNE_DATA
        limit: number of training images to take; all of them if null (the test split is always whole)
        download: let the ecosystem's own loader fetch missing files
        validation: share of the training images held out to choose among epochs; 0 takes the last epoch
        crop: pixels of padding for random crops
        flip: flip left and right at random
        cutout: side of the square that is blanked, in pixels
    """

    name: str = "digits"
    root: str | None = None
    limit: int | None = None
    download: bool = False
    validation: float = 0.1
    crop: int = 0
    flip: bool = False
    cutout: int = 0

    def __post_init__(self) -> None:
        _check_types(self, "data.")
        _require(self.limit is None or self.limit >= 1, "data.limit", "a whole number of at least 1", self.limit)
        _require(0 <= self.validation < 1, "data.validation", "a share in [0, 1)", self.validation)
        _require(self.crop >= 0, "data.crop", "0 or more pixels", self.crop)
        _require(self.cutout >= 0, "data.cutout", "0 or more pixels", self.cutout)


@final
@dataclass(frozen=True)
class OptimSettings:
    """The optimizer; its learning rate is the recipe's `lr`.

    Args:
        name: sgd or adamw
        momentum: of SGD
        weight_decay: L2 for sgd, decoupled for adamw
        decay: how the learning rate falls to the end of training
        stepping: change the learning rate every epoch (as the paper's authors) or every step
        milestones: for `decay: step`, shares of the training after which the rate is multiplied by `drop`
        drop: factor at each milestone
        slim: L1 pull on the scales of normalisation until the network is pruned (network slimming)
    """

    name: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    decay: Literal["cosine", "step", "constant"] = "cosine"
    stepping: Literal["epoch", "step"] = "step"
    milestones: list[float] = field(default_factory=lambda: [0.5, 0.75])
    drop: float = 0.1
    slim: float = 0.0

    def __post_init__(self) -> None:
        _check_types(self, "optim.")
        _require(self.slim >= 0, "optim.slim", "0 or more", self.slim)
        _require(0 <= self.momentum < 1, "optim.momentum", "in [0, 1)", self.momentum)
        _require(self.weight_decay >= 0, "optim.weight_decay", "0 or more", self.weight_decay)
        inside = all(isinstance(m, int | float) and 0 < m < 1 for m in self.milestones)
        _require(inside, "optim.milestones", "shares of the training in (0, 1)", self.milestones)
        _require(0 < self.drop <= 1, "optim.drop", "a factor in (0, 1]", self.drop)


@final
@dataclass(frozen=True)
class PruneSettings:
    """When, during training, the network is pruned.

    Args:
        schedule: how sparsity rises from event to event
        begin: when it starts to rise; the first event comes one `every` later
        end: when it has arrived, at the latest
        every: distance of two events; `0.5turnover` is half the time in which a weight turns over (as for end, begin)
        events: at least so many events: `every` is shortened where needed
        initial: sparsity that the schedule rises from (not constant or oneshot); that of a random start mask
        finetune: prune channels once, by all training images, then train the small network so long; null: in training
    """

    schedule: Literal["cubic", "linear", "cosine", "constant", "oneshot"] = "cubic"
    begin: str = "0ep"
    end: str = "10ep"
    every: str = "1ep"
    events: int = 1
    initial: float = 0.0
    finetune: str | None = None

    def __post_init__(self) -> None:
        _check_types(self, "prune.")
        for name in ("begin", "end", "every", "finetune"):
            try:
                if getattr(self, name) is not None:
                    duration(getattr(self, name), 1, 1.0)
            except InvalidValue as error:
                raise InvalidValue(f"prune.{name}: {error}") from error
        _require(self.events >= 1, "prune.events", "a whole number of at least 1", self.events)
        _require(0 <= self.initial < 1, "prune.initial", "a sparsity in [0, 1)", self.initial)


@final
@dataclass(frozen=True)
class Recipe:
    """All settings of one run.

    Args:
        name: name of the recipe; the run folder starts with it
        method: what is pruned and regrown (`spikeprune list methods`)
        sparsity: share of the prunable weights (or channels) that is 0 at the end, in [0, 1)
        regrow: share of the kept weights that is regrown at an event
        regrow_schedule: `decay` to 0 at the last event, `constant` as in the paper, or `early`: none in the last fifth
        allocate: how the sparsity is spread over layers
        pattern: what is cut: weight, channel, gate, or N:M such as 2:4
        budget: what the sparsity is a share of
        floor: share of each layer that is never cut; null for the Pruner's own
        exclude: layers that stay dense, such as `head` or `stem.*`; names or patterns, several with spaces between
        start: dense, or a random start mask for training that is never dense, spread as `allocate` or as erk says
        epochs: the whole length of the pruned run, and of the dense one; the phases scale with it
        seed: of initial weights, data order, augmentation and draws
        T: time steps
        batch: images per step
        lr: learning rate at the start
        precision: auto takes bf16 only where the processor computes it natively
        device: auto, cpu, cuda, ...
        fuse: train with BatchNorm and neuron in one kernel where that can be; the same network, in less time and memory
        model: a zoo network (`spikeprune list models`) or your own `package.module:build`
        weights: file of a trained network to start from
        loss: how the outputs over time become a loss; auto takes what the zoo network is meant for, else mean
        baseline: train the dense network as well, for as many epochs, from the same weights
        out: folder that receives the run folder
        tensorboard: write TensorBoard events into the run folder
        data: what the network learns from
        optim: the optimizer
        prune: when the network is pruned
        settings: further settings of the method, such as `unit` and `curve` of criticality
    """

    name: str = "custom"
    method: str = "criticality"
    sparsity: float = 0.95
    regrow: float = 0.2
    regrow_schedule: Literal["decay", "constant", "early"] = "decay"
    allocate: Literal["global", "uniform", "erk", "lamp"] = "global"
    pattern: str = "weight"
    budget: Literal["weights", "parameters", "macs", "synops"] = "weights"
    floor: float | None = None
    exclude: str | None = None
    start: Literal["dense", "random", "erk"] = "dense"
    epochs: int = 20
    seed: int = 0
    T: int = 4
    batch: int = 128
    lr: float = 0.1
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    device: str = "auto"
    fuse: bool = True
    model: str = "digits-conv"
    weights: str | None = None
    loss: Literal["auto", "mean", "mean-over-T", "per-step"] = "auto"
    baseline: bool = False
    out: str = "runs"
    tensorboard: bool = False
    data: DataSettings = field(default_factory=DataSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    prune: PruneSettings = field(default_factory=PruneSettings)
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_types(self, "")
        plain = bool(self.name) and all(c.isalnum() or c in "-_." for c in self.name) and self.name[0].isalnum()
        _require(plain, "name", "letters, digits, '-', '_' and '.'", self.name)
        if not 0 <= self.sparsity < 1:
            hint = f"; for {self.sparsity:g} % pass {self.sparsity / 100:g}" if 1 < self.sparsity < 100 else ""
            raise InvalidValue(f"sparsity must be in [0, 1), got {self.sparsity:g}{hint}")
        _require(0 <= self.regrow < 1, "regrow", "a share in [0, 1)", self.regrow)
        _require(self.floor is None or 0 <= self.floor < 1, "floor", "a share in [0, 1)", self.floor)
        for name in ("epochs", "T", "batch"):
            _require(getattr(self, name) >= 1, name, "a whole number of at least 1", getattr(self, name))
        _require(0 <= self.seed < 2**63, "seed", "a whole number of at least 0", self.seed)
        _require(self.lr > 0, "lr", "a learning rate above 0", self.lr)
        if self.prune.finetune is not None and self.pattern not in ("channel", "gate"):
            raise InvalidValue(
                f"prune.finetune trains a physically shrunk network, so it needs --pattern channel or gate, got "
                f"{self.pattern!r}; with prune.finetune null the network is pruned during training"
            )


def shipped() -> list[str]:
    """Names of the recipes that come with the package, sorted."""
    folder = importlib.resources.files("spikeprune") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load(source: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe named `source`, or read from the YAML file `source`, with `--key value` overrides applied.

    Where `epochs` is overridden, the phases that are not overridden themselves scale with it, so that the recipe
    keeps its shape: 200 of 500 epochs become 0.4 of 1. A method may set keys (`RecipeHints.defaults`), such as
    `start: random`: they fill what the recipe leaves open, and what it says for the sake of another method.

    Raises: UnknownName for an unknown recipe, key, method, model or dataset; InvalidValue for a value outside what is
        allowed.
    """
    return from_values(*read_values(source), overrides)


def from_values(name: str, values: Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of that name from flat `group.key` values, with overrides as in `load`, and its errors."""
    written, given = dict(values), _pairs(overrides)
    _refuse_unknown([*written, *given])
    set_by_method = _method_defaults(written, given)
    written |= set_by_method
    before = _build(written, {}, name)
    recipe = _build(written, given, name)
    if recipe.epochs != before.epochs:
        factor = Fraction(recipe.epochs, before.epochs)
        fixed = {*given, *set_by_method}
        phases = [part for part in ("begin", "end", "every", "finetune") if f"prune.{part}" not in fixed]
        lengths = {part: getattr(recipe.prune, part) for part in phases}
        scaled = {part: _scaled(text, factor) for part, text in lengths.items() if text is not None}
        recipe = dataclasses.replace(recipe, prune=dataclasses.replace(recipe.prune, **scaled))
    _check_names(recipe)
    recipe = dataclasses.replace(recipe, settings=_own_settings(recipe), weights=_absolute(recipe.weights))
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, root=_absolute(recipe.data.root)))
    make_method(recipe)
    return recipe


def _method_defaults(written: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, Any]:
    """What the chosen method sets: all of it if the recipe was written for another one, else what it leaves open."""
    from spikeprune.methods import names
    from spikeprune.methods.registry import hints_of

    meant = written.get("method", Recipe.method)
    chosen = given.get("method", meant)
    if chosen not in names():  # refused later, with the nearest name
        return {}
    return {key: value for key, value in hints_of(chosen).defaults.items() if chosen != meant or key not in written}


def _absolute(path: str | None) -> str | None:
    """So that a recorded path still leads there from another working folder."""
    return None if path is None else str(Path(path).expanduser().resolve())


def make_method(recipe: Recipe) -> "Method":
    """The recipe's method, with those settings that it has.

    Raises: InvalidValue for a setting outside what the method allows.
    """
    from spikeprune import methods

    share = recipe.regrow
    regrow = {"decay": share, "constant": Constant(share), "early": Until(initial=share)}[recipe.regrow_schedule]
    return methods.make_method(recipe.method, regrow=regrow, **recipe.settings)


def _own_settings(recipe: Recipe) -> dict[str, Any]:
    """The settings that only the recipe's method has, defaults filled in; those of other methods are dropped."""
    from spikeprune.methods import settings_of

    own: dict[str, Any] = {}
    for key, default in settings_of(recipe.method).items():
        if key not in _leaves(Recipe):
            value = recipe.settings.get(key, default)
            if default is not None and not _fits(value, type(default)):
                raise InvalidValue(f"{key} must be {_spelled(type(default))}, got {value!r} (method {recipe.method})")
            own[key] = value
    return own


def _scaled(text: str, factor: Fraction) -> str:
    """The duration times `factor`; what counts steps stays a whole number of them, at least 1 unless it is 0.

    The time in which a weight turns over does not depend on the length of training, so it stays.
    """
    if text.strip().endswith("turnover"):
        return text
    amount, unit = Fraction(text.strip()[:-2].strip()), text.strip()[-2:]
    longer = amount * factor
    if unit == "it" and amount:
        longer = Fraction(max(1, round(longer)))
    return f"{float(longer):.10g}{unit}"


def _check_names(recipe: Recipe) -> None:
    """Refuse an unknown method, model or dataset, naming the nearest known one.

    `package.module:function` stands for the user's own model or data, and is looked up when it is needed.
    """
    from spikeprune import data, methods, zoo

    if recipe.method not in methods.names():
        raise unknown("method", recipe.method, methods.names(), "(`spikeprune list methods` lists all)")
    if ":" not in recipe.model and recipe.model not in zoo.names():
        raise unknown(
            "model", recipe.model, zoo.names(), "(`spikeprune list models` lists all; or package.module:build)"
        )
    if ":" not in recipe.data.name and recipe.data.name not in data.names():
        raise unknown(
            "dataset", recipe.data.name, data.names(), "(`spikeprune list datasets`; or package.module:loaders)"
        )


def complete(recipe: Recipe) -> dict[str, Any]:
    """The recipe as nested plain values, with the settings of its method filled in: what `recipe.yaml` holds."""
    values = dataclasses.asdict(recipe)
    values.update(values.pop("settings"))
    return values


def settings_hash(recipe: Recipe) -> str:
    """Ten hexadecimal digits that stand for every setting that can change a number of the result.

    Left out: where files stand (`out`, `data.root`, unless the folder is all that tells the data apart), the device,
    and settings that the chosen method does not use. A file of weights counts by its content, not its path.
    """
    from spikeprune import data

    flat = deciding(complete(recipe))
    if not hasattr(make_method(recipe), "regrow"):
        del flat["regrow"], flat["regrow_schedule"]
    if recipe.data.root is not None and data.told_apart_by_root(recipe.data.name):
        flat["data.root"] = str(Path(recipe.data.root).resolve())
    if recipe.weights is not None:
        flat["weights content"] = file_digest(Path(recipe.weights))
    return hashlib.sha256(json.dumps(flat, sort_keys=True, default=str).encode()).hexdigest()[:10]


def deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the nested `settings` that can change a number of the result, as `group.key`."""
    outside = ("name", "out", "device", "weights", "tensorboard", "data.root", "data.download")
    return {key: value for key, value in _flatten(settings) if key not in outside}


def file_digest(path: Path) -> str:
    """SHA-256 of a file. Raises: UserError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give the path of an existing file") from error


def describe_keys() -> list[tuple[str, str, str]]:
    """Every key with its type and its meaning, for `spikeprune run --help`."""
    rows: list[tuple[str, str, str]] = []
    for prefix, cls in _GROUPS.items():
        meaning = dict(re.findall(r"^ {8}(\w+): (.+)$", cls.__doc__ or "", re.MULTILINE))
        hints = typing.get_type_hints(cls)
        rows += [(prefix + leaf, _spelled(hints[leaf]), meaning[leaf]) for leaf in _leaves(cls)]
    return rows + [(key, "", f"setting of {', '.join(users)}") for key, users in sorted(_method_settings().items())]


_GROUPS: dict[str, Any] = {"": Recipe, "data.": DataSettings, "optim.": OptimSettings, "prune.": PruneSettings}


def _leaves(cls: Any) -> list[str]:
    return [entry.name for entry in dataclasses.fields(cls) if entry.name not in ("data", "optim", "prune", "settings")]


def _method_settings() -> dict[str, list[str]]:
    """Settings that only methods have -> the methods that have them."""
    from spikeprune.methods import names

    return _method_settings_of(tuple(names()))


@functools.cache
def _method_settings_of(methods: tuple[str, ...]) -> dict[str, list[str]]:
    from spikeprune.methods import settings_of

    found: dict[str, list[str]] = {}
    for method in methods:
        for setting in settings_of(method):
            if setting not in _leaves(Recipe):
                found.setdefault(setting, []).append(method)
    return found


def _refuse_unknown(given: Sequence[str]) -> None:
    known = [prefix + leaf for prefix, cls in _GROUPS.items() for leaf in _leaves(cls)]
    known += _method_settings()
    for key in given:
        if key not in known:
            raise unknown("setting", key, known, "(`spikeprune run --help` lists all)")


def read_values(source: str) -> tuple[str, dict[str, Any]]:
    """Name and flat `group.key` values of a recipe, unchecked. Raises: UserError if there is no such recipe."""
    path = Path(source)
    if source in shipped():
        text = (importlib.resources.files("spikeprune") / "recipes" / f"{source}.yaml").read_text(encoding="utf-8")
    elif path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the recipe {source}: {error}; a recipe is a YAML text file") from error
    elif path.suffix in (".yaml", ".yml"):
        raise UserError(f"no recipe file {source}; `spikeprune list recipes` names those that are shipped")
    else:
        raise unknown("recipe", source, shipped(), "(`spikeprune list recipes` lists all; a YAML file works too)")
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        first = str(error).splitlines()[0]
        raise UserError(f"the recipe {source} is not valid YAML: {first}; write one `key: value` a line") from error
    if not isinstance(values, dict):
        raise UserError(f"the recipe {source} holds no `key: value` lines; see `spikeprune list recipes` for examples")
    return path.stem if path.suffix else source, dict(_flatten(values))


def _flatten(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and not prefix and f"{key}." in _GROUPS:
            yield from _flatten(value, f"{key}.")
        else:
            yield f"{prefix}{key}", value


def _pairs(arguments: Sequence[str]) -> dict[str, str]:
    """`--key value` and `--key=value` as a mapping."""
    pairs: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise UserError(f"expected --key value, got {word!r}; keys are given as --epochs 5 or --epochs=5")
        key, equals, text = word.removeprefix("--").partition("=")
        _refuse_unknown([key])
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UserError(f"--{key} needs a value after it, as in --{key} VALUE")
            text = rest.pop(0)
        pairs[key] = text
    return pairs


@functools.cache
def _parser() -> Any:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False, add_help=False)
    for prefix, cls in _GROUPS.items():
        skip: set[str | int] = {"data", "optim", "prune", "settings"} if cls is Recipe else set()
        parser.add_class_arguments(cls, prefix[:-1] or None, skip=skip)
    return parser


def _build(written: Mapping[str, Any], given: Mapping[str, str], name: str) -> Recipe:
    """The recipe from the flat values of its file and from the command line's, which win."""
    from jsonargparse import ArgumentError

    own = _method_settings()
    nested: dict[str, Any] = {"name": name}
    for key, value in written.items():
        if key not in own:
            group, _, leaf = key.rpartition(".")
            (nested.setdefault(group, {}) if group else nested)[leaf] = value
    try:
        parsed = _parser().parse_object(nested)
        words = [f"--{key}={text}" for key, text in given.items() if key not in own]
        values: dict[str, Any] = _parser().parse_args(words, namespace=parsed).as_dict()
    except ArgumentError as error:
        raise _wrong_value(str(error), {**written, **given}) from error
    groups = {prefix[:-1]: cls(**values.pop(prefix[:-1])) for prefix, cls in _GROUPS.items() if prefix}
    settings = {key: value for key, value in written.items() if key in own}
    settings |= {key: _scalar(value) for key, value in given.items() if key in own}
    return Recipe(**values, **groups, settings=settings)


def _scalar(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _wrong_value(message: str, values: Mapping[str, Any]) -> UserError:
    """jsonargparse's complaint of several lines as one line of ours."""
    found = re.search(r'Parser key "([^"]+)"', message)
    key = found[1] if found else next((key for key in values if f"--{key}" in message), "")
    group, _, leaf = key.rpartition(".")
    cls = _GROUPS.get(f"{group}." if group else "")
    if cls is None or leaf not in _leaves(cls):
        return InvalidValue(f"a value of the recipe is wrong: {' '.join(message.split())[:200]}")
    return InvalidValue(f"{key} must be {_spelled(typing.get_type_hints(cls)[leaf])}, got {str(values.get(key))!r}")


def _require(holds: bool, key: str, allowed: str, value: object) -> None:
    if not holds:
        raise InvalidValue(f"{key} must be {allowed}, got {value!r}; `spikeprune run --help` explains each key")


def _check_types(settings: Any, prefix: str) -> None:
    for key, kind in typing.get_type_hints(type(settings)).items():
        value = getattr(settings, key)
        if not _fits(value, kind):
            raise InvalidValue(f"{prefix}{key} must be {_spelled(kind)}, got {value!r}")


def _fits(value: object, kind: Any) -> bool:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(kind))
    if typing.get_origin(kind) is Literal:
        return value in typing.get_args(kind)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, typing.get_origin(kind) or kind)


_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}


def _spelled(kind: Any) -> str:
    """A type in words: `int | None` is "a whole number or null"."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(_spelled(option) for option in typing.get_args(kind))
    if typing.get_origin(kind) is Literal:
        return " or ".join(map(str, typing.get_args(kind)))
    return _WORDS.get(kind, "a list of numbers")
