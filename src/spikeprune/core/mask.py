"""Masks: which weights are alive."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor
from torch.nn import Module

from spikeprune.core.errors import InvalidValue, unknown


@final
class Masks(Mapping[str, Tensor]):
    """A read-only mapping parameter name -> bool tensor of the parameter's shape; True = alive.

    Raises: InvalidValue for a tensor that is not bool (or not made of 0 and 1 only).

    Examples:
        >>> masks = sp.prune(model, "magnitude", 0.75)
        >>> masks["4.weight"].dtype, masks.alive, masks.total
        (torch.bool, 192, 768)
        >>> net = masks.apply_(fresh)  # zeroes what the masks cut, in another model of this shape
    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        self._masks = {name: _as_bool(name, mask) for name, mask in masks.items()}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._masks:
            raise unknown("mask", name, self._masks)
        return self._masks[name]

    def __contains__(self, name: object) -> bool:
        return name in self._masks

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __repr__(self) -> str:
        return f"Masks({len(self)} tensors, {self.alive} of {self.total} alive, sparsity {self.sparsity:.4f})"

    @property
    def total(self) -> int:
        """Number of masked weights."""
        return sum(mask.numel() for mask in self._masks.values())

    @property
    def alive(self) -> int:
        """Number of weights whose mask is True."""
        return sum(int(mask.sum()) for mask in self._masks.values())

    @property
    def density(self) -> float:
        """alive / total; 1 if there is nothing to mask."""
        return self.alive / self.total if self.total else 1.0

    @property
    def sparsity(self) -> float:
        """1 - density."""
        return 1.0 - self.density

    @torch.no_grad()
    def apply_(self, model: Module) -> Module:
        """Zeroes, in place, what these masks cut in a model of the same shape, such as an averaged copy.

        A wrapper may stand around the model: parameter names may have a prefix, such as "module.".

        Returns: the model.
        Raises: UnknownName or InvalidValue if the masks are not of this network; then nothing is changed.
        """
        parameters = dict(model.named_parameters())
        first = next(iter(self), "")
        prefixes = {n.removesuffix(first) for n in parameters if n == first or n.endswith(f".{first}")}
        fitting = [q for q in prefixes if all(f"{q}{name}" in parameters for name in self)]
        prefix = fitting[0] if len(fitting) == 1 else ""
        check_fit(self, {n.removeprefix(prefix): p for n, p in parameters.items()})
        for name, mask in self.items():
            value = parameters[prefix + name].data
            value.masked_fill_(~mask.to(value.device), 0)  # a product would leave nan where the value is infinite
        return model

    def __and__(self, other: Mapping[str, Tensor]) -> "Masks":
        return Masks({name: mask & _partner(name, mask, other) for name, mask in self.items()})

    def __or__(self, other: Mapping[str, Tensor]) -> "Masks":
        return Masks({name: mask | _partner(name, mask, other) for name, mask in self.items()})


def _as_bool(name: str, mask: Tensor) -> Tensor:
    if mask.dtype is torch.bool:
        return mask
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise InvalidValue(f"the mask of {name!r} must hold only 0 and 1 (dead, alive), got other values")
    return mask.bool()


def _partner(name: str, mask: Tensor, other: Mapping[str, Tensor]) -> Tensor:
    if name not in other:
        raise unknown("mask", name, other)
    if other[name].shape != mask.shape:
        raise InvalidValue(f"the masks of {name!r} differ in shape: {tuple(mask.shape)} and {tuple(other[name].shape)}")
    return other[name]


def check_fit(masks: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
    """Raises: UnknownName or InvalidValue if a mask belongs to no parameter, or has another shape."""
    for name, mask in masks.items():
        if name not in parameters:
            raise unknown("parameter", name, parameters, "(masks are named as in model.named_parameters())")
        if mask.shape != parameters[name].shape:
            raise InvalidValue(
                f"the mask of {name!r} has shape {tuple(mask.shape)}, the parameter {tuple(parameters[name].shape)}; "
                "give the masks of this network"
            )


def disobeying(masks: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> dict[str, int]:
    """Name -> number of values that are not 0 although their mask is False. Names without such values are left out."""
    found = {
        name: int(torch.count_nonzero(values[name].detach()[~mask.to(values[name].device)]))
        for name, mask in masks.items()
        if name in values and values[name].shape == mask.shape
    }
    return {name: number for name, number in found.items() if number}


def check_obeyed(masks: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Raises: InvalidValue if a value is not 0 where its mask is False."""
    found = disobeying(masks, values)
    if found:
        name = next(iter(found))
        raise InvalidValue(
            f"{sum(found.values())} weights that the masks cut are not 0 ({found[name]} of {name!r}), so these masks "
            "are not this network's; call masks.apply_(model) first, or give the masks it was trained with"
        )


def pack(mask: Bool[Tensor, "*shape"]) -> UInt8[Tensor, "bytes"]:
    """A bool tensor as bits, eight to a byte, in a flat uint8 tensor of ceil(numel / 8)."""
    flat = mask.reshape(-1).to(torch.uint8)
    padded = torch.nn.functional.pad(flat, (0, -flat.numel() % 8)).view(-1, 8)
    return (padded << torch.arange(8, dtype=torch.uint8, device=mask.device)).sum(1, dtype=torch.uint8)


def unpack(bits: Tensor, shape: tuple[int, ...]) -> Bool[Tensor, "*shape"]:
    """The inverse of `pack`.

    Raises: InvalidValue if the number of bytes does not fit the shape.
    """
    count = 1
    for size in shape:
        count *= size
    if bits.numel() != (count + 7) // 8:
        raise InvalidValue(f"{bits.numel()} bytes of packed mask do not fit a tensor of shape {tuple(shape)}")
    spread = (bits.view(-1, 1) >> torch.arange(8, dtype=torch.uint8, device=bits.device)) & 1
    return spread.view(-1)[:count].view(shape).bool()


def count(masks: Mapping[str, Tensor]) -> int:
    """The number of True entries in all tensors together."""
    return sum(int(torch.count_nonzero(mask)) for mask in masks.values())


def overlap(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> int:
    """The number of entries that are True in both."""
    return sum(int(torch.count_nonzero(a[name] & b[name])) for name in a)


@final
@dataclass(frozen=True)
class Outcome:
    """The masks of a mask update.

    Attributes:
        alive: after it.
        survivors: alive and not regrown by it: these keep their value and optimizer state.
        regrown: brought back by it.
        reference: the mask of plain pruning, without regrowth, at the same target.
    """

    alive: dict[str, Tensor]
    survivors: dict[str, Tensor]
    regrown: dict[str, Tensor]
    reference: dict[str, Tensor]


def unchanged(masks: Mapping[str, Tensor]) -> Outcome:
    """The outcome of a mask update that leaves the masks alone."""
    none = {n: torch.zeros_like(m) for n, m in masks.items()}
    return Outcome(dict(masks), dict(masks), none, dict(masks))
