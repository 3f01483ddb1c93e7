"""The neurons, normalisation and gates of the paper's two kinds of networks.

The authors' unstructured and structured code differ in more than the pruning: here each is a `Variant`.
Source: Chen et al. 2023, arXiv:2311.16141, and the authors' public code.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from spikingjelly.activation_based import layer, neuron, surrogate
from torch import Tensor, nn

from spikeprune.core.surrogate import dspike


class _DspikeFunction(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, k: float) -> Tensor:
        return (x > 0).to(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        x, ctx.k = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return Dspike.backward(grad_output, x, ctx.k), None


class Dspike(surrogate.SurrogateFunctionBase):
    """A spike when x > 0, strictly; the gradient is that of a clamped tanh. x = v_pre - v_threshold.

        h(x)  = [tanh(k c) + tanh(k/2)] / [2 tanh(k/2)],    c = clamp(x, -1/2, 1/2)
        h'(x) = k sech^2(k x) / [2 tanh(k/2)] for |x| <= 1/2, else 0

    h runs from 0 at x = -1/2 to 1 at x = 1/2. With k = 3 the slope is 1.657 at the threshold and 0.299 at both ends.

    Args:
        k: steepness, above 0.
        spiking: False gives h itself instead of spikes.

    Source: the curve of Li et al. 2021 (Dspike, NeurIPS), as in the authors' unstructured code (arXiv:2311.16141).
    """

    def __init__(self, k: float = 3.0, spiking: bool = True):
        super().__init__(spiking=spiking, k=k)

    @staticmethod
    def spiking_function(x: Tensor, k: float) -> Tensor:
        return _DspikeFunction.apply(x, k)

    @staticmethod
    def primitive_function(x: Tensor, k: float) -> Tensor:
        return dspike(k, clamped=True).value(x)

    @staticmethod
    def backward(grad_output: Tensor, x: Tensor, k: float) -> Tensor:
        return grad_output * dspike(k, clamped=True).derivative(x)


class BatchNorm2dPerStep(layer.BatchNorm2d):
    """BatchNorm2d that sees one time step after the other.

    While training, each of the T steps is normalised by its own statistics, and the running averages move T times a
    batch. In eval mode it equals the ordinary layer.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.step_mode == "s":
            return self.super_forward(x)
        if self.training or self.running_mean is None:
            return torch.stack([self.super_forward(x_NCHW) for x_NCHW in x])
        return self.super_forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class Gate(nn.Module):
    """Passes on the chosen channels of a [..., C, H, W] tensor; all of them until `select` is called.

    The residual stream of a pre-activation network keeps its width; a gate behind a normalisation lets the layer
    after it be narrower. The choice is a buffer, so it counts as no parameter and travels in the state_dict.
    """

    keep: Tensor
    index: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels
        self.register_buffer("keep", torch.ones(channels, dtype=torch.bool))
        # The same choice as a list of channels, so that no forward has to count on the device.
        self.register_buffer("index", torch.arange(channels), persistent=False)
        self.register_load_state_dict_post_hook(lambda gate, _: gate.select(gate.keep))

    def select(self, keep: Tensor) -> None:
        """Lets only the channels pass where `keep` [C] is True. The next layer must take that many."""
        self.keep.copy_(keep)
        self.index = torch.nonzero(self.keep).flatten()

    def forward(self, x: Tensor) -> Tensor:
        if len(self.index) == self.channels:
            return x
        return x.index_select(x.dim() - 3, self.index)

    def extra_repr(self) -> str:
        return f"{self.channels} -> {len(self.index)}"


@dataclass(frozen=True)
class Variant:
    """The differences between the paper's two kinds of networks.

    Args:
        neuron: makes a neuron; the argument says whether its reset is cut from the gradient.
        norm: makes a normalisation of so many channels.
        gates: whether a gate stands behind the normalisations that open a residual block.
        repeat, readout: as in `SpikingNet`.
        bypass: whether the second convolution of a residual block takes what goes into its neuron, not the spikes.
    """

    neuron: Callable[[bool], neuron.BaseNode]
    norm: Callable[[int], layer.BatchNorm2d]
    gates: bool
    repeat: Literal["image", "stem"]
    readout: str
    bypass: bool = False


def lif_weights(detach_reset: bool = False) -> neuron.LIFNode:
    """v_pre = v/4 + x, no scaling of the input; a spike when v_pre > 1/2, then reset to 0."""
    return neuron.LIFNode(
        tau=4 / 3,
        decay_input=False,
        v_threshold=0.5,
        v_reset=0.0,
        surrogate_function=Dspike(k=3.0),
        detach_reset=detach_reset,
    )


def lif_channels(detach_reset: bool = False) -> neuron.LIFNode:
    """v_pre = v/4 + 3x/4; a spike when v_pre >= 1, then reset to 0."""
    return neuron.LIFNode(
        tau=4 / 3,
        decay_input=True,
        v_threshold=1.0,
        v_reset=0.0,
        surrogate_function=surrogate.ATan(alpha=2.0),
        detach_reset=detach_reset,
    )


WEIGHTS = Variant(
    # The gradient passes through every reset of the unstructured code, whatever the place asks for.
    neuron=lambda detach_reset: lif_weights(),
    norm=layer.BatchNorm2d,
    gates=False,
    repeat="image",
    readout="mean-over-T",
)
WEIGHTS_AUTHORS = replace(WEIGHTS, bypass=True)
CHANNELS = Variant(neuron=lif_channels, norm=BatchNorm2dPerStep, gates=True, repeat="stem", readout="per-step")
