"""The channels of a model, one vector per group, [C]: what stands for them in a ranking, and what cut ones were."""

from collections.abc import Collection, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from spikeprune.core.errors import InvalidValue
from spikeprune.core.mask import Outcome
from spikeprune.model.channel_values import bn_scale, channel_masks, gate_slope, slope, weight_norm
from spikeprune.model.groups import channel_groups
from spikeprune.model.pairing import Pairing
from spikeprune.model.trace import Graph

Tensors = Mapping[str, Tensor]


class ChannelSpace:
    """The channels of a model as a round sees them: one vector per group; the parameters follow its answer.

    Channels that come back have the weights, scale and shift they had when they were cut.

    Attributes:
        groups: those whose layers may all be pruned.
        alive: group name -> bool [C].
        total: number of prunable channels.
    """

    def __init__(
        self, graph: Graph, model: nn.Module, pattern: Literal["channel", "gate"], weights: Collection[str]
    ) -> None:
        """`weights`: names of the weights that may be pruned; a group with another one among its layers stays whole.

        Raises: InvalidValue as `channel_groups`, and if no group is left.
        """
        self.model = model
        found = channel_groups(graph, model, pattern)
        parameters = dict(model.named_parameters())
        filters = {g.name: [n for n in g.tensors("out") if n in parameters and parameters[n].dim() > 1] for g in found}
        self.groups = [g for g in found if all(name in weights for name in filters[g.name])]
        if not self.groups:
            raise InvalidValue(f"pattern={pattern!r} finds no group of channels that may be cut; widen include=")
        self.alive = {g.name: torch.ones(g.channels, dtype=torch.bool) for g in self.groups}
        self.total = sum(g.channels for g in self.groups)
        self._stash: dict[str, Tensor] = {}  # what cut entries were, by parameter

    def masks(self, alive: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Parameter name -> bool, of `alive` or of the present channels."""
        return channel_masks(self.groups, self.alive if alive is None else alive, self.model)

    def weights(self, values: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Group name -> what stands for its channels' weights, [C]: the BN scale; where there is none, the norm.

        Args: values: of the parameters; the present ones, and of cut channels those before the cut, if not given.
        """
        tensors = self.values() if values is None else values
        sizes: dict[str, Tensor] = {}
        for group in self.groups:
            scale = bn_scale(group, tensors)
            found = weight_norm(group, tensors) if scale is None else scale
            sizes[group.name] = torch.zeros(group.channels) if found is None else found.cpu()
        return sizes

    def values(self) -> dict[str, Tensor]:
        """The parameters, with cut channels as they were: a zero would say nothing of them."""
        masks = self.masks()
        return {
            name: torch.where(masks[name], p.detach(), self._stash[name]) if name in self._stash else p.detach()
            for name, p in self.model.named_parameters()
        }

    def grads(self, grads: Tensors, values: Tensors) -> dict[str, Tensor]:
        """Group name -> gradient by what stands for the weights, [C]: sum of w * dL/dw, by the channel's size.

        Args: values: of the parameters, which `grads` belong to.
        """
        sizes, result = self.weights(values), dict[str, Tensor]()
        for group in self.groups:
            found = slope(group, values, grads)
            if found is not None:
                size, found = sizes[group.name], found.cpu()
                result[group.name] = torch.where(size > 0, found / size.clamp_min(1e-30), torch.zeros_like(found))
        return result

    def facts(self, grads: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Values of channels for scores: "scale", "norm" and, with gradients, "slope" -> group name -> [C].

        Args:
            grads: of the parameters `before`, by name; may be empty.
        """
        values = self.values()
        kinds = {"scale": bn_scale, "norm": weight_norm}
        found = {kind: {g.name: of(g, values) for g in self.groups} for kind, of in kinds.items()}
        if grads:
            found["slope"] = {g.name: gate_slope(g, before, grads) for g in self.groups}
        return {kind: {n: v.cpu() for n, v in each.items() if v is not None} for kind, each in found.items()}

    def rates_before_cut(self, rates: Tensors, known: Tensors) -> dict[str, Tensor]:
        """Weight name -> share of non-zero inputs: what was measured, and of cut channels what was `known` before.

        Of a cut channel no input is seen any more; what it would cost is what it cost when it was alive.
        """
        seen = {n: rate.double().cpu() for n, rate in rates.items()}
        for group in self.groups:
            for part in group.slices:
                if part.role == "in" and part.tensor in seen and part.tensor in known:
                    cut = ~self.alive[group.name][part.channels.clamp_min(0)] & (part.channels >= 0)
                    seen[part.tensor] = torch.where(cut, known[part.tensor], seen[part.tensor])
        return seen

    def statistics(self, pairs: Mapping[str, Pairing], found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Group name -> [C], from statistics by weight: those of the first neuron that fires for the channels."""
        result: dict[str, Tensor] = {}
        for group in self.groups:
            weight = next(
                (n for neuron in group.neurons for n, p in pairs.items() if p.neuron == neuron and n in found), None
            )
            if weight is None:
                continue
            own = [s.channels for s in group.slices if s.tensor == weight and s.role == "out"]
            place = own[0] if own else torch.arange(group.channels)
            if len(place) == len(found[weight]) and bool((place >= 0).all()):
                result[group.name] = torch.zeros(group.channels).index_copy(0, place, found[weight].float().cpu())
        return result

    def take(self, masks: Tensors) -> None:
        """Takes the channels that masks of parameters keep.

        Raises: InvalidValue if the masks cut single weights, or more than whole channels of these groups.
        """
        for group in self.groups:
            for part in group.slices:
                if part.role == "out" and part.tensor in masks and masks[part.tensor].dim() > 1:
                    rows = masks[part.tensor].cpu().movedim(part.dim, 0).flatten(1).any(1)
                    self.alive[group.name][part.channels[rows.nonzero().flatten()]] = True
                    dead = part.channels[(~rows).nonzero().flatten()]
                    self.alive[group.name][dead[dead >= 0]] = False
        follow = self.masks()
        wrong = next((n for n, m in masks.items() if not torch.equal(follow.get(n, torch.ones_like(m)), m)), None)
        if wrong is not None:
            raise InvalidValue(
                f"the given mask of {wrong!r} does not cut whole channels of the groups that belong together; prune "
                "single weights (pattern='weight'), or give the masks of a Pruner with this pattern"
            )

    @torch.no_grad()
    def apply(self, outcome: Outcome) -> dict[str, Tensor]:
        """Cuts and brings back; keeps what was cut. Returns: the masks of the parameters afterwards."""
        before, after = self.masks(), self.masks(outcome.alive)
        for name, mask in after.items():
            parameter = self.model.get_parameter(name)
            stash = self._stash.setdefault(name, torch.zeros_like(parameter))
            stash.copy_(torch.where(before[name] & ~mask, parameter, stash))
            parameter.copy_(torch.where(mask & ~before[name], stash, parameter) * mask)
        self.alive = {name: mask.cpu() for name, mask in outcome.alive.items()}
        return after

    def stash(self) -> dict[str, Tensor]:
        """Parameter name -> what cut entries were."""
        return {n: t.clone() for n, t in self._stash.items()}

    def restore(self, alive: Tensors, stash: Tensors) -> None:
        """Goes on from saved channels.

        Raises: InvalidValue if they belong to other groups.
        """
        if {n: m.shape for n, m in alive.items()} != {n: m.shape for n, m in self.alive.items()}:
            raise InvalidValue("the saved channels are those of another network or pattern; make the Pruner alike")
        self.alive = {name: mask.cpu().bool() for name, mask in alive.items()}
        self._stash = {n: t.to(self.model.get_parameter(n), copy=True) for n, t in stash.items()}
