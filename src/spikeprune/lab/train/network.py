"""The network of a recipe: built from the zoo or by the user's function, loaded with weights, called over time.

T time steps, N batch, C channels, H/W space, K classes.
"""

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from spikeprune import zoo
from spikeprune.core.errors import InvalidValue, UserError
from spikeprune.host.files import ordinary
from spikeprune.host.objects import resolve_object
from spikeprune.lab.train.folder import read_safetensors
from spikeprune.model.adapter import Adapter
from spikeprune.model.discover import NOT_FOUND, Discovered, spiking_adapter
from spikeprune.model.examples import evaluating, undisturbed
from spikeprune.model.trace import Tracer

Takes = Literal["image", "sequence", "step"]


@final
@dataclass(frozen=True)
class TimedNetwork:
    """A spiking model and how it takes a batch.

    Args:
        model: the user's, untouched.
        takes: `image`: the model repeats [N, ...] over time by itself; `sequence`: [T, N, ...]; `step`: one time step,
            called T times.
        T: time steps of a still image.
        loss: entry of zoo/readout.py's `LOSSES`.
        sets_T: a view over another number of time steps, which the model's own attribute `T` follows during a call.
        ran: time steps that the neurons saw when the model was tried: those that it adds by itself, or those of the
            recordings, whatever the recipe's `T` says.
    """

    model: nn.Module
    adapter: Adapter
    takes: Takes
    T: int
    loss: str
    sets_T: bool = False
    ran: int = 0

    def __call__(self, x: Tensor, recorded: bool = False) -> Tensor:
        """Logits [T, N, K] of a batch, from a fresh membrane state; [1, N, K] where the model averages by itself.

        Args:
            x: images [N, C, H, W], or recordings [T, N, C, H, W] if `recorded`.
        """
        self.adapter.reset(self.model)
        with self._timed():
            return _call(self.model, x[: self.T] if recorded else x, self.takes, self.T, recorded)

    def at(self, T: int) -> "TimedNetwork":
        """A view of the same model over another number of time steps; of recordings, over the first ones.

        A model that repeats images by itself must say how often in an attribute `T`, which has the other value during
        each call through the view and its own at all other times.
        Raises: InvalidValue if the model has no such attribute.
        """
        has_T = isinstance(getattr(self.model, "T", None), int)
        if not has_T and self.takes == "image" and T != self.T:
            raise InvalidValue(
                f"{type(self.model).__name__} has no attribute T to change its time steps by, as Early-Time needs; "
                "take imp or early-bird"
            )
        return dataclasses.replace(self, T=T, sets_T=has_T)

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        """The model's own attribute `T` has this view's value inside."""
        own: Any = self.model
        if not self.sets_T or own.T == self.T:
            yield
            return
        before, own.T = own.T, self.T
        try:
            yield
        finally:
            own.T = before

    def fed(self, x: Tensor, recorded: bool = False) -> Tensor:
        """The model's input for a batch, inside `one_call`: repeated over T if the model takes a sequence."""
        return x.expand(self.T, *x.shape) if self.takes == "sequence" and not recorded else x

    @contextlib.contextmanager
    def one_call(self, recorded: bool = False) -> Iterator[nn.Module]:
        """The model, whose one call goes over all time steps even if it takes them one at a time: for counting."""
        if self.takes != "step":
            with self._timed():
                yield self.model
            return
        own, step = "forward" in vars(self.model), self.model.forward

        def forward(x: Tensor) -> Tensor:
            return torch.stack([step(at) for at in (x if recorded else x.expand(self.T, *x.shape))])

        self.model.forward = forward
        try:
            yield self.model
        finally:
            del self.model.forward
            if own:
                self.model.forward = step


