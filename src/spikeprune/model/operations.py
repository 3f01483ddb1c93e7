"""The kinds of operations that a network is made of, told once: of leaf modules, and of tensor functions."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeGuard, cast

from torch import Tensor, nn
from torch._C._functorch import is_batchedtensor
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.modules.conv import _ConvNd  # pyright: ignore[reportPrivateUsage]
from torch.nn.modules.instancenorm import _InstanceNorm  # pyright: ignore[reportPrivateUsage]
from torch.overrides import resolve_name

from spikeprune.model.adapter import Adapter
from spikeprune.model.arguments import Arguments

_POOLS = (
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)  # fmt: skip
_NORMS = (_BatchNorm, _InstanceNorm, nn.LayerNorm, nn.GroupNorm)
_IDENTITIES = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.Identity)
_RESHAPES = (nn.Flatten, nn.Unflatten)
_KINDS: tuple[tuple[str, tuple[type, ...]], ...] = (
    ("conv", (_ConvNd,)), ("linear", (nn.Linear,)), ("norm", _NORMS), ("pool", _POOLS),
    ("identity", _IDENTITIES), ("reshape", _RESHAPES),
)  # fmt: skip
FUNCTIONS = {
    "add": "add", "add_": "add", "__add__": "add", "__radd__": "add", "__iadd__": "add",
    "flatten": "reshape", "view": "reshape", "reshape": "reshape", "unflatten": "reshape", "squeeze": "reshape",
    "unsqueeze": "reshape", "permute": "reshape", "transpose": "reshape", "contiguous": "reshape", "expand": "reshape",
    "repeat": "reshape", "view_as": "reshape", "movedim": "reshape", "clone": "identity", "detach": "identity",
    "to": "identity", "float": "identity", "dropout": "identity", "__getitem__": "select", "unbind": "select",
    "chunk": "select", "split": "select", "select": "select", "stack": "stack", "cat": "cat", "concat": "cat",
    "mean": "reduce", "sum": "reduce", "avg_pool2d": "pool", "max_pool2d": "pool", "adaptive_avg_pool2d": "pool",
    "conv1d": "conv", "conv2d": "conv", "conv3d": "conv", "linear": "linear", "batch_norm": "norm",
    "conv_transpose1d": "conv", "conv_transpose2d": "conv", "conv_transpose3d": "conv",
}  # fmt: skip


# Functions that work value by value: what they return has the channels of what went in.
ELEMENTWISE = {
    "add", "add_", "__add__", "__radd__", "__iadd__", "sub", "sub_", "__sub__", "__rsub__", "rsub", "__isub__",
    "mul", "mul_", "__mul__", "__rmul__", "__imul__", "div", "__truediv__", "__itruediv__", "neg", "__neg__",
    "relu", "relu_", "sigmoid", "tanh", "clamp", "clamp_", "abs", "square", "pow", "__pow__", "maximum", "minimum",
    "clone", "detach", "to", "float", "double", "type_as", "contiguous", "dropout", "logical_and", "logical_or",
    "zeros_like", "ones_like", "data", "exp", "__and__", "__or__", "__gt__", "__ge__", "__lt__", "__le__", "gt", "ge",
    "lt", "le",
}  # fmt: skip
REDUCTIONS = {"mean", "sum", "amax", "amin"}

# Functions that only move values around: on index numbers they tell where each value came from.
MOVES = {
    "t", "T", "mT", "transpose", "swapaxes", "permute", "movedim", "view", "reshape", "flatten", "unflatten", "squeeze",
    "unsqueeze", "contiguous", "clone", "detach", "__getitem__", "narrow", "chunk", "split", "unbind", "select",
}  # fmt: skip

# Functions that multiply two tensors; without a weight among them, two activations, as attention does.
PRODUCTS = {"matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "baddbmm", "einsum", "scaled_dot_product_attention"}

# Functions that multiply with weights inside, in more steps than one.
MULTIPLIES_INSIDE = {
    "gru_cell", "lstm_cell", "rnn_tanh_cell", "rnn_relu_cell", "gru", "lstm", "rnn_tanh", "rnn_relu", "bilinear",
    "multi_head_attention_forward", "_native_multi_head_attention", "_transformer_encoder_layer_fwd",
}  # fmt: skip

# Functions that write into their first argument and return it, or nothing.
WRITES = {"__setitem__", "copy_", "index_copy_", "index_put_", "index_add_", "scatter_", "masked_scatter_"}


def is_mapped(tensor: Tensor) -> bool:
    """Whether a tensor stands for one sample inside of `torch.vmap`."""
    return is_batchedtensor(tensor)


def short_name(func: Callable[..., Any]) -> str:
    """The last part of a function's name; of a property such as `Tensor.T`, the property's."""
    full = resolve_name(func) or getattr(func, "__name__", "function")
    parts = full.rsplit(".", 2)
    name = parts[-2] if parts[-1] == "__get__" and len(parts) > 1 else parts[-1]
    return "mm" if name == "spmm" else name  # torch.mm and torch.spmm are one object, which resolves to the latter


def multiplied(name: str, given: Arguments) -> tuple[tuple[Any, int, int], ...]:
    """The operands of a function that may be a weight, each with two dimensions; empty if it does not multiply.

    Returns: (operand, its dimension that counts outputs, the dimension of the result that counts them), the last one
        counted from the end, and the middle one too where the operand's rank is not fixed.
    """

    args = given.positional

    def argument(place: int, keyword: str) -> Any:
        return args[place] if len(args) > place else given.named.get(keyword)

    if name in ("conv1d", "conv2d", "conv3d"):
        return ((argument(1, "weight"), 0, -1 - int(name[4])),)
    if name in ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"):
        return ((argument(1, "weight"), 1, -1 - int(name[14])),)
    if name == "linear":
        return ((argument(1, "weight"), 0, -1),)
    if name in ("matmul", "__matmul__", "mm", "bmm"):
        return _product(argument(0, "input"), argument(1, "other" if name == "matmul" else "mat2"))
    if name == "__rmatmul__":
        return _product(args[1], args[0])
    if name in ("addmm", "baddbmm", "addbmm"):
        return _product(args[1] if len(args) > 1 else None, args[2] if len(args) > 2 else None)
    if name == "mv":
        return _product(argument(0, "input"), argument(1, "vec"))
    if name == "inner":
        return ((argument(1, "other"), 0, -1),)
    if name == "tensordot":
        return _tensordot(argument(0, "a"), argument(1, "b"), argument(2, "dims"))
    if name == "einsum":
        return _einsum(args)
    return ()


def _product(left: Any, right: Any) -> tuple[tuple[Any, int, int], ...]:
    """The axes of `left @ right`: a weight on the right gives the last axis, a weight on the left the last but one."""
    vector = isinstance(right, Tensor) and right.dim() == 1
    return ((right, -1, -1), (left, -2, -1 if vector else -2))


def _tensordot(a: Any, b: Any, dims: Any) -> tuple[tuple[Any, int, int], ...]:
    """Takes a matrix on the right if one of its dimensions is summed with the last dimension of the left operand."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor) and b.dim() == 2) or isinstance(dims, Tensor):
        return ()
    if isinstance(dims, int):
        of_a, of_b = (-1, 0) if dims == 1 else (None, None)
    else:
        of_a, of_b = map(_only, cast(Sequence[Any], dims))
    if of_a is None or of_b is None or of_a % a.dim() != a.dim() - 1:
        return ()
    return ((b, 1 - of_b % 2, -1),)


