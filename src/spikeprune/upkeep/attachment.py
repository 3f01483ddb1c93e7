"""Hooks of a Pruner on the optimizers of its model, on those inside them, and a watch on all others."""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Protocol, final

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from spikeprune.core.errors import InvalidValue

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class StepListener(Protocol):
    """Interface of an object that an `Attachment` tells about the optimizers' steps."""

    def before_step(self, optimizer: torch.optim.Optimizer, *, closure: bool) -> None:
        """An optimizer's step begins. `closure` tells whether it was called with a closure."""
        ...

    def gradients_computed(self) -> None:
        """Called when the closure of a step has computed gradients."""
        ...

    def after_step(self, optimizer: torch.optim.Optimizer, *, closure: bool, last: bool) -> None:
        """A step has ended; `last`: all optimizers of the model have stepped."""
        ...

    def hold_state(self) -> None:
        """Clears what optimizers keep for dead weights."""
        ...

    def after_others(self, optimizer: torch.optim.Optimizer) -> None:
        """Called when an optimizer that is not attached has changed the weights."""
        ...

    def check_obeyed(self) -> None:
        """Raises: InvalidValue if a dead weight is not 0."""
        ...


@final
class Attachment:
    """Watches the steps of some optimizers until `remove`.

    An optimizer may hold another one and call it (SAM, Lookahead): both count as one. If the outer one is given, the
    step of the outer one counts, or the inner one's where that is called alone. If the inner one is given, what the
    outer one writes afterwards is held too. Any other optimizer that changes the parameters is refused.
    """

    def __init__(
        self,
        listener: StepListener,
        optimizers: Sequence[Any],
        parameters: Mapping[str, nn.Parameter],
        owner: Callable[[], object | None],
    ) -> None:
        """Puts hooks on the optimizers and on those inside them.

        Args:
            listener: is told of each step.
            parameters: the prunable ones.
            owner: returns the user's Pruner, or None if the user holds it no longer.
        Raises: InvalidValue if an optimizer takes no hooks or has another Pruner of the same parameters, or if one of
            `parameters` is in none of the optimizers.
        """
        self.listener, self.parameters, self._owner = listener, parameters, owner
        self.given = tuple(hooked(optimizer) for optimizer in optimizers)
        self._held = {id(p): name for name, p in parameters.items()}
        self._root: dict[int, int] = {}  # id of an optimizer -> index of the given one that it belongs to
        self.optimizers: list[torch.optim.Optimizer] = []
        for index, optimizer in enumerate(self.given):
            for member in (optimizer, *_inside(optimizer)):
                if id(member) not in self._root and (member is optimizer or self._holds(member)):
                    self._root[id(member)] = index
                    self.optimizers.append(member)
        self._check_held()
        _check_alone(self.optimizers, parameters.values(), listener)
        self._running: list[int] = []
        self._took_state = False
        self._ended = 0
        self._others: dict[int, int] = {}
        self._handles: list[Any] = []
        for member in self.optimizers:
            self._handles.append(member.register_step_pre_hook(self._begin))
            self._handles.append(member.register_step_post_hook(self._end))
            self._handles.append(member.register_load_state_dict_post_hook(self._loaded))
        _watch_others(self)
        self._wrapped = [o for o in optimizers if o not in self.given and _wrap(o, self)]

    def remove(self) -> None:
        """Takes all hooks off."""
        _ATTACHED.discard(self)
        for handle in self._handles:
            handle.remove()
        for wrapper in self._wrapped:
            if isinstance(vars(wrapper).get("step"), _WatchedStep):
                del wrapper.step
        self._handles, self._wrapped = [], []

    def _check_held(self) -> None:
        held = {id(p) for o in self.optimizers for group in o.param_groups for p in group["params"]}
        absent = [name for name, p in self.parameters.items() if id(p) not in held]
        if absent:
            raise InvalidValue(
                f"the optimizer does not hold {absent[0]!r} ({len(absent)} of {len(self.parameters)} prunable "
                "parameters); build it from the parameters of the model given to the Pruner"
            )

    def _holds(self, optimizer: torch.optim.Optimizer) -> str | None:
        """The name of a parameter that the optimizer changes, if it changes any of ours."""
        found = (self._held.get(id(p)) for group in optimizer.param_groups for p in group["params"])
        return next((name for name in found if name is not None), None)

    def _loaded(self, optimizer: torch.optim.Optimizer) -> None:
        """Notes that an optimizer has loaded a state, which may hold momentum of weights that are dead by now.

        It is cleared at the next step and not here, because the Pruner's own state may be loaded after this one.
        """
        self._took_state = True

    def _begin(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if id(optimizer) in self._running:  # its last step ended in an error
            del self._running[self._running.index(id(optimizer)) :]
        self._running.append(id(optimizer))
        if len(self._running) > 1:
            return None
        closure = closure_of(args, kwargs)
        self.listener.before_step(optimizer, closure=closure is not None)
        if self._took_state:  # the weights are those of the masks, which `before_step` has checked
            self._took_state = False
            self.listener.hold_state()
        return None if closure is None else self._watched(closure, args, kwargs)

    def _watched(self, closure: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """The arguments of a step. Its closure is wrapped: the listener is told when it has computed gradients."""

        def watched() -> Any:
            result = closure()
            self.listener.gradients_computed()
            return result

        changed = tuple(watched if value is closure else value for value in args)
        return changed, {key: watched if value is closure else value for key, value in kwargs.items()}

    def _end(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if id(optimizer) in self._running:
            del self._running[self._running.index(id(optimizer)) :]
        if not self._running:
            self._ended += 1
            last = self._root[id(optimizer)] == len(self.given) - 1
            self.listener.after_step(optimizer, closure=closure_of(args, kwargs) is not None, last=last)

    def _other_begins(self, optimizer: torch.optim.Optimizer) -> None:
        if id(optimizer) not in self._root and self._holds(optimizer):
            self._others[id(optimizer)] = self._ended

    def _other_ended(self, optimizer: torch.optim.Optimizer) -> None:
        before = self._others.pop(id(optimizer), None)
        if before is None or self._running:  # inside of a step of ours, the weights are held at its end
            return
        if self._ended == before and self._owner() is None:  # nobody holds the Pruner any more
            return
        self.listener.after_others(optimizer)
        if self._ended == before:
            raise InvalidValue(
                f"an optimizer ({type(optimizer).__name__}) that the Pruner is not attached to has changed "
                f"{self._holds(optimizer)!r}; call pruner.attach(optimizer) before its first step, or pruner.finish() "
                "if pruning is over (its zeros then hold no longer: see sp.hold)"
            )


# Torch calls its global hooks out of a dict that must not change meanwhile, and an attachment can die at any moment,
# within such a call too. So the two hooks are registered once and stay; only this set changes.
_ATTACHED: weakref.WeakSet[Attachment] = weakref.WeakSet()


def _watch_others(attachment: Attachment) -> None:
    """Tells an attachment of every optimizer's steps for as long as it lives."""
    _register()
    _ATTACHED.add(attachment)


@cache
def _register() -> None:
    register_optimizer_step_pre_hook(_any_begins)
    register_optimizer_step_post_hook(_any_ended)


def _any_begins(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    for attachment in list(_ATTACHED):
        attachment._other_begins(optimizer)


def _any_ended(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    for attachment in list(_ATTACHED):
        attachment._other_ended(optimizer)


def check_obeyed(model: nn.Module) -> None:
    """Checks a model that is about to be compiled or exported against the Pruners that are attached to it.

    Raises: InvalidValue if a weight that such a Pruner holds at 0 is not 0.
    """
    mine = {id(p) for p in model.parameters()}
    for attachment in list(_ATTACHED):
        if mine & attachment._held.keys():
            attachment.listener.check_obeyed()


@final
class _WatchedStep:
    """Replaces the `step` of a wrapper that takes no hooks. Zeros are held again after the wrapper's own writes."""

    def __init__(self, wrapper: Any, attachment: Attachment) -> None:
        self._own, self._attachment = wrapper.step, weakref.ref(attachment)

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        attachment = self._attachment()
        before = None if attachment is None else attachment._ended
        result = self._own(*args, **keywords)
        if attachment is not None and attachment._ended != before:
            attachment.listener.after_others(attachment.given[0])
        return result


def _wrap(wrapper: Any, attachment: Attachment) -> bool:
    try:
        wrapper.step = _WatchedStep(wrapper, attachment)
    except AttributeError:
        return False
    return True


def hooked(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer that takes step hooks: the given one, or the one inside of a wrapper such as accelerate's.

    Raises: InvalidValue if there is none.
    """
    if isinstance(optimizer, nn.Module):
        raise InvalidValue(
            f"attach takes the optimizer, got {type(optimizer).__name__}, a module: the model was given to the Pruner "
            "already; pruner.attach(optimizer)"
        )
    if _takes_hooks(optimizer):
        return optimizer
    inner = next(_inside(optimizer), None)
    if inner is None:
        raise InvalidValue(
            f"{type(optimizer).__name__} takes no step hooks; attach the Pruner to the torch optimizer inside of it, "
            "or call pruner.step(optimizer) after every step"
        )
    return inner


def _takes_hooks(optimizer: Any) -> bool:
    """Whether the optimizer's `step` calls hooks. A subclass that skips `Optimizer.__init__` has no such step."""
    return isinstance(optimizer, torch.optim.Optimizer) and getattr(type(optimizer).step, "hooked", False)


def _inside(optimizer: Any) -> Iterator[torch.optim.Optimizer]:
    """Optimizers that another one holds as attributes, outer ones first."""
    seen, waiting = {id(optimizer)}, [optimizer]
    while waiting:
        for inner in _attributes(waiting.pop(0)):
            if id(inner) not in seen and (isinstance(inner, torch.optim.Optimizer) or _wraps(inner)):
                seen.add(id(inner))
                waiting.append(inner)
                if isinstance(inner, torch.optim.Optimizer) and _takes_hooks(inner):
                    yield inner


def _attributes(owner: object) -> Iterator[object]:
    """The attributes of an object, and the entries of its lists."""
    for value in getattr(owner, "__dict__", dict[str, object]()).values():
        yield from value if isinstance(value, (list, tuple)) else (value,)


def _wraps(value: Any) -> bool:
    """Whether the object looks like a wrapper around an optimizer: it has parameter groups and a step."""
    return hasattr(value, "param_groups") and callable(getattr(value, "step", None))


def closure_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Callable[[], Any] | None:
    """The closure that a step was given. The arguments that torch hands to step hooks begin with the optimizer."""
    return next((value for value in (*args[1:], kwargs.get("closure")) if callable(value)), None)


def _check_alone(optimizers: Iterable[torch.optim.Optimizer], parameters: Iterable[nn.Parameter], mine: object) -> None:
    """Raises: InvalidValue if another Pruner that is attached to an optimizer holds one of the parameters too."""
    held = {id(p) for p in parameters}
    for optimizer in optimizers:
        for hook in optimizer._optimizer_step_post_hooks.values():  # pyright: ignore[reportPrivateUsage]
            other: Any = getattr(hook, "__self__", None)
            if not isinstance(other, Attachment) or other.listener is mine:
                continue
            shared = next((n for n, p in other.parameters.items() if id(p) in held), None)
            if shared is not None:
                raise InvalidValue(
                    f"another Pruner is attached to this optimizer and prunes {shared!r} too; call its finish(), "
                    "or make a new optimizer"
                )
