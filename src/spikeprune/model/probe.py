"""The Probe: hooks that feed statistics during a few forwards, and are always taken away again."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from spikeprune.core.errors import InvalidValue
from spikeprune.core.statistic import ChannelMean, Statistic, SynapseMean, as_channels
from spikeprune.methods.base import Method, Site
from spikeprune.model.adapter import Adapter
from spikeprune.model.pairing import Pairing


@final
@dataclass
class ProbeSite(Site):
    """A weight layer and the neuron it feeds: where a statistic is recorded, and with what."""

    weight: str
    layer: nn.Module
    neuron: nn.Module
    adapter: Adapter

    @property
    def channels(self) -> int:
        outputs = getattr(self.layer, "out_channels", None)
        return int(self.layer.out_features if outputs is None else outputs)  # type: ignore[arg-type]

    @property
    def channels_last(self) -> bool:
        return isinstance(self.layer, nn.Linear)

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

    def per_synapse(self, curve: Callable[[Tensor], Tensor]) -> Statistic:
        layer = self.layer
        if isinstance(layer, nn.Linear):
            return SynapseMean(curve, _correlate_linear, lambda x: (x.shape[0], layer.out_features, *x.shape[1:-1]))
        if not isinstance(layer, _ConvNd) or layer.transposed:
            raise InvalidValue(
                f"the synapse unit knows Conv and Linear layers, not {type(layer).__name__} ({self.weight!r}); "
                f"pass exclude=[{self.weight!r}] or unit='neuron'"
            )
        return SynapseMean(curve, lambda d, x: correlate_conv(layer, d, x), lambda x: conv_shape(layer, x))


def _correlate_linear(d: Tensor, x: Tensor) -> Tensor:
    """Sum over N (and tokens) of d[n, o] * x[n, i]; d is [N, O, *tokens], x is [N, *tokens, I]."""
    rows = d.movedim(1, -1).reshape(-1, d.shape[1])
    return rows.T @ x.reshape(-1, x.shape[-1]).to(rows.dtype)


def conv_shape(layer: _ConvNd, x: Tensor) -> tuple[int, ...]:
    """The shape of layer(x) for an input [N, C, *space]."""
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
        d, x.to(d.dtype), layer.weight.to(d.dtype), None, layer.stride, padding, layer.dilation, False,
        [0] * len(layer.stride), layer.groups, [False, True, False],
    )  # fmt: skip
    return gradient[1]


def _padded(layer: _ConvNd, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """The input and the plain zero padding still to be applied; 'same' and circular padding are applied here."""
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        return F.pad(x, layer._reversed_padding_repeated_twice, mode=mode), (0,) * len(layer.stride)
    return x, tuple(layer.padding)


class Probe:
    """Records a method's statistic while it is installed.

    One statistic per neuron (`ChannelMean`), shared by the layers that feed it, or one per weight (`SynapseMean`).
    `calls` counts how often a hook of ours ran, none while the Probe is not installed; `begun` the sequences seen.
    """

    def __init__(
        self,
        model: nn.Module,
        adapter: Adapter,
        pairs: Mapping[str, Pairing],
        method: Method,
        *,
        needs_grad: bool,
    ) -> None:
        """`needs_grad`: skip forwards without gradient, such as the user's validation between two steps.

        Raises: InvalidValue if a weight's channels cannot be told at its neuron.
        """
        self.adapter = adapter
        self.needs_grad = needs_grad
        self.calls = 0
        self.begun = 0
        self._handles: list[Any] = []
        modules = dict(model.named_modules())
        self.sites = {
            name: ProbeSite(name, modules[pair.layer], modules[pair.neuron], adapter)
            for name, pair in pairs.items()
            if pair.neuron is not None and pair.layer in modules
        }
        joined = [name for name in self.sites if pairs[name].joined]
        if joined:
            raise InvalidValue(
                f"{joined[0]!r} reaches {pairs[joined[0]].neuron!r} through a cat, so its channels there cannot be "
                f"told; pass exclude=[{joined[0]!r}]"
            )
        self.statistics: dict[str, Statistic] = {}
        self._by_neuron: dict[nn.Module, list[str]] = {}  # neuron -> weights whose statistic its potential feeds
        self._shared: dict[str, str] = {}  # weight -> weight whose statistic it shares
        self._inputs: dict[str, Tensor] = {}
        first: dict[nn.Module, str] = {}
        for name, site in self.sites.items():
            statistic = method.statistic(site)
            owner = first.setdefault(site.neuron, name)
            if isinstance(statistic, SynapseMean) or owner == name:
                self.statistics[name] = statistic
                self._by_neuron.setdefault(site.neuron, []).append(name)
                self._shared[name] = name
            else:
                self._agree(owner, name)
                self._shared[name] = owner
        self._synapses = any(isinstance(s, SynapseMean) for s in self.statistics.values())

    def _agree(self, owner: str, name: str) -> None:
        if self.sites[owner].channels != self.sites[name].channels:
            raise InvalidValue(
                f"{owner!r} and {name!r} feed one neuron but have {self.sites[owner].channels} and "
                f"{self.sites[name].channels} outputs, so its channels cannot be told: exclude one"
            )

    @property
    def installed(self) -> bool:
        """Whether hooks are on the model now."""
        return bool(self._handles)

    def install(self) -> None:
        """Puts the hooks on. Does nothing if they are on."""
        if self._handles:
            return
        for neuron in self._by_neuron:
            self._handles.append(neuron.register_forward_pre_hook(self._fires, with_kwargs=True))
        if self._synapses:
            for name, site in self.sites.items():
                self._handles.append(site.layer.register_forward_pre_hook(self._keeps(name), with_kwargs=True))

    def remove(self) -> None:
        """Takes every hook off and forgets inputs in flight; what was recorded stays."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._inputs.clear()

    def _keeps(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.calls += 1
            if not self.needs_grad or torch.is_grad_enabled():
                self._inputs[name] = (*args, *kwargs.values())[0].detach()

        return keep

    def _fires(self, neuron: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.calls += 1
        if self.needs_grad and not torch.is_grad_enabled():
            return
        args = (*args, *kwargs.values())  # a state may be passed by name: lif(x, mem=mem)
        with torch.no_grad(), torch.autocast(args[0].device.type, enabled=False):
            self._record(neuron, args)

    def _record(self, neuron: nn.Module, args: tuple[Any, ...]) -> None:
        names = self._by_neuron[neuron]
        if self.adapter.begins(neuron, args):
            self.begun += 1
            for name in names:
                self.statistics[name].begin()
        inputs = {name: self._inputs.pop(name) for name in names if name in self._inputs}
        steps = args[0].shape[0] if self.adapter.multi_step(neuron) else 1
        for t, u in enumerate(self.adapter.drive(neuron, args)):
            u = u.float()
            for name in names:
                site, x = self.sites[name], inputs.get(name)
                value = as_channels(u, site.channels, last=site.channels_last)
                self.statistics[name].step(value, None if x is None else _at_step(x, t, steps, u.shape[0]))

    def add(self, totals: Mapping[str, tuple[Tensor | None, float]]) -> None:
        """Goes on from (sum, count) of each weight's statistic, as `totals` gives them."""
        for name, (total, count) in totals.items():
            if total is not None and name in self.statistics:
                self.statistics[name].add(total.to(next(self.sites[name].layer.parameters()).device), count)

    def totals(self) -> dict[str, tuple[Tensor | None, float]]:
        """Weight name -> (sum, count) recorded so far, for saving."""
        for statistic in self.statistics.values():
            statistic.begin()
        return {name: (statistic.total, statistic.count) for name, statistic in self.statistics.items()}

    def results(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Weight name -> statistic. `reduce` sums a tensor over ranks.

        Raises: MissingEvidence if nothing was recorded.
        """
        results: dict[str, Tensor] = {}
        for name, statistic in self.statistics.items():
            statistic.begin()
            if statistic.total is not None:
                statistic.total = reduce(statistic.total)
                count = reduce(torch.tensor(statistic.count, dtype=torch.float64, device=statistic.total.device))
                statistic.count = float(count)
            results[name] = statistic.result()
        return {name: results[owner] for name, owner in self._shared.items()}


def _at_step(x: Tensor, t: int, steps: int, batch: int) -> Tensor:
    """The layer's input at time step t: from [T, N, ...], from [T * N, ...], or the same at all steps ([N, ...])."""
    if steps > 1 and x.shape[0] == steps and x.ndim > 2 and x.shape[1] == batch:
        return x[t]
    if x.shape[0] == steps * batch:
        return x.view(steps, batch, *x.shape[1:])[t]
    if x.shape[0] == 1 and x.shape[1] == batch:  # a multi-step layer fed a single time step
        return x[0]
    return x
