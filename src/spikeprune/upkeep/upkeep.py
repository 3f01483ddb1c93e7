"""What happens in every step: dead weights, their gradients and their optimizer state stay exactly 0."""

from collections.abc import Mapping

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
        optimizer: whose state is masked, if known.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """`parameters`: all parameters that may get a mask. Only those with a mask are kept at it."""
        self.parameters = parameters
        self.optimizer: torch.optim.Optimizer | None = None
        self.masks: dict[str, Tensor] = {}
        self.dense = True
        self._bits: dict[torch.dtype, dict[str, Tensor]] = {}
        self.set({n: torch.ones_like(p, dtype=torch.bool) for n, p in parameters.items()})

    def set(self, masks: dict[str, Tensor]) -> None:
        """Changes the masks; the weights follow with `hold`."""
        self.masks = masks
        self.dense = all(bool(mask.all()) for mask in masks.values())
        self._bits.clear()

    @torch.no_grad()
    def hold(self) -> None:
        """Zeroes dead weights."""
        if not self.dense:
            self._clear({n: self.parameters[n].data for n in self.masks})

    @torch.no_grad()
    def hold_grads(self) -> None:
        """Zeroes the gradients of dead weights, so that no optimizer state builds up for them."""
        if not self.dense:
            grads = {n: self.parameters[n].grad for n in self.masks}
            self._clear({n: grad for n, grad in grads.items() if grad is not None})

    def after_step(self, *, closure: bool, clean: bool) -> None:
        """After an update: zeroes dead weights, and their state where the optimizer would not keep it at zero.

        Args:
            closure: the step computed gradients itself, after `hold_grads`.
            clean: whether the state of dead weights is to be empty at all.
        """
        self.hold()
        if not self.dense and clean and (closure or type(self.optimizer) not in _KEEPS_ZERO):
            self.hold_state(self.masks)

    def _clear(self, tensors: Mapping[str, Tensor]) -> None:
        """Zeroes dead entries, also where they are infinite or nan, which a product with 0 would leave as nan.

        The bits of an entry are joined with all ones where it is alive and with the sign alone where it is dead: for
        finite numbers the result is that of the product, bit for bit, at the same cost.
        """
        for dtype in {t.dtype for t in tensors.values()}:
            if dtype not in self._bits:
                self._bits[dtype] = {n: _bits_of(m, dtype) for n, m in self.masks.items()}
            for name in (n for n, t in tensors.items() if t.dtype == dtype):
                bits = self._bits[dtype][name]
                tensors[name].view(bits.dtype).bitwise_and_(bits)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Parameter name -> the optimizer's state tensors of the parameter's shape (momentum and the like)."""
        state = {} if self.optimizer is None else self.optimizer.state
        return {
            n: {k: v for k, v in state[p].items() if isinstance(v, Tensor) and v.shape == p.shape}
            for n in self.masks
            if (p := self.parameters[n]) in state
        }

    @torch.no_grad()
    def hold_state(self, masks: Mapping[str, Tensor]) -> None:
        """Zeroes the optimizer state outside of `masks`."""
        for name, tensors in self.state().items():
            for tensor in tensors.values():
                bits = _bits_of(masks[name], tensor.dtype)
                tensor.view(bits.dtype).bitwise_and_(bits)


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _bits_of(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as integers of a dtype's size: all bits where it is True; where not, the sign's, or none of an integer."""
    integer = _INTEGERS[dtype.itemsize]
    dead = torch.iinfo(integer).min if dtype.is_floating_point else 0
    return torch.where(mask, -1, dead).to(integer)
