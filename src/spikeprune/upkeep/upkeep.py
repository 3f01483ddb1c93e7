"""The upkeep of zeros in every step: dead weights, their gradients and their optimizer state stay exactly 0."""

from collections.abc import Iterator, Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn

# Given weight, gradient and state of exactly 0 these leave all of them at exactly 0, so that masking the gradient
# before the step is enough; for any other optimizer the state is masked after every step as well
# (test: tests/unit/test_upkeep.py::test_dead_weights_and_their_state_stay_zero).
_KEEPS_ZERO = (
    torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam,
    torch.optim.Adagrad, torch.optim.Adadelta, torch.optim.RMSprop,
)  # fmt: skip


class Upkeep:
    """The masks of some parameters, and the operations that keep dead weights at 0.

    Attributes:
        masks: parameter name -> bool, True = alive.
        dense: no weight is dead, so there is nothing to do.
        optimizers: whose state is masked, if known.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """`parameters`: all parameters that may get a mask. Only those with a mask are kept at it."""
        self.parameters = parameters
        self.optimizers: Sequence[torch.optim.Optimizer] = ()
        self.masks: dict[str, Tensor] = {}
        self.dense = True
        self.set({n: torch.ones_like(p, dtype=torch.bool) for n, p in parameters.items()})

    def set(self, masks: dict[str, Tensor]) -> None:
        """Changes the masks; the weights follow with `hold`."""
        self.masks = masks
        self.dense = all(bool(mask.all()) for mask in masks.values())
        self._bits = _Bits(masks)

    @torch.no_grad()
    def hold(self) -> None:
        """Zeroes dead weights."""
        if not self.dense:
            for name in self.masks:
                self._bits.clear(name, self.parameters[name])

    @torch.no_grad()
    def hold_grads(self) -> None:
        """Zeroes the gradients of dead weights, so that no optimizer state builds up for them."""
        if not self.dense:
            for name in self.masks:
                if (grad := self.parameters[name].grad) is not None:
                    self._bits.clear(name, grad)

    def after_step(self, *, closure: bool, clean: bool) -> None:
        """After an update: zeroes dead weights, and their state where the optimizer would not keep it at zero.

        Args:
            closure: the step computed gradients itself, after `hold_grads`.
            clean: whether the state of dead weights is to be empty at all.
        """
        self.hold()
        if not self.dense and clean and (closure or not all(map(_keeps_zero, self.optimizers))):
            self.hold_state(self.masks)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Parameter name -> the optimizer's state tensors of the parameter's shape (momentum and the like)."""
        found: dict[str, dict[str, Tensor]] = {}
        for optimizer in self.optimizers:
            for n in self.masks:
                if (p := self.parameters[n]) in optimizer.state:
                    state = optimizer.state[p].items()
                    found.setdefault(n, {}).update({k: v for k, v in state if _is_like(v, p)})
        return found

    @torch.no_grad()
    def hold_state(self, masks: Mapping[str, Tensor]) -> None:
        """Zeroes the optimizers' state outside of `masks`."""
        self._hold_state(self._bits if masks is self.masks else _Bits(masks))

    def _hold_state(self, bits: "_Bits") -> None:
        for name, tensors in self.state().items():
            for tensor in tensors.values() if name in bits.masks else ():
                bits.clear(name, tensor)
        names = {id(p): n for n, p in self.parameters.items() if n in bits.masks}
        for optimizer in self.optimizers:
            for p, tensor in _copies(optimizer):
                if id(p) in names and tensor is not p:
                    bits.clear(names[id(p)], tensor)

    @torch.no_grad()
    def forget(self, masks: Mapping[str, Tensor], *, state: bool) -> None:
        """Zeroes weights outside of `masks`, and with `state` what the optimizers keep of them: they start anew."""
        bits = _Bits(masks)
        for name in masks:
            bits.clear(name, self.parameters[name])
        if state:
            self._hold_state(bits)

    def hold_others(self, optimizer: torch.optim.Optimizer) -> None:
        """Zeroes dead weights, and their state, after an optimizer that is not attached has changed them."""
        self.hold()
        if not self.dense:
            mine, self.optimizers = self.optimizers, (optimizer,)
            self.hold_state(self.masks)
            self.optimizers = mine

    def forget_history(self) -> None:
        """Empties the state of optimizers that keep all parameters in one vector: it belongs to other weights now."""
        for optimizer in self.optimizers:
            if isinstance(optimizer, torch.optim.LBFGS):
                optimizer.state.clear()


# What the optimizers of _KEEPS_ZERO keep by themselves. A wrapper may add entries of its own, such as slow weights.
_OWN_STATE = {
    "step", "momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "mu_product", "sum", "square_avg",
    "acc_delta", "grad_avg",
}  # fmt: skip


def _keeps_zero(optimizer: torch.optim.Optimizer) -> bool:
    plain = type(optimizer) in _KEEPS_ZERO
    return plain and all(_OWN_STATE.issuperset(state) for state in optimizer.state.values())


def _is_like(value: object, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape


def _copies(optimizer: torch.optim.Optimizer) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of a parameter and a tensor like it from a list that the optimizer holds, such as slow weights."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for value in vars(optimizer).values():
        if isinstance(value, (list, tuple)) and value is not optimizer.param_groups:
            kept = list(_tensors(value))
            if len(kept) == len(parameters) and all(map(_is_like, kept, parameters)):
                yield from zip(parameters, kept, strict=True)


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _tensors(entry)


@final
class _Bits:
    """Clears dead entries, also where they are infinite or nan, which a product with 0 would leave as nan.

    The bits of an entry are joined with all ones where it is alive and with the sign alone where it is dead: for
    finite numbers the result is that of the product, bit for bit, at the same cost.
    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        self.masks = masks
        self._made: dict[tuple[str, torch.dtype], Tensor] = {}

    def clear(self, name: str, tensor: Tensor) -> None:
        """Zeroes a tensor, in place, outside of the mask of that name."""
        key = name, tensor.dtype
        if key not in self._made:
            self._made[key] = _bits_of(self.masks[name], tensor.dtype)
        bits = self._made[key]
        tensor.data.view(bits.dtype).bitwise_and_(bits)


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _bits_of(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as integers of the dtype's size: all bits are set where it is True.

    Where it is False, only the sign bit of a float is set, and no bit of an integer.
    """
    ones = mask.to(_INTEGERS[dtype.itemsize])  # `where` makes int64 first, and takes ten times as long
    if not dtype.is_floating_point:
        return ones.neg_()
    limits = torch.iinfo(ones.dtype)
    return torch.add(ones.new_tensor(limits.min), ones, alpha=limits.max, out=ones)  # -1 where it is alive
