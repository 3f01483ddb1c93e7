"""Where a weight is stored, and how a call multiplies with it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd  # pyright: ignore[reportPrivateUsage]
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from spikeprune.model.arguments import Arguments, tensors
from spikeprune.model.operations import multiplied, short_name


def layer_modules(model: nn.Module) -> dict[str, _ConvNd | nn.Linear]:
    """Name -> module of every Conv and Linear layer."""
    return {n: m for n, m in model.named_modules() if isinstance(m, (_ConvNd, nn.Linear))}


def stored_weight(layer: nn.Module) -> nn.Parameter | None:
    """The parameter behind a layer's `weight`: itself, or the original of its shape that it is computed from."""
    # The weight of a parametrised layer is computed anew each time it is looked at, and spectral_norm counts that as a
    # step of its own, so it is not looked at here.
    if parametrize.is_parametrized(layer, "weight"):
        originals = list(layer.parametrizations["weight"].parameters(recurse=False))  # type: ignore[index]
        shape = _shape(layer)
        return next((p for p in originals if tuple(p.shape) == shape), None)
    weight = getattr(layer, "weight", None)
    if isinstance(weight, nn.Parameter):
        return weight
    if not isinstance(weight, Tensor):
        return None
    # torch.nn.utils.weight_norm, spectral_norm and prune of older code keep the original beside the weight.
    named = dict(layer.named_parameters(recurse=False))
    return next((named[n] for n in ("weight_v", "weight_orig") if n in named and named[n].shape == weight.shape), None)


def weight_of(layer: nn.Module) -> Tensor:
    """The tensor that a layer stores as its weight. If it stores none of that shape: the weight that it computes."""
    stored = stored_weight(layer)
    return layer.weight if stored is None else stored  # type: ignore[return-value]


