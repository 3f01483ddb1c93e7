"""Puts the parts of a Pruner together. Each can be made alone; here they meet."""

from torch import nn

from spikeprune.core.errors import InvalidValue
from spikeprune.core.schedule import Schedule
from spikeprune.methods.base import Method
from spikeprune.methods.registry import name_of
from spikeprune.model.adapter import find_adapter
from spikeprune.model.discover import spiking_adapter
from spikeprune.model.observer import Observer
from spikeprune.model.prunable import Names, frozen, matching, prunable
from spikeprune.model.wrappers import eager
from spikeprune.prune.choices import Choices
from spikeprune.prune.history import History
from spikeprune.prune.plan import MEMBRANE, UpdatePlan
from spikeprune.prune.spaces.channels import Channels
from spikeprune.prune.spaces.space import Parts
from spikeprune.prune.spaces.weights import Weights
from spikeprune.prune.steps import Steps
from spikeprune.prune.updater import Updater
from spikeprune.upkeep.given import Given, masks_of
from spikeprune.upkeep.gradients import KeptGradients
from spikeprune.upkeep.rewind import Rewind
from spikeprune.upkeep.upkeep import Upkeep


def assemble(
    model: nn.Module,
    method: Method,
    schedule: Schedule,
    choices: Choices,
    include: Names = None,
    exclude: Names = None,
    masks: Given | None = None,
    regrow_exclude: Names = None,
) -> Steps:
    """Builds the parts of a Pruner for a model, ready for its first step. The arguments are those of the Pruner.

    Raises: InvalidValue or UnknownName for layers, masks or a schedule that cannot be.
    """
    inner = eager(model)
    parameters = prunable(inner, include, exclude, choices.nm)
    upkeep = Upkeep(dict(inner.named_parameters()))
    resting = frozen(inner, include, exclude)
    parts = Parts(inner, parameters, upkeep, choices.budget, choices.allocate, choices.floor, resting)
    space = Channels(parts, choices.pattern) if choices.by_channel else Weights(parts, choices.nm)
    if isinstance(space, Weights) and space.normed and method.acts:
        raise InvalidValue(
            f"{sorted(space.normed)[0]!r} is divided by its norm row by row (weight_norm), and {name_of(method)} may "
            f"empty a row; pass exclude={sorted(space.normed)[:3]}, take another method, or remove_parametrizations"
        )
    plan = UpdatePlan.of(method, schedule, choices.nm)
    adapter = spiking_adapter(inner) if method.needs & MEMBRANE else find_adapter(inner)
    observer = Observer(model, inner, adapter, method, parameters)
    updater = Updater(method, plan, space, observer, KeptGradients(), choices.seed)
    if regrow_exclude is not None:
        updater.no_regrowth = frozenset(matching(parameters, regrow_exclude, "regrow_exclude"))
    rewind = None if method.rewinds == "never" else Rewind(inner, schedule.begin or 0)
    steps = Steps(updater, History(), rewind, schedule, choices)
    observer.learned = steps.learn
    if masks is not None:
        choices.check_given(method)
        space.hold(masks_of(inner, masks))
        upkeep.hold()
        steps.begin()
    if choices.start != "dense" and isinstance(space, Weights):
        space.start_random(
            schedule.first, choices.allocate if choices.start == "random" else choices.start, choices.seed
        )
    return steps
