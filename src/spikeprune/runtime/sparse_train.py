"""Fine-tuning that leaves out the pruned weights' work: forward, gradient to the input, gradient of the weights.

While masks stay fixed nothing needs a dense gradient, neither magnitude nor criticality: all three products of a
layer then run over the weights alive. It pays where few are left; a layer where it would not stays as it is.
Runs in C++ on the CPU in float32; without a compiler every layer stays as it is.
"""

import ctypes
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from spikeprune.core.errors import InvalidValue
from spikeprune.core.mask import Masks, check_fit
from spikeprune.runtime import native
from spikeprune.runtime.structs import SparseStruct, pointer, run

# A layer is taken if at most this share of its weights is alive. Measured by `benchmarks/training.py`: layers of VGG-16
# break even with dense ones at 0.2, and with those that `sp.fuse` makes skip silent inputs between 0.1 and 0.2. It is a
# fixed number rather than a timing at hand, because a resumed run must take the same path to the last bit.
MOST_ALIVE = 0.15


@dataclass(frozen=True)
class SparseLayer:
    """The result for one layer: `sparse`, or the `reason` why it runs densely. `alive` is a share of its weights."""

    name: str
    alive: float
    sparse: bool
    reason: str = ""


@dataclass(frozen=True)
class _Rows:
    """The weights alive as a CSR matrix [rows][columns]; `source` says where in the dense weight each one stands."""

    begins: Tensor
    columns: Tensor
    source: Tensor

    @staticmethod
    def of(flat: Tensor, source: Tensor, rows: int, columns: int) -> "_Rows":
        order = torch.argsort(flat)
        flat, source = flat[order], source[order]
        begins = torch.zeros(rows + 1, dtype=torch.int32)
        begins[1:] = torch.bincount(flat // columns, minlength=rows).cumsum(0)
        return _Rows(begins, (flat % columns).to(torch.int32), source)


@dataclass(frozen=True)
class _AlivePlan:
    """One layer's weights alive by output channel, and by input channel with the kernel turned."""

    shape: tuple[int, int, int, int]
    padding: tuple[int, int]
    forward: _Rows
    backward: _Rows

    @staticmethod
    def of(mask: Tensor, padding: tuple[int, int]) -> "_AlivePlan":
        mask = mask if mask.dim() == 4 else mask[:, :, None, None]
        outputs, inputs, high, wide = mask.shape
        taps = high * wide
        flat = mask.contiguous().flatten().nonzero().flatten()
        o, rest = flat // (inputs * taps), flat % (inputs * taps)
        turned = (rest // taps) * (outputs * taps) + o * taps + (taps - 1 - rest % taps)
        return _AlivePlan(
            (outputs, inputs, high, wide),
            padding,
            _Rows.of(flat, flat, outputs, inputs * taps),
            _Rows.of(turned, flat, inputs, outputs * taps),
        )


def _spec(x: Tensor, y: Tensor, plan: _AlivePlan) -> SparseStruct:
    strides = ctypes.c_int64 * 4
    return SparseStruct(
        x.shape[0], *x.shape[1:], *y.shape[1:], *plan.shape[2:], *plan.padding, torch.get_num_threads(),
        strides(*x.stride()), strides(*y.stride()),
    )  # fmt: skip


class _SparseConvolution(torch.autograd.Function):
    """Stride-1 convolution of x [M, inputs, H, W] with the weights alive."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, plan: _AlivePlan) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.plan = plan
        high, wide = (
            size + 2 * pad - kernel + 1
            for size, pad, kernel in zip(x.shape[2:], plan.padding, plan.shape[2:], strict=True)
        )
        y = _empty_like(x, (x.shape[0], plan.shape[0], high, wide))
        rows = plan.forward
        values = _values(weight, rows)
        status = _library().sparse_train_forward(
            ctypes.byref(_spec(x, y, plan)), pointer(x), pointer(rows.begins), pointer(rows.columns),
            pointer(values), pointer(y),
        )  # fmt: skip
        run("a layer of weights alive", status)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        plan: _AlivePlan = ctx.plan
        rows, turned = plan.forward, plan.backward
        values = _values(weight, turned)
        alive = torch.empty(len(rows.columns))
        g_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        status = _library().sparse_train_backward(
            ctypes.byref(_spec(x, g, plan)), pointer(x), pointer(g), pointer(rows.begins), pointer(rows.columns),
            pointer(alive), pointer(turned.begins), pointer(turned.columns), pointer(values),
            pointer(g_x),
        )  # fmt: skip
        run("the gradient of a layer of weights alive", status)
        g_weight = torch.zeros(weight.shape).view(-1).index_copy_(0, rows.source, alive).view(weight.shape)
        return g_x, g_weight, None


def _library() -> ctypes.CDLL:
    library = native.library("sparse_train")
    assert library is not None, "a layer runs sparsely only where the kernels exist"
    return library


def _values(weight: Tensor, rows: _Rows) -> Tensor:
    return weight.detach().contiguous().view(-1)[rows.source]


def _empty_like(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.empty(shape, memory_format=torch.channels_last if last else torch.contiguous_format)


def sparsify(model: nn.Module, masks: Mapping[str, Tensor]) -> list[SparseLayer]:
    """Lets the masked layers of the model train over the weights alive alone, in place, until `densify`.

    The masks must stay fixed in between; after an update of them call it again. Outputs and gradients of the weights
    alive are those of masked dense training up to rounding; a dead weight's gradient is 0.

    Args:
        model: Conv2d (stride 1, one group) and Linear layers can take part, of PyTorch or SpikingJelly.
        masks: parameter name -> bool tensor of its shape, True = alive, as `Pruner.masks`.

    Returns: what became of each masked layer.
    Raises: UnknownName for a mask that has no parameter; InvalidValue if its shape is wrong, it holds more than 0 and
        1, or a dead weight is not 0. Then no layer is changed.
    """
    given, parameters = Masks(masks), dict(model.named_parameters())
    check_fit(given, parameters)
    for name, mask in given.items():
        if bool(parameters[name].detach()[~mask].any()):
            raise InvalidValue(
                f"{name!r} has weights that the mask calls dead but that are not 0; apply the mask first"
            )
    densify(model)
    layers = {name + ".weight" if name else "weight": module for name, module in model.named_modules()}
    report: list[SparseLayer] = []
    for name, mask in given.items():
        if mask.dim() not in (2, 4):
            continue
        alive = float(mask.sum()) / mask.numel()
        reason = _refusal(layers.get(name), alive)
        report.append(SparseLayer(name, alive, not reason, reason))
        if not reason:
            _attach(layers[name], mask)
    return report


def densify(model: nn.Module) -> None:
    """Undoes `sparsify`, in place."""
    for module in model.modules():
        state = vars(module).pop("_sparse_state", None)
        if state is not None:
            vars(module).pop("forward")
            if state.before is not None:
                vars(module)["forward"] = state.before


@contextmanager
def sparse_finetune(model: nn.Module, masks: Mapping[str, Tensor]) -> Iterator[list[SparseLayer]]:
    """`sparsify` inside the block, `densify` behind it.

    Yields: what became of each masked layer.
    Raises: as `sparsify`.
    """
    report = sparsify(model, masks)
    try:
        yield report
    finally:
        densify(model)


@dataclass
class _State:
    plan: _AlivePlan
    before: Any  # an instance's own forward, such as that of sp.fuse


def _refusal(module: nn.Module | None, alive: float) -> str:
    """Why a layer stays dense, "" if it need not."""
    if isinstance(module, nn.Conv2d):
        kernel, padding = module.kernel_size, module.padding
        if module.stride != (1, 1) or module.dilation != (1, 1) or module.groups != 1:
            return "only convolutions of stride 1, dilation 1 and one group run sparsely"
        if (
            isinstance(padding, str)
            or module.padding_mode != "zeros"
            or any(p > k - 1 for p, k in zip(padding, kernel, strict=True))
        ):
            return "only zero padding narrower than the kernel runs sparsely"
    elif not isinstance(module, nn.Linear):
        return f"{type(module).__name__} is neither Conv2d nor Linear"
    weight: Any = module.weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return "only float32 on the CPU runs sparsely"
    if alive > MOST_ALIVE:
        return f"{alive:.0%} of the weights are alive; dense is faster above {MOST_ALIVE:.0%}"
    if native.library("sparse_train") is None:
        return "no C++ compiler"
    return ""


def _attach(module: Any, mask: Tensor) -> None:
    padding: Any = getattr(module, "padding", (0, 0))  # a Linear is a 1x1 convolution
    before = vars(module).get("forward")
    vars(module).update(_sparse_state=_State(_AlivePlan.of(mask, padding), before))
    vars(module).update(forward=types.MethodType(_forward, module))


def _forward(self: Any, x: Any) -> Any:
    state: _State = self._sparse_state
    plan = state.plan
    convolution = isinstance(self, nn.Conv2d)
    usual = x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu") and x.numel() > 0
    if not usual or torch.compiler.is_compiling() or (convolution and x.dim() < 4):
        return type(self).forward(self, x) if state.before is None else state.before(x)
    if convolution and x.dim() == 5:
        T = x.shape[0]
        if T > 1 and x.stride(0) == 0:  # one image for all steps
            return _forward(self, x[:1]).expand(T, *[-1] * 4)
        return _forward(self, x.flatten(0, 1)).unflatten(0, x.shape[:2])
    flat = x if convolution else x.reshape(-1, x.shape[-1], 1, 1)
    y: Any = _SparseConvolution.apply(flat, self.weight, plan)
    if self.bias is not None:
        y = y + self.bias.view(1, -1, 1, 1)
    return y if convolution else y.view(*x.shape[:-1], -1)