def _shape(layer: nn.Module) -> tuple[int, ...]:
    """The shape of a layer's weight, by the layer's own numbers."""
    if not isinstance(layer, _ConvNd):
        return (layer.out_features, layer.in_features)  # type: ignore[return-value]
    sides = layer.out_channels, layer.in_channels
    first, second = reversed(sides) if layer.transposed else sides
    return (first, second // layer.groups, *layer.kernel_size)


def is_computed(layer: nn.Module) -> bool:
    """Whether the layer's `weight` is computed from parameters (weight_norm, spectral_norm, parametrisations)."""
    return parametrize.is_parametrized(layer, "weight") or (
        "weight" not in layer._parameters and isinstance(layer.__dict__.get("weight"), Tensor)
    )


def keeps_zeros(layer: nn.Module, rows: bool = True) -> bool:
    """Whether a 0 in the stored weight is a 0 in the weight that acts.

    Tried on a weight of random numbers with zeros, without changing the layer. A layer of PyTorch's own is known; of a
    subclass its forward is run on one input channel. True where it cannot be tried.

    Args:
        rows: whether a whole row of zeros must stay too, which weight_norm divides by its norm of 0.
    """
    stored = stored_weight(layer)
    if stored is None:
        return not is_computed(layer)
    if not is_computed(layer) and type(layer).__module__.startswith("torch.nn."):
        return True
    values = torch.rand(stored.shape, generator=torch.Generator().manual_seed(0)).to(stored) + 0.5
    if rows:
        values[:, 0].mul_((torch.arange(len(values), device=values.device) % 2).view(-1, *[1] * (values.dim() - 2)))
        values[0] = 0
    elif values.shape[1] > 1:
        values[:, 0] = 0
    else:
        values.view(len(values), -1)[:, 1:] = 0
    name = next(n for n, p in layer.named_parameters() if p is stored)
    saved = {n: b.clone() for n, b in layer.named_buffers()}
    try:
        with torch.no_grad():
            acting = functional_call(_Acting(layer), {f"layer.{name}": values})
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
        return True
    finally:
        for n, buffer in saved.items():
            layer.get_buffer(n).copy_(buffer)
    return acting is None or bool(acting.isfinite().all() and (acting[values.view_as(acting) == 0] == 0).all())


class _Acting(nn.Module):
    """The weight that acts in a layer: as it is computed, or as its forward hands it to a convolution or product."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self) -> Tensor | None:
        layer = self.layer
        if is_computed(layer):
            return layer.weight  # type: ignore[return-value]
        if isinstance(layer, _ConvNd):
            sizes = zip(layer.kernel_size, layer.dilation, strict=True)
            x = layer.weight.new_zeros(1, layer.in_channels, *(d * (k - 1) + 2 for k, d in sizes))
        else:
            x = layer.weight.new_zeros(1, layer.in_features)  # type: ignore[arg-type]
        with _Operands(layer.weight.shape) as seen:  # type: ignore[arg-type]
            try:
                layer.forward(x)
            except ValueError:  # a multi-step layer wants time as well
                layer.forward(x.unsqueeze(0))
        return seen.weight


class _Operands(TorchFunctionMode):
    """While it is on: keeps the first tensor of the given shape that a function multiplies with, in `weight`."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape = shape
        self.weight: Tensor | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for operand, _, _ in multiplied(short_name(func), Arguments(args, kwargs or {})):
            if self.weight is None and isinstance(operand, Tensor) and operand.shape == self.shape:
                self.weight = operand
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Use:
    """How one call multiplies with a parameter.

    Attributes:
        weight: the parameter's name.
        outputs: dimension of the parameter that counts the outputs.
        axis: dimension of the result that counts them, from the end.
        direct: whether the call got the parameter itself, not something computed from it.
        companions: tensors of the parameter's shape that it was combined with before, such as a fixed mask.
        keeps: whether a 0 in the parameter adds nothing to what the call got; a standardised weight does not keep it.
    """

    weight: str
    outputs: int
    axis: int
    direct: bool
    keeps: bool = True
    companions: tuple[str, ...] = ()


def along_outputs(channel: Tensor, weight: Tensor, layer: nn.Module | None, use: Use | None) -> Tensor:
    """A value per output channel laid along the weight's dimension of outputs; [C] as it is where that is the first.

    A transposed convolution has [inputs, outputs / groups, *kernel], and a matrix may be multiplied from either side.
    """
    groups = layer.groups if isinstance(layer, _ConvTransposeNd) else 1
    outputs = use.outputs if use is not None else int(isinstance(layer, _ConvTransposeNd))
    if channel.dim() != 1 or outputs == 0:
        return channel
    if outputs == 1:
        rows = channel.view(groups, 1, -1).expand(groups, weight.shape[0] // groups, -1)
        return rows.reshape(*weight.shape[:2], *[1] * (weight.dim() - 2)).expand_as(weight)
    return channel.view(-1, *[1] * (weight.dim() - 1 - outputs)).expand_as(weight)


@dataclass(frozen=True)
class Multiplication:
    """One call of a function that multiplies an input `x` with a weight, to be run again on others of their shapes.

    `outputs` is the dimension of `weight` that counts outputs. `places` holds the place in the
    parameter of each value of `weight`, None where that is the parameter itself or the places are not known.
    """

    x: Tensor
    weight: Tensor
    outputs: int
    function: Callable[..., Any]
    given: Arguments
    places: Tensor | None = None

    def run(self, x: Tensor, weight: Tensor) -> Tensor:
        """The function's result for another input and weight."""
        others = {id(self.x): x, id(self.weight): weight}
        return self.function(*_exchanged(self.given.positional, others), **_exchanged(dict(self.given.named), others))

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """Multiplies `x` with `weight` as the call did, without added terms such as a bias."""
        known = (self.x, self.weight)
        added = [t for t in tensors(self.given.values) if all(t is not k for k in known)]
        others = {id(t): torch.zeros_like(t, dtype=x.dtype) for t in added}
        others |= {id(self.x): x, id(self.weight): weight}
        return self.function(*_exchanged(self.given.positional, others), **_exchanged(dict(self.given.named), others))

    def applications(self) -> float:
        """How often the whole weight was multiplied with, padding included."""
        if "transpose" in getattr(self.function, "__name__", ""):
            return self.x.numel() / self.weight.shape[0]
        with torch.no_grad():
            return self.run(self.x, self.weight).numel() / self.weight.shape[self.outputs]


def _exchanged(value: Any, others: Mapping[int, Tensor]) -> Any:
    if isinstance(value, Tensor):
        return others.get(id(value), value)
    if isinstance(value, (tuple, list)):
        return type(value)(_exchanged(v, others) for v in value)  # pyright: ignore
    if isinstance(value, dict):
        return {k: _exchanged(v, others) for k, v in value.items()}  # pyright: ignore
    return value
