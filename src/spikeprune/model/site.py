"""A weight and the neuron it feeds: where a statistic is recorded, and with what."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from spikeprune.core.errors import InvalidValue
from spikeprune.core.statistic import ChannelMean, Statistic, SynapseMean, TraceProducts, as_channels
from spikeprune.methods.base import Site
from spikeprune.model.adapter import Adapter
from spikeprune.model.discover import title_of
from spikeprune.model.weights import Multiplication, Use, weight_of


@final
@dataclass
class ProbeSite(Site):
    """A weight layer and the neuron it feeds: where a statistic is recorded, and with what."""

    weight: str
    parameter: nn.Parameter
    layer: nn.Module | None
    neuron: nn.Module
    adapter: Adapter
    use: Use | None = None
    inner: bool = False
    operation: Multiplication | None = None  # of the latest use, where the weight is not used by its own module

    @property
    def channels(self) -> int:
        if self.use is not None:
            return self.parameter.shape[self.use.outputs]
        outputs = getattr(self.layer, "out_channels", None)
        return int(self.layer.out_features if outputs is None else outputs)  # type: ignore[arg-type]

    @property
    def channels_last(self) -> bool:
        if self.use is not None:
            return self.use.axis == -1
        return isinstance(self.layer, nn.Linear)

    def laid(self, u: Tensor) -> Tensor:
        """One time step as [N, C, *space]."""
        try:
            return as_channels(u, self.channels, last=self.channels_last)
        except InvalidValue as error:
            raise InvalidValue(
                f"{self.weight!r} has {self.channels} outputs, and {title_of(self.neuron)} behind it sees "
                f"{list(u.shape)} at a time step, so its channels cannot be told; pass exclude=[{self.weight!r}]"
            ) from error

    def derivative(self, u: Tensor) -> Tensor:
        return self.adapter.derivative(self.neuron, u)

    def value(self, u: Tensor) -> Tensor:
        return self.adapter.smooth(self.neuron, u)

    def spikes(self, u: Tensor) -> Tensor:
        return self.adapter.surrogate(self.neuron)(u)

    def potential(self, u: Tensor) -> Tensor:
        params = self.adapter.describe(self.neuron)
        if params is None:
            raise InvalidValue(
                f"the threshold of {type(self.neuron).__name__} behind {self.weight!r} is not known, so its membrane "
                "potential cannot be told; take a method that does without, such as firing-rate"
            )
        return u + params.v_threshold

    def per_channel(self, curve: Callable[[Tensor], Tensor], space: str) -> Statistic:
        return ChannelMean(curve, space)

    def per_synapse(self, curve: Callable[[Tensor], Tensor]) -> SynapseMean:
        layer = self.layer
        if self.use is not None and not (self.inner and isinstance(layer, (nn.Linear, _ConvNd))):
            return self._per_used_synapse(curve)
        if isinstance(layer, nn.Linear):
            return SynapseMean(curve, _correlate_linear, lambda x: (x.shape[0], layer.out_features, *x.shape[1:-1]))
        if not isinstance(layer, _ConvNd):
            raise InvalidValue(
                f"the synapse unit knows Conv and Linear layers, not {type(layer).__name__} ({self.weight!r}); "
                f"pass exclude=[{self.weight!r}] or unit='neuron'"
            )
        return SynapseMean(curve, lambda d, x: correlate_conv(layer, d, x), lambda x: conv_shape(layer, x))

    def per_trace(self, decay: float) -> Statistic:
        return TraceProducts(self.spikes, decay, last=self.channels_last)

    def _per_used_synapse(self, curve: Callable[[Tensor], Tensor]) -> SynapseMean:
        use = self.use
        assert use is not None
        if self.inner:
            raise InvalidValue(
                f"{self.weight!r} is multiplied with inside of {type(self.neuron).__name__}, where its single synapses "
                f"cannot be watched; pass exclude=[{self.weight!r}] or unit='neuron'"
            )
        axis = use.axis

        def ran(x: Tensor) -> tuple[Tensor, Tensor]:
            assert self.operation is not None
            with torch.enable_grad():
                weight = self.operation.weight.detach().requires_grad_()
                return weight, self.operation.run(x, weight)

        def correlate(d: Tensor, x: Tensor) -> Tensor:
            weight, result = ran(x)
            (gradient,) = torch.autograd.grad(result, weight, d.movedim(1, axis).reshape(result.shape).to(result.dtype))
            if use.direct:
                return gradient
            places = None if self.operation is None else self.operation.places
            if places is None:
                raise InvalidValue(
                    f"{self.weight!r} is rearranged before it is used, so its single synapses cannot be told; pass "
                    f"exclude=[{self.weight!r}] or unit='neuron'"
                )
            found = gradient.new_zeros(self.parameter.numel())
            return found.index_add_(0, places.flatten(), gradient.flatten()).view_as(self.parameter)

        return SynapseMean(curve, correlate, lambda x: tuple(ran(x)[1].detach().movedim(axis, 1).shape))


def _correlate_linear(d: Tensor, x: Tensor) -> Tensor:
    """Sum over N (and tokens) of d[n, o] * x[n, i]; d is [N, O, *tokens], x is [N, *tokens, I]."""
    rows = d.movedim(1, -1).reshape(-1, d.shape[1])
    return rows.T @ x.reshape(-1, x.shape[-1]).to(rows.dtype)


def conv_shape(layer: _ConvNd, x: Tensor) -> tuple[int, ...]:
    """The shape of layer(x) for an input [N, C, *space]."""
    if isinstance(layer, _ConvTransposeNd):
        settings = zip(x.shape[2:], layer.padding, layer.dilation, layer.kernel_size, layer.stride, strict=True)
        spans = [(size - 1) * s - 2 * int(p) + d * (k - 1) + 1 for size, p, d, k, s in settings]
        return (x.shape[0], layer.out_channels, *(a + b for a, b in zip(spans, layer.output_padding, strict=True)))
    x, padding = _padded(layer, x)
    sizes = zip(x.shape[2:], padding, layer.dilation, layer.kernel_size, layer.stride, strict=True)
    space = (
        (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1 for size, pad, dilation, kernel, stride in sizes
    )
    return (x.shape[0], layer.out_channels, *space)


def correlate_conv(layer: _ConvNd, d: Tensor, x: Tensor) -> Tensor:
    """The weight gradient of `layer` for input x and output gradient d: sum over N and positions of d * x."""
    x, padding = _padded(layer, x)
    gradient = torch.ops.aten.convolution_backward(
        d, x.to(d.dtype), weight_of(layer).to(d.dtype), None, layer.stride, padding, layer.dilation, layer.transposed,
        layer.output_padding, layer.groups, [False, True, False],
    )  # fmt: skip
    return gradient[1]


def _padded(layer: _ConvNd, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """The input and the plain zero padding still to be applied; 'same' and circular padding are applied here."""
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        return F.pad(x, layer._reversed_padding_repeated_twice, mode=mode), (0,) * len(layer.stride)
    return x, tuple(layer.padding)