def build(name: str, classes: int, T: int, shape: tuple[int, ...], seed: int) -> nn.Module:
    """A fresh network whose initial weights depend on `seed` alone.

    Args:
        name: a zoo name, or `package.module:build`; the user's function is given those of `classes`, `T`, `size` and
            `in_channels` that it has parameters for.
        shape: (C, H, W) of one image.

    Raises: UserError if the user's function cannot be called so, or returns no module.
    """
    torch.manual_seed(seed)
    keywords = {"classes": classes, "T": T, "size": shape[-1], "in_channels": shape[0]}
    if ":" not in name:
        return zoo.build(name, **keywords)
    function = resolve_object(name)
    if not callable(function):
        raise InvalidValue(f"--model {name} must be a function that returns a network, got {type(function).__name__}")
    try:
        parameters = inspect.signature(function).parameters.values()  # a ValueError for some built-in types
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            keywords = {key: value for key, value in keywords.items() if key in {p.name for p in parameters}}
        model = function(**keywords)
    except UserError:
        raise
    except Exception as error:
        raise InvalidValue(f"--model {name} failed: {type(error).__name__}: {str(error)[:160]}; see --debug") from error
    if not isinstance(model, nn.Module):
        raise InvalidValue(f"--model {name} must return a torch.nn.Module, got {type(model).__name__}")
    return model


def connect(model: nn.Module, example: Tensor, T: int, classes: int, loss: str, recorded: bool) -> TimedNetwork:
    """Find out how the model takes a batch, by trying on `example`.

    Zoo networks take images. Others: neurons in multi-step mode want sequences; neurons in single-step mode are
    called T times, unless the model does so itself, which shows in how often a neuron is called. Neurons that are no
    modules are found by their spike functions.

    Raises: UserError if the model has no spiking neuron, takes the example in no way, or remembers the batch before.
    """
    adapter = spiking_adapter(model)
    chosen = getattr(model, "readout", "mean") if loss == "auto" else loss
    whole = any(adapter.multi_step(neuron) for neuron in adapter.neurons(model).values())
    order: tuple[Takes, ...] = ("sequence", "image") if whole else ("image", "step", "sequence")
    if isinstance(getattr(model, "readout", None), str) and not recorded:
        order = ("image",)
    # One image more than time steps, so that a model that walks over the wrong dimension gives itself away.
    few = example[:, : T + 1] if recorded else example[: T + 1]
    if few.shape[int(recorded)] == T:
        few = few.narrow(int(recorded), 0, max(1, T - 1))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    refusals: list[str] = []
    for takes in order:
        calls = _SpikeCounter(model) if isinstance(adapter, Discovered) else _CallCounter(adapter, model)
        try:
            adapter.reset(model)
            with torch.no_grad(), calls:
                logits = _call(model, few, takes, T, recorded)
        except Exception as error:
            refusals.append(f"{takes}: {str(error).strip().splitlines()[0][:80] if str(error).strip() else error!r}")
            continue
        finally:
            adapter.reset(model)
            model.load_state_dict(state)
        fits = logits.dim() == 3 and tuple(logits.shape[1:]) == (few.shape[int(recorded)], classes)
        alone = takes != "image" or whole or calls.most > 1 or logits.shape[0] == T
        if fits and alone:
            if isinstance(adapter, Discovered):
                run = functools.partial(_call, model, takes=takes, T=T, recorded=recorded)
                _check_found(model, adapter, calls, run, few)
            return TimedNetwork(model, adapter, takes, len(example) if recorded else T, chosen, ran=calls.steps or T)
        refusals.append(f"{takes}: outputs {list(logits.shape)} in {calls.most} steps")
    raise InvalidValue(
        f"the model takes {list(few.shape)} in no known way to give [T, N, {classes}] or [N, {classes}] "
        f"({'; '.join(refusals)[:150]})"
    )


