"""What happens in every step: dead weights, their gradients and their optimizer state stay exactly 0."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

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
        if not self.dense and clean and (closure or not all(map(_keeps_zero, self.optimizers))):
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
        for name, tensors in self.state().items():
            _clear_all(tensors.values(), masks[name])
        names = {id(p): n for n, p in self.parameters.items() if n in masks}
        for optimizer in self.optimizers:
            for p, tensor in _copies(optimizer):
                if id(p) in names and tensor is not p:
                    _clear_all([tensor], masks[names[id(p)]])

    def hold_others(self, optimizer: torch.optim.Optimizer) -> None:
        """Zeroes dead weights after an optimizer that is not attached has written, and what it keeps of them."""
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
    """Each parameter with what an attribute of the optimizer keeps of it, such as a list of slow weights."""
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


def _clear_all(tensors: Iterable[Tensor], mask: Tensor) -> None:
    for tensor in tensors:
        bits = _bits_of(mask, tensor.dtype)
        tensor.detach().view(bits.dtype).bitwise_and_(bits)


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _bits_of(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as integers of a dtype's size: all bits where it is True; where not, the sign's, or none of an integer."""
    integer = _INTEGERS[dtype.itemsize]
    dead = torch.iinfo(integer).min if dtype.is_floating_point else 0
    return mask.to(integer).neg_().bitwise_or_(dead)  # `where` makes int64 first, and takes ten times as long
