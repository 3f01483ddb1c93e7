"""Inputs summed up as by a leaky membrane. The method SBC takes the Hessian of these sums.

    m[t] = decay * m[t - 1] + x[t],   m[-1] = 0

Without the reset, the potential of a neuron behind a weight w is w . m[t] times its gain. Errors of that potential
stand for errors of the spike train filtered by an exponential (van Rossum's distance). Their Hessian is the sum of
m m^T.

Source: Shi, Li & Ward-Cherrier 2025, arXiv:2506.03996 (the surrogate membrane potential). No code is published. Their
greedy order of single cuts is not followed: cuts fall in rounds here, as for every other score.
"""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from spikeprune.model.adapter import Adapter


@final
class Leak:
    """Gathers the inputs of one layer over the time steps of a batch.

    Args:
        decay: share of the potential that is left after a time step, in [0, 1].
        multi_step: whether the layer sees all time steps at once, on its first axis.
    """

    def __init__(self, decay: float, multi_step: bool) -> None:
        self.decay, self.multi_step = decay, multi_step
        self._before: Tensor | None = None

    def gather(self, layer: nn.Module, x: Tensor) -> Tensor | None:
        """m in the place of x; None where the layer's input does not show its time steps."""
        if self.multi_step:
            least = len(layer.kernel_size) + 3 if isinstance(layer, _ConvNd) else 3
            return _over_time(x, self.decay) if x.ndim >= least else None
        if self._before is not None and self._before.shape != x.shape:
            return None
        self._before = x if self._before is None else x + self.decay * self._before
        return self._before

    def forget(self) -> None:
        """A new batch begins with empty membranes."""
        self._before = None


def _over_time(x: Tensor, decay: float) -> Tensor:
    steps = [x[0]]
    for step in x[1:]:
        steps.append(step + decay * steps[-1])
    return torch.stack(steps)


def leak_of(adapter: Adapter | None, neuron: nn.Module | None) -> Leak | None:
    """The leak of a neuron; None if it is no plain leaky neuron. Of leaks that differ by channel the mean is taken."""
    if adapter is None or neuron is None:
        return None
    found = adapter.describe(neuron)
    if found is None:
        return None
    return Leak(float(torch.as_tensor(found.decay, dtype=torch.float64).mean()), adapter.multi_step(neuron))