def _only(dims: Any) -> int | None:
    """The number in a list of one, or the number itself."""
    if isinstance(dims, int):
        return dims
    values = cast(Sequence[int], dims)
    return values[0] if len(values) == 1 else None


def _einsum(args: Sequence[Any]) -> tuple[tuple[Any, int, int], ...]:
    if not args or not isinstance(args[0], str) or "->" not in args[0]:
        return ()
    operands = args[1] if len(args) == 2 and isinstance(args[1], (tuple, list)) else args[1:]
    left, right = args[0].replace(" ", "").split("->")
    if "." in right[3:]:  # dimensions that stand for others are known only in front
        return ()
    left, right = left.replace("...", ""), right.replace("...", "")
    terms, found = left.split(","), []
    for i, (term, operand) in enumerate(zip(terms, operands, strict=False)):
        rest = set("".join(terms[:i] + terms[i + 1 :]))
        own = [letter for letter in term if letter in right and letter not in rest]
        if len(own) == 1:  # the one letter that this operand alone brings into the result counts its outputs
            found.append((operand, term.index(own[0]), right.index(own[0]) - len(right)))
    return tuple(found)


class ChannelGate(Protocol):
    """A module that passes on only some channels of [..., C, H, W]: where `keep` [C] is True; `index` in order."""

    channels: int
    keep: Tensor
    index: Tensor

    def select(self, keep: Tensor) -> None:
        """Lets only the channels pass where `keep` is True."""
        ...


def is_gate(module: object) -> TypeGuard[ChannelGate]:
    """Whether a module is a `ChannelGate`. From Python 3.12 on `isinstance` would not see its buffers."""
    return all(hasattr(module, name) for name in ("channels", "keep", "index", "select"))


def leaf_kind(module: nn.Module, adapter: Adapter | None) -> str | None:
    """The kind of a module that the trace does not look into, None for a container.

    A Conv or Linear layer whose forward is the user's own is looked into: what it multiplies with what shows there.
    """
    if adapter is not None and adapter.is_neuron(module):
        return "neuron"
    if is_gate(module):
        return "select"
    kind = layer_kind(module)
    return None if kind in ("conv", "linear") and has_own_forward(module) else kind


def layer_kind(module: nn.Module) -> str | None:
    """The kind of layer that a module is, or is derived from; None for all else."""
    return next((kind for kind, classes in _KINDS if isinstance(module, classes)), None)


_PLAIN = ("torch.", "spikingjelly.", "snntorch.", "norse.", "spikeprune.")  # their layers multiply their input


def has_own_forward(layer: nn.Module) -> bool:
    """Whether the forward of a layer comes from the user or another tool, and not from torch or a framework."""
    for name in ("forward", "_conv_forward"):
        own = vars(layer).get(name)
        if own is not None and not str(getattr(own, "__module__", "")).startswith(_PLAIN):
            return True
        holder = next((cls for cls in type(layer).__mro__ if name in vars(cls)), None)
        if holder is not None and not holder.__module__.startswith(_PLAIN):
            return True
    return False