def load_weights(model: nn.Module, path: str) -> None:
    """Start from a trained network: a safetensors file or a torch checkpoint, which is read weights-only.

    A `module.` prefix is dropped, and a state_dict inside `model` or `state_dict` is found.

    Raises: UserError if the file is missing, damaged, or of another network.
    """
    file = Path(path)
    if file.suffix == ".safetensors":
        found: Any = read_safetensors(file)
    else:
        try:
            found = torch.load(ordinary(file), map_location="cpu", weights_only=True)
        except OSError as error:
            raise UserError(f"cannot read the weights {path}: {error.strerror or error}") from error
        except Exception as error:
            raise UserError(
                f"{path} is no checkpoint that can be read weights-only; save model.state_dict() or safetensors"
            ) from error
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"{path} holds no state_dict (names of parameters -> tensors); save model.state_dict()")
    plain = {str(name).removeprefix("module."): value for name, value in found.items()}
    own = model.state_dict()
    wrong = [name for name, value in own.items() if name not in plain or plain[name].shape != value.shape]
    wrong += [name for name in plain if name not in own]
    if wrong:
        raise UserError(
            f"{path} is of another network: {wrong[0]} and {len(wrong) - 1} more do not fit; check --model and the data"
        )
    model.load_state_dict(plain)


def _call(model: nn.Module, x: Tensor, takes: Takes, T: int, recorded: bool) -> Tensor:
    if takes == "step":
        logits = torch.stack([model(step) for step in (x if recorded else x.expand(T, *x.shape))])
    elif takes == "sequence" and not recorded:
        logits = model(x.expand(T, *x.shape))
    else:
        logits = model(x)
    return logits.unsqueeze(0) if logits.dim() == 2 else logits


def _check_found(
    model: nn.Module,
    adapter: Adapter,
    calls: "_CallCounter | _SpikeCounter",
    run: Callable[[Tensor], Tensor],
    x: Tensor,
) -> None:
    """Raises: InvalidValue if no spike function was called, or if a batch is answered otherwise after another one."""
    if not calls.most:
        raise InvalidValue(NOT_FOUND)

    def after(before: Tensor) -> Tensor:
        adapter.reset(model)
        run(before)
        adapter.reset(model)
        return run(x)

    with torch.no_grad(), undisturbed(model, adapter), evaluating(model):
        same = torch.equal(after(torch.zeros_like(x)), after(x))
    if not same:
        raise InvalidValue(
            f"{type(model).__name__} answers a batch differently after another one; its forward must begin with "
            "fresh membrane potentials, or its modules must have a reset() that forgets them"
        )


class _SpikeCounter:
    """Counts the calls of neurons that are found by their spike function, inside a `with`.

    The model may be called several times in it, once for each time step. `steps` and `most` both count the calls of
    the neuron with the most calls, summed over these forwards.
    """

    def __init__(self, model: nn.Module):
        self.most = self.steps = 0
        self._tracer = Tracer(model, None, lambda _: None, once=False)
        self._model = model

    def __enter__(self) -> None:
        self._handle = self._model.register_forward_hook(self._keep)

    def _keep(self, *_: object) -> None:
        calls = max((neuron.calls for neuron in self._tracer.graph.spikes.values()), default=0)
        self.most += calls
        self.steps = self.most

    def __exit__(self, *_: object) -> None:
        self._handle.remove()
        self._tracer.remove()


class _CallCounter:
    """Counts how often each neuron is called, and over how many time steps, inside a `with`."""

    def __init__(self, adapter: Adapter, model: nn.Module):
        self._adapter = adapter
        self.steps = 0
        self._neurons = adapter.neurons(model)
        self._counts = dict.fromkeys(self._neurons, 0)

    def __enter__(self) -> None:
        def count(name: str) -> Any:
            def hook(neuron: nn.Module, inputs: tuple[Any, ...]) -> None:
                self._counts[name] += 1
                whole = self._adapter.multi_step(neuron) and inputs and isinstance(inputs[0], Tensor)
                self.steps = max(self.steps, len(inputs[0]) if whole else self._counts[name])

            return hook

        self._handles = [neuron.register_forward_pre_hook(count(name)) for name, neuron in self._neurons.items()]

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    @property
    def most(self) -> int:
        return max(self._counts.values(), default=0)
