"""The settings of a run as frozen dataclasses: the keys of a recipe, with their meanings, choices and rules."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, final

from spikeprune.core.allocate import ALLOCATIONS
from spikeprune.core.errors import InvalidValue
from spikeprune.core.pattern import CHANNEL_PATTERNS
from spikeprune.core.schedule import duration
from spikeprune.count.costs import BUDGETS
from spikeprune.lab.recipe.squeeze_settings import SqueezeOptions
from spikeprune.lab.recipe.validate import Rule, check_fields, key, require, said, share, whole
from spikeprune.record.base import Json

# Those of core.schedule.SCHEDULES that a recipe's `begin`, `end` and `every` can lay out.
LAID_OUT = ("cubic", "linear", "cosine", "constant", "oneshot")
REGROW_SCHEDULES = ("decay", "constant", "early")
_MANY = 10**9
_AT_LEAST_1 = whole(1, _MANY, "a whole number of at least 1")
_NOT_NEGATIVE = Rule("0 or more", lambda value: value >= 0)


@final
@dataclass(frozen=True)
class DataSettings:
    """Settings of the data that the network is trained on."""

    name: str = key("digits", "a dataset (`spikeprune list datasets`) or your own `package.module:loaders`")
    root: str | None = key(None, "folder that holds the files; without it SPIKEPRUNE_DATA")
    limit: int | None = key(
        None,
        "number of training images to take; all of them if null (test images: data.test_limit)",
        rule=_AT_LEAST_1,
    )
    test_limit: int | None = key(
        None,
        "number of test images to score while you try things; null, for results: all of them",
        rule=_AT_LEAST_1,
    )
    download: bool = key(False, "let the ecosystem's own loader fetch missing files")
    validation: float = key(
        0.1, "share of the training images held out to choose among epochs; 0 takes the last epoch", rule=share()
    )
    mean: list[float] | None = field(
        default=None,
        metadata=said(
            "of each input channel, or one for all, for normalisation; null: as the data gives or measures it"
        ),
    )
    std: list[float] | None = field(
        default=None,
        metadata=said(
            "the standard deviation, likewise",
            rule=Rule("numbers above 0", lambda values: values is None or all(value > 0 for value in values)),
        ),
    )
    crop: int = key(0, "pixels of padding for random crops", rule=whole(0, 256, "0 or more pixels, at most 256"))
    flip: bool = key(False, "flip left and right at random")
    cutout: int = key(
        0, "side of the square that is blanked, in pixels", rule=whole(0, 4096, "0 or more pixels, at most 4096")
    )

    def __post_init__(self) -> None:
        check_fields(self, "data.")


@final
@dataclass(frozen=True)
class OptimSettings:
    """The optimizer; its learning rate is the recipe's `lr`."""

    name: str = key("sgd", "sgd or adamw", choices=("sgd", "adamw"))
    momentum: float = key(0.9, "of SGD", rule=share("in [0, 1)"))
    weight_decay: float = key(1e-4, "L2 for sgd, decoupled for adamw", rule=_NOT_NEGATIVE)
    decay: str = key(
        "cosine", "how the learning rate falls to the end of training", choices=("cosine", "step", "constant")
    )
    stepping: str = key(
        "step",
        "change the learning rate every epoch (as the paper's authors) or every step",
        choices=("epoch", "step"),
    )
    milestones: list[float] = field(
        default_factory=lambda: [0.5, 0.75],
        metadata=said(
            "for `decay: step`, shares of the training after which the rate is multiplied by `drop`",
            rule=Rule("shares of the training in (0, 1)", lambda shares: all(0 < part < 1 for part in shares)),
        ),
    )
    drop: float = key(0.1, "factor at each milestone", rule=Rule("a factor in (0, 1]", lambda value: 0 < value <= 1))
    slim: float = key(
        0.0, "L1 pull on the scales of normalisation until the network is pruned (network slimming)", rule=_NOT_NEGATIVE
    )

    def __post_init__(self) -> None:
        check_fields(self, "optim.")


@final
@dataclass(frozen=True)
class PruneSettings:
    """When, during training, the network is pruned."""

    schedule: str = key("cubic", "how sparsity rises from one mask update to the next", choices=LAID_OUT)
    begin: str = key("0ep", "when it starts to rise; the first mask update comes one `every` later")
    end: str = key("10ep", "when it has arrived, at the latest")
    every: str = key(
        "1ep",
        "distance of two mask updates; `0.5turnover` is half the time in which a weight turns over (as for end, begin)",
    )
    events: int = key(1, "least number of mask updates: `every` is shortened where needed", rule=_AT_LEAST_1)
    initial: float = key(
        0.0,
        "sparsity that the schedule rises from (not constant or oneshot); that of a random start mask",
        rule=share("a sparsity in [0, 1)"),
    )
    finetune: str | None = key(
        None,
        "prune channels once, by all training images, then train the small network so long; null: in training",
    )

    def __post_init__(self) -> None:
        check_fields(self, "prune.")
        for name in ("begin", "end", "every", "finetune"):
            try:
                if getattr(self, name) is not None:
                    duration(getattr(self, name), 1, 1.0)
            except InvalidValue as error:
                raise InvalidValue(f"prune.{name}: {error}") from error
        every = self.every.strip()
        amount = float(every.removesuffix("turnover") if every.endswith("turnover") else every[:-2])
        require(amount > 0, "prune.every", "longer than 0, such as '1ep' or '1it' (a mask update in every step)", every)


