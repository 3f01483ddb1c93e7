"""The kinds of operations that a network is made of, told once: of leaf modules, and of tensor functions."""

from typing import Protocol, runtime_checkable

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.modules.conv import _ConvNd  # pyright: ignore[reportPrivateUsage]
from torch.nn.modules.instancenorm import _InstanceNorm  # pyright: ignore[reportPrivateUsage]

from spikeprune.model.adapter import Adapter

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
}  # fmt: skip


# Functions that work value by value: what they return has the channels of what went in.
ELEMENTWISE = {
    "add", "add_", "__add__", "__radd__", "__iadd__", "sub", "sub_", "__sub__", "__rsub__", "rsub", "__isub__",
    "mul", "mul_", "__mul__", "__rmul__", "__imul__", "div", "__truediv__", "__itruediv__", "neg", "__neg__",
    "relu", "relu_", "sigmoid", "tanh", "clamp", "clamp_", "abs", "square", "pow", "__pow__", "maximum", "minimum",
    "clone", "detach", "to", "float", "double", "type_as", "contiguous", "dropout", "logical_and", "logical_or",
    "__and__", "__or__", "__gt__", "__ge__", "__lt__", "__le__", "gt", "ge", "lt", "le",
}  # fmt: skip
REDUCTIONS = {"mean", "sum", "amax", "amin"}


@runtime_checkable
class ChannelGate(Protocol):
    """A module that passes on only some channels of [..., C, H, W]: where `keep` [C] is True; `index` in order."""

    channels: int
    keep: Tensor
    index: Tensor

    def select(self, keep: Tensor) -> None:
        """Lets only the channels pass where `keep` is True."""
        ...


def leaf_kind(module: nn.Module, adapter: Adapter | None) -> str | None:
    """The kind of a module that the trace does not look into, None for a container."""
    if adapter is not None and adapter.is_neuron(module):
        return "neuron"
    if isinstance(module, ChannelGate):
        return "select"
    return next((kind for kind, classes in _KINDS if isinstance(module, classes)), None)
