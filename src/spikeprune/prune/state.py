"""The contents of `pruner.state_dict()`. When it is read again, every part is checked before any part is used."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import final

from torch import Tensor, nn

from spikeprune.core.errors import InvalidValue, UserError
from spikeprune.core.mask import pack
from spikeprune.core.schedule import Schedule
from spikeprune.methods.base import Memory, Method
from spikeprune.prune.choices import Choices
from spikeprune.prune.contradictions import check_kept, check_rounds
from spikeprune.prune.refit import refitted
from spikeprune.prune.spaces.space import Space
from spikeprune.prune.steps import Steps
from spikeprune.record.checkpoint import (
    PrunerSettings,
    PrunerState,
    RewindState,
    SpaceState,
    check_kinds,
    check_settings,
    same_call,
)
from spikeprune.record.round import Round

VERSION = 1
Totals = dict[str, tuple[Tensor | None, float]]


@final
@dataclass(frozen=True)
class Saved:
    """A state that was read. The names are those of the keys; `units` are the masks of what is pruned one by one."""

    step: int
    masks: dict[str, Tensor]
    regrown: dict[str, Tensor] | None
    ever_regrown: dict[str, Tensor]
    rounds: list[Round]
    totals: Totals
    space: SpaceState
    memory: Memory
    rewind: RewindState | None
    began: float | None
    joined: int | None
    other_schedule: bool
    strict: bool
    units: Mapping[str, Tensor]


def settings_of(
    method: Method, schedule: Schedule, choices: Choices, left: Collection[str], parameters: Mapping[str, nn.Parameter]
) -> PrunerSettings:
    """All settings that decide the masks. `left`: parameters that regrowth leaves alone."""
    shapes = {n: list(p.shape) for n, p in parameters.items()}
    settings = PrunerSettings(method=repr(method), schedule=repr(schedule), **asdict(choices), parameters=shapes)
    if left:
        settings["regrow_exclude"] = sorted(left)
    return settings


def state_of(steps: Steps, settings: PrunerSettings) -> PrunerState:
    """Everything needed to go on bit for bit, as plain types and tensors."""
    history, updater = steps.history, steps.updater
    state = PrunerState(
        version=VERSION,
        settings=settings,
        step=steps.done,
        masks=_packed(steps.upkeep.masks),
        regrown=None if history.regrown is None else _packed(history.regrown),
        ever_regrown=_packed(history.ever_regrown),
        rounds=[entry.as_dict() for entry in history.rounds],
        totals=updater.observer.totals(),
        space=steps.space.state_dict(),
        memory={kind: dict(tensors) for kind, tensors in updater.memory.items()},
        rewind=None if steps.rewind is None else steps.rewind.state_dict(),
    )
    if steps.began is not None:
        state["began"] = steps.began
    if steps.joined is not None:
        state["joined"] = steps.joined
    return state


def _packed(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n: pack(m) for n, m in masks.items()}


def load_state(steps: Steps, saved: Saved) -> None:
    """Takes up a state that was read; weights outside its masks become 0. If that fails, nothing is changed.

    Raises: InvalidValue if only one of the two began from given masks, if a part of the state is of another network, if
        its parts contradict each other, or if all mask updates of the schedule lie before the step of a state with
        another schedule.
    """
    parts = (steps, steps.history, steps.updater, steps.space, steps.upkeep, *[r for r in (steps.rewind,) if r])
    before = [(part, dict(vars(part))) for part in parts]
    try:
        _take_up(steps, saved)
    except (UserError, KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        for part, values in before:
            vars(part).clear()
            vars(part).update(values)
        if isinstance(error, UserError):
            raise
        raise InvalidValue(_DAMAGED.format(f"{error!r:.120}")) from error
    steps.upkeep.hold()
    steps.hold_state()
    steps.guard.note()
    if steps.attached:
        steps.prepare()


def _take_up(steps: Steps, saved: Saved) -> None:
    if (saved.began is None) != (steps.began is None):
        raise InvalidValue("only one of the Pruner and the saved pruner state began from masks=; make them alike")
    if saved.began is not None:
        steps.run_from(saved.began)
    if saved.other_schedule and steps.plan.updates and saved.step >= steps.plan.last_step:
        raise InvalidValue(
            f"the saved pruner state is at step {saved.step}, behind the last mask update of this schedule (step "
            f"{steps.plan.last_step}), so none would come; let the schedule begin after step {saved.step}"
        )
    if saved.strict:
        check_rounds(saved.step, saved.rounds, [update.step for update in steps.plan.updates], saved.joined or 0)
        if not steps.updater.method.acts:  # such a method changes masks between mask updates too
            check_kept(saved.rounds, saved.units, saved.joined or 0)
    if steps.rewind is not None:
        steps.rewind.load_state_dict(saved.rewind)
    steps.done, steps.joined = saved.step, saved.joined
    steps.history.load(saved.rounds, saved.regrown, saved.ever_regrown)
    steps.updater.memory = saved.memory
    steps.space.hold(saved.masks)
    steps.space.load_state_dict(saved.space)
    steps.updater.observer.load_totals(saved.totals)


def read_state(state: PrunerState, settings: PrunerSettings, space: Space, *, strict: bool) -> Saved:
    """The parts of a saved state.

    Args:
        settings: those of the Pruner that the state is for.
    Raises: InvalidValue if the state was saved under other settings (unless `strict` is False) or is damaged.
    """
    try:
        if state["version"] != VERSION:
            raise InvalidValue(f"pruner state has version {state['version']!r:.40}, this library reads {VERSION}")
        if strict:
            check_settings(settings, state["settings"])
        check_kinds(state)
        state = state if strict else refitted(state, settings)
        own, began, masks = state["space"], state.get("began"), space.held(state["masks"])
        device = next(iter(space.parts.parameters.values())).device
        return Saved(
            step=state["step"],
            masks=masks,
            regrown=None if state["regrown"] is None else space.unpacked(state["regrown"], own),
            ever_regrown=space.unpacked(state.get("ever_regrown") or {}, own),
            rounds=[Round.read(entry, "rounds") for entry in state["rounds"]],
            totals=dict(state["totals"]),
            space=own,
            memory={kind: {n: v.to(device) for n, v in kept.items()} for kind, kept in state["memory"].items()},
            rewind=state["rewind"],
            began=None if began is None else float(began),
            joined=state.get("joined") if strict or state["settings"] == settings else state["step"],
            other_schedule=not same_call(settings["schedule"], state["settings"].get("schedule")),
            strict=strict,
            units=own["alive"] if "alive" in own else {n: masks[n] for n in space.parts.parameters},
        )
    except InvalidValue:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, UserError) as error:
        raise InvalidValue(_DAMAGED.format(f"{error!r:.120}")) from error


_DAMAGED = "this is not a saved pruner.state_dict(), or it is damaged ({})"