def _plain(name: str) -> bool:
    return 0 < len(name) <= 100 and name[0].isalnum() and all(c.isalnum() or c in "-_." for c in name)


@final
@dataclass(frozen=True)
class Recipe:
    """All settings of one run."""

    name: str = key(
        "custom",
        "name of the recipe; the run folder starts with it",
        rule=Rule("letters, digits, '-', '_' and '.', at most 100 of them", _plain),
    )
    method: str = key("criticality", "what is pruned and regrown (`spikeprune list methods`), or squeeze")
    sparsity: float = key(0.95, "share of the prunable weights (or channels) that is 0 at the end, in [0, 1)")
    regrow: float = key(0.2, "share of the kept weights that is regrown at a mask update", rule=share())
    regrow_schedule: str = key(
        "decay",
        "`decay` to 0 at the last mask update, `constant` as in the paper, or `early`: none in the last fifth",
        choices=REGROW_SCHEDULES,
    )
    allocate: str = key("global", "how the sparsity is spread over layers", choices=ALLOCATIONS)
    pattern: str = key("weight", "what is cut: weight, channel, gate, or N:M such as 2:4")
    budget: str = key("weights", "what the sparsity is a share of", choices=BUDGETS)
    floor: float | None = key(None, "share of each layer that is never cut; null: one weight or channel", rule=share())
    exclude: str | None = key(
        None, "layers that stay dense, such as `head` or `stem.*`; names or patterns, several with spaces between"
    )
    regrow_exclude: str | None = key(
        None, "layers that are pruned but get nothing back, such as `head`; names or patterns, spaces between"
    )
    start: str = key(
        "dense",
        "dense, or a random start mask for training that is never dense, spread as `allocate` or as erk says",
        choices=("dense", "random", "erk"),
    )
    epochs: int = key(
        20, "the whole length of the pruned run, and of the dense one; the phases scale with it", rule=_AT_LEAST_1
    )
    seed: int = key(
        0,
        "of initial weights, data order, augmentation and draws",
        rule=whole(0, 2**63 - 1, "a whole number of at least 0"),
    )
    T: int = key(4, "time steps", rule=_AT_LEAST_1)
    batch: int = key(128, "images per step", rule=_AT_LEAST_1)
    lr: float = key(0.1, "learning rate at the start", rule=Rule("a learning rate above 0", lambda value: value > 0))
    precision: str = key(
        "auto",
        "auto takes bf16 only where the processor computes it natively",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    device: str = key("auto", "auto, cpu, cuda, ...")
    fuse: bool = key(
        True,
        "train with BatchNorm and neuron in one kernel where that can be; the same network, in less time and memory",
    )
    sparse_kernels: bool = key(
        False,
        "once the masks are final, compute the weights alive alone in layers where that is faster (float32 on a CPU); "
        "sums are rounded otherwise than without",
    )
    model: str = key("digits-conv", "a zoo network (`spikeprune list models`) or your own `package.module:build`")
    weights: str | None = key(None, "file of a trained network to start from")
    loss: str = key(
        "auto",
        "how the outputs over time become a loss; auto takes what the zoo network is meant for, else mean",
        choices=("auto", "mean", "mean-over-T", "per-step"),
    )
    baseline: bool = key(False, "train the dense network as well, for as many epochs, from the same weights")
    out: str = key("runs", "folder that receives the run folder")
    tensorboard: bool = key(False, "write TensorBoard events into the run folder")
    data: DataSettings = field(default_factory=DataSettings, metadata=said("what the network learns from"))
    optim: OptimSettings = field(default_factory=OptimSettings, metadata=said("the optimizer"))
    prune: PruneSettings = field(default_factory=PruneSettings, metadata=said("when the network is pruned"))
    squeeze: SqueezeOptions = field(
        default_factory=SqueezeOptions, metadata=said("how a trained network is squeezed, with method squeeze")
    )
    settings: dict[str, Json] = field(
        default_factory=dict, metadata=said("further settings of the method, such as `unit` and `curve` of criticality")
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.sparsity < 1:
            hint = f"; for {self.sparsity:g} % pass {self.sparsity / 100:g}" if 1 < self.sparsity < 100 else ""
            raise InvalidValue(f"sparsity must be in [0, 1), got {self.sparsity:g}{hint}")
        if self.prune.finetune is not None and self.pattern not in CHANNEL_PATTERNS:
            raise InvalidValue(
                f"prune.finetune trains a physically shrunk network, so it needs --pattern channel or gate, got "
                f"{self.pattern!r}; with prune.finetune null the network is pruned during training"
            )


# Prefix of the keys -> the class that has them.
GROUPS: dict[str, type] = {
    "": Recipe,
    "data.": DataSettings,
    "optim.": OptimSettings,
    "prune.": PruneSettings,
    "squeeze.": SqueezeOptions,
}
_NESTED = ("data", "optim", "prune", "squeeze", "settings")


def leaves(cls: Any) -> list[dataclasses.Field[Any]]:
    """The fields of a settings class that hold one value each."""
    return [entry for entry in dataclasses.fields(cls) if entry.name not in _NESTED]
