"""One forward, recorded function by function below autograd, with the origin of every number that it moves around.

Every element of every tensor has a code, which tells the call that computed it and its place in that call's result.
Views, stacks, permutations, padding and writes into preallocated tensors only move codes. So it does not matter in
which shape a model writes down time and batch.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from spikeprune.core.errors import InvalidValue
from spikeprune.model.arguments import tensors

# Functions that move values and make none.
_MOVES = {
    "clone", "cat", "stack", "repeat", "index_select", "flip", "roll", "copy_", "index", "select_scatter",
    "slice_scatter", "repeat_interleave", "lift_fresh", "_to_copy", "constant_pad_nd", "expand_copy",
}  # fmt: skip
# Functions that read a tensor's shape alone.
_SHAPES_ONLY = {
    "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "new_zeros", "new_ones",
    "new_full", "new_empty", "new_empty_strided",
}  # fmt: skip
MOST = 40_000_000  # numbers that are followed: 32 bytes each


@dataclass
class CapturedCall:
    """One call that computed something.

    Attributes:
        name: of the function, such as "add.Tensor"; "input" and "constant" have no arguments.
        arguments: with `Argument` in place of tensors. inputs: the codes of those tensors.
        shape: of the result. start: code of its first element. module: the module that it stands in.
        value: the result.
    """

    name: str
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    inputs: list[Tensor]
    shape: tuple[int, ...]
    start: int
    module: str
    value: Tensor


@dataclass(frozen=True)
class Argument:
    """Stands for the tensor `CapturedCall.inputs[place]`."""

    place: int


class Capture(TorchDispatchMode):
    """Records what a forward computes from one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[CapturedCall] = []
        self.size = 0
        self.inside: list[str] = []
        self.codes: dict[int, Tensor] = {}  # by storage
        self._held: list[Any] = []  # so that no storage is freed and its number given to another one
        self._constants: dict[tuple[Any, ...], Tensor] = {}
        self._lost: set[int] = set()

    # -- codes -------------------------------------------------------------------------------------------------------

    def _append(self, name: str, value: Tensor, arguments: Any = (), keywords: Any = None, inputs: Any = ()) -> Tensor:
        module = self.inside[-1] if self.inside else ""
        if self.size + value.numel() > MOST:
            raise InvalidValue(
                f"the model computes more than {MOST // 10**6} million numbers for two samples, too many "
                "to follow one by one; give an example of smaller images or fewer steps"
            )
        call = CapturedCall(name, arguments, keywords or {}, list(inputs), tuple(value.shape), self.size, module, value)
        self.calls.append(call)
        self.size += value.numel()
        return torch.arange(call.start, self.size).view(value.shape)

    def start(self, x: Tensor) -> None:
        """Makes x the input."""
        self._write(x, self._append("input", x.clone()))

    def read(self, tensor: Tensor) -> Tensor:
        """The codes of a tensor; one that does not depend on the input becomes a constant."""
        key = tensor.untyped_storage()._cdata
        if key in self._lost:
            raise InvalidValue(f"{self._where()} uses a second result, such as an index, that cannot be followed")
        if key in self.codes:
            return torch.as_strided(self.codes[key], tensor.size(), tensor.stride(), tensor.storage_offset())
        known = (tensor.data_ptr(), tensor._version, tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if known not in self._constants:
            self._held.append(tensor)
            self._constants[known] = self._append("constant", tensor.detach().clone())
        return self._constants[known]

    def _write(self, tensor: Tensor, codes: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.codes:
            whole = torch.as_strided(tensor.detach(), (storage.nbytes() // tensor.element_size(),), (1,), 0)
            self.codes[key] = (
                torch.full(whole.shape, -1) if whole.numel() == codes.numel() else self.read(whole).clone()
            )
            self._held.append(storage)
        torch.as_strided(self.codes[key], tensor.size(), tensor.stride(), tensor.storage_offset()).copy_(codes)

    def _where(self) -> str:
        return repr(self.inside[-1]) if self.inside and self.inside[-1] else "the model's forward"

    # -- calls -------------------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = list(tensors((args, kwargs)))
        name = f"{func._schema.name.partition('::')[2]}.{func._overloadname}"
        base = name.partition(".")[0]
        live = [t for t in found if t.untyped_storage()._cdata in self.codes]
        if not live or base in _SHAPES_ONLY:
            out = func(*args, **kwargs)
            if any(t.untyped_storage()._cdata in self._lost for t in found):
                self._lose([r for r in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(r, Tensor)])
            return out
        if base in ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "allclose"):
            raise InvalidValue(f"{self._where()} decides by a value that it computes, so its steps cannot be told")
        mutable = func._schema.is_mutable
        if base in _MOVES and not (base == "_to_copy" and _loses(args[0], kwargs)):
            return self._move(func, base, args, kwargs)
        if base in ("zero_", "fill_"):
            out = func(*args, **kwargs)
            self._write(args[0], self.read(torch.full((), float(args[1]) if base == "fill_" else 0.0)))
            return out
        places: list[Tensor] = []

        def name_of(value: Any) -> Any:
            if isinstance(value, Tensor):
                places.append(self.read(value).clone())
                return Argument(len(places) - 1)
            if isinstance(value, (tuple, list)):
                return tuple(name_of(v) for v in value)
            return value

        template = name_of(args), {key: name_of(value) for key, value in kwargs.items()}
        out = func(*args, **kwargs)
        results = [r for r in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(r, Tensor)]
        if not mutable and all(any(_shares(r, t) for t in found) for r in results):
            return out  # a view
        if mutable:  # name_of has read the first argument before it was written to
            name = base.rstrip("_") + "." + func._overloadname
        first = results[0]
        self._write(first, self._append(name, first.detach().clone(), *template, inputs=places))
        self._lose(results[1:])
        self._held += results
        return out

    def _lose(self, results: list[Tensor]) -> None:
        self._lost |= {r.untyped_storage()._cdata for r in results if r.numel()}
        self._held += results

    def _move(self, func: Any, base: str, args: Any, kwargs: Any) -> Any:
        def coded(value: Any) -> Any:
            if isinstance(value, Tensor):
                return self.read(value)
            return [coded(v) for v in value] if isinstance(value, (tuple, list)) else value

        if base == "copy_":
            codes = self.read(args[1])
            self.read(args[0])
            out = func(*args, **kwargs)
            self._write(args[0], codes.expand(args[0].shape))
            return out
        if base in ("_to_copy", "clone", "lift_fresh"):
            codes = self.read(args[0])
        elif base in ("index_select", "index"):  # the index itself is no value that is moved
            codes = func(self.read(args[0]), *args[1:], **kwargs)
        elif base == "constant_pad_nd":
            filler = float(args[2]) if len(args) > 2 else 0.0
            codes = func(self.read(args[0]), args[1], -1)
            codes = torch.where(codes < 0, self.read(torch.full((), filler)), codes)
        else:
            codes = func(*[coded(a) for a in args], **kwargs)
        out = func(*args, **kwargs)
        self._held.append(out)
        self._write(out, codes)
        return out


def _shares(one: Tensor, two: Tensor) -> bool:
    return one.untyped_storage()._cdata == two.untyped_storage()._cdata


def _loses(source: Tensor, keywords: dict[str, Any]) -> bool:
    dtype = keywords.get("dtype")
    return dtype is not None and source.dtype.is_floating_point and not dtype.is_floating_point


@contextmanager
def _named(model: nn.Module, capture: Capture) -> Generator[None]:
    def enter(name: str) -> Callable[..., None]:
        return lambda *_: capture.inside.append(name)

    def leave(*_: Any) -> None:
        capture.inside.pop()

    handles: list[Any] = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name)))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def captured(model: nn.Module, x: Tensor) -> tuple[list[CapturedCall], Tensor, Tensor]:
    """The calls that `model(x)` makes, the codes of its output (see `Capture`), and the output.

    Raises: InvalidValue for a model that returns something else than one tensor that depends on x.
    """
    capture = Capture()
    with torch.no_grad(), _named(model, capture):
        x = x.clone()
        with capture:
            capture.start(x)
            output: Any = model(x)
    if not isinstance(output, Tensor):
        raise InvalidValue(
            f"a compiled model returns one tensor, this one returns {type(output).__name__}; wrap it in a module"
        )
    if output.untyped_storage()._cdata not in capture.codes:
        raise InvalidValue("the model's output does not depend on its input, so there is nothing to compile")
    return capture.calls, capture.read(output), output
