"""The evidence that a method may read in one mask update, and the scores that it returns."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Shaped
from torch import Tensor

from spikeprune.core.errors import InvalidValue, MissingEvidence

Scores = Mapping[str, Tensor]  # parameter name -> scores of the parameter's shape; higher = keep


@dataclass(frozen=True)
class Evidence:
    """Read-only facts that a method may use in one mask update.

    Attributes:
        weights: parameter name -> weights (dead ones are exactly 0).
        masks: parameter name -> bool, the mask before this mask update.
        generator: seeded CPU generator, the same on every rank; for methods that draw.
        number, count: this is mask update `number` of `count` (from 1).
        grads: parameter name -> gradient of this step, dead weights included; only if the method needs it.
        before: parameter name -> the weights that `grads` belong to, from before the step's update.
        statistics: parameter name -> the method's statistic: [C] per neuron or of the weight's shape; only for
            weights that feed a neuron.
        state: parameter name -> the optimizer's state of it (momentum buffers), if the method needs it.
        memory: the tensors that a method keeps between steps: kind -> name -> tensor.
        channels: under a channel pattern, what else is known of channels: "scale" (|gamma| of their normalisation),
            "norm" (root mean square of their filters) and, with gradients, "slope" (dL by a gate on the channel)
            -> group name -> [C]. Then `weights` and all other mappings
            are by group as well, [C], and a weight is the scale, or the norm where there is no normalisation.
        survivors: parameter name -> bool, the weights that the cut of this mask update leaves; for `regrow_score` of a
            method that needs "survivors".
        flow: parameter name -> dR / d|w| of the network that hands everything on (`model/flow.py`), only if the method
            needs it.
        curvature: parameter name -> the loss's Hessian times its gradient (`model/curvature.py`), only if the method
            needs it; `before` has the weights that it belongs to.
    """

    weights: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    generator: torch.Generator = field(default_factory=torch.Generator)
    number: int = 1
    count: int = 1
    grads: Mapping[str, Tensor] | None = None
    before: Mapping[str, Tensor] | None = None
    statistics: Mapping[str, Tensor] | None = None
    state: Mapping[str, Mapping[str, Tensor]] | None = None
    memory: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict[str, dict[str, Tensor]])
    channels: Mapping[str, Mapping[str, Tensor]] | None = None
    survivors: Mapping[str, Tensor] | None = None
    flow: Mapping[str, Tensor] | None = None
    curvature: Mapping[str, Tensor] | None = None

    def gradients(self) -> Mapping[str, Tensor]:
        """Parameter name -> gradient, dead weights included (see `grads`).

        Raises: MissingEvidence if there are none.
        """
        if not self.grads:
            raise MissingEvidence("this method needs gradients; call loss.backward() before the step, or pass loss=")
        return self.grads

    def flows(self) -> Mapping[str, Tensor]:
        """Name -> the flow through each weight: dR / d|w|, where R sums the outputs of the network with weights |w|.

        Raises: MissingEvidence if the flow was not measured.
        """
        if not self.flow:
            raise MissingEvidence(
                "the flow through the network was not measured; a method that reads it names 'flow' in its `needs`, "
                "and sp.prune is then given data="
            )
        return self.flow

    def curvatures(self) -> Mapping[str, Tensor]:
        """Parameter name -> the loss's Hessian times its gradient.

        Raises: MissingEvidence if there is none.
        """
        if not self.curvature:
            raise MissingEvidence(
                "the curvature of the loss was not measured; a method that reads it names 'curvature' in its `needs`, "
                "and sp.prune is then given data= and loss="
            )
        return self.curvature

    def of_channels(self, kind: str) -> dict[str, Tensor]:
        """Group name -> "scale", "norm", "slope" or "statistic" of its channels, [C], for every group.

        Raises: InvalidValue if weights are pruned, not channels, or a group has no such thing; MissingEvidence if no
            statistic was recorded.
        """
        if self.channels is None:
            raise InvalidValue("this method scores whole channels; pass pattern='channel' or pattern='gate'")
        if kind == "statistic" and not self.statistics:
            raise MissingEvidence("this method needs membrane statistics; pass data=, or train through the model")
        found = (self.statistics or {}) if kind == "statistic" else self.channels.get(kind, {})
        lacking = next((name for name in self.weights if name not in found), None)
        if lacking is not None:
            lack = {"scale": "no normalisation", "norm": "no filters", "slope": "no gradients"}
            what = lack.get(kind, "no neuron behind them")
            raise InvalidValue(
                f"the channels of {lacking!r} have {what}, which this method ranks by; exclude that layer, or take "
                "another method such as weight-norm"
            )
        return {name: found[name] for name in self.weights}

    def per_weight(self) -> dict[str, Tensor]:
        """The statistics as scores of each weight's shape: all weights of a filter share their neuron's.

        Raises: MissingEvidence if there are none.
        """
        if not self.statistics:
            raise MissingEvidence(
                "criticality needs membrane statistics; pass data=, or train through the Pruner's model"
            )
        return {
            name: value if value.shape == self.weights[name].shape else over_outputs(value, self.weights[name])
            for name, value in self.statistics.items()
        }


def over_outputs(channel: Shaped[Tensor, "C"], weight: Shaped[Tensor, "C *rest"]) -> Shaped[Tensor, "C *rest"]:
    """[C] broadcast over a weight [C, ...], without copying."""
    return channel.view(-1, *([1] * (weight.ndim - 1))).expand_as(weight)
