"""Counts what no hook on a module sees: weights used by functions, spikes of found neurons, products of activations."""

import math
from collections.abc import Callable, Mapping
from typing import final

import torch
from torch import Tensor, nn

from spikeprune.count import formulas
from spikeprune.model.discover import SpikeNeuron
from spikeprune.model.operations import PRODUCTS
from spikeprune.model.trace import Graph
from spikeprune.model.weights import Multiplication, Use


@final
class UsedWeight:
    """Running counts of one weight that functions such as `F.linear` use; `Figures` explains the fields."""

    def __init__(self, parameter: nn.Parameter, mask: Tensor | None) -> None:
        self.parameter = parameter
        self.mask = mask
        self.alive = torch.ones_like(parameter, dtype=torch.bool) if mask is None else mask.to(parameter.device).bool()
        self.obeyed = not bool((parameter[~self.alive] != 0).any())
        self.applied = 0.0  # how often the whole matrix was multiplied with
        self.acs = (0, 0)  # dense, pruned
        self.mac_ops = (0, 0)
        self.inputs = 0
        self.active = 0

    def add(self, operation: Multiplication, use: Use) -> None:
        """Counts the pairs of a non-zero input and a weight in one call.

        The same function is called on ones where input and weight are not 0, so that its sum is the number of pairs.
        """
        x, weight = operation.x.detach(), operation.weight
        every = torch.ones_like(weight, dtype=torch.float32)
        if use.direct and weight.shape == self.alive.shape:
            alive = self.alive.float()
        else:  # what was computed from the weight may be transposed, or hold values where the weight holds 0
            alive = (weight != 0).float()
            if not self.obeyed and weight.shape == self.alive.shape:
                alive = alive * self.alive
        active = (x != 0).float()
        dense, pruned = (round(float(operation.linear(active, kept).double().sum())) for kept in (every, alive))
        if formulas.is_spiking(x):
            self.acs = (self.acs[0] + dense, self.acs[1] + pruned)
        else:
            self.mac_ops = (self.mac_ops[0] + dense, self.mac_ops[1] + pruned)
        self.inputs += x.numel()
        self.active += int(x.count_nonzero())
        self.applied += operation.applications()


@final
class Uses:
    """A listener of `model.trace.Tracer`: see `model.watch.Listener`.

    Attributes:
        weights: name of a parameter -> its counts, for those that functions multiplied with.
        unread: weight -> function that works with it in another way than a product that can be counted.
        mapped: a function that multiplies inside of `torch.vmap`, which cannot be counted.
        spikes, values: of all neurons that are no modules, by name.
        batches: sizes of the first axis at neurons that were called once for each step of a loop over time.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], mask_of: Callable[[str], Tensor | None]) -> None:
        self._parameters, self._mask_of = parameters, mask_of
        self.weights: dict[str, UsedWeight] = {}
        self.spikes: dict[str, int] = {}
        self.values: dict[str, int] = {}
        self.products = 0.0
        self.batches: set[int] = set()
        self.unread: dict[str, str] = {}
        self.mapped: str | None = None

    @property
    def empty(self) -> bool:
        """Whether the forward counted nothing outside of modules, so that hooks on modules see all of it."""
        return not (self.weights or self.values or self.products or self.unread)

    def began(self) -> None:
        """Called when a forward begins."""

    def spike(self, neuron: SpikeNeuron) -> None:
        """Counts the spikes of a call."""
        if neuron.call is not None and neuron.call.spikes is not None:
            spikes = neuron.call.spikes
            self.spikes[neuron.title] = self.spikes.get(neuron.title, 0) + int(spikes.count_nonzero())
            self.values[neuron.title] = self.values.get(neuron.title, 0) + spikes.numel()

    def used(self, use: Use, operation: Multiplication) -> None:
        """Counts a use of a weight."""
        if use.weight not in self.weights:
            self.weights[use.weight] = UsedWeight(self._parameters[use.weight], self._mask_of(use.weight))
        self.weights[use.weight].add(operation, use)

    def done(self, graph: Graph) -> None:
        """After a forward: multiply-accumulates of products of two activations, such as attention."""
        self.unread |= {n: f for n, f in graph.unread.items() if all(node.weight != n for node in graph.nodes)}
        self.mapped = self.mapped or graph.mapped
        called = [node for node in graph.nodes if node.kind == "neuron" and node.module is None]
        self.batches = {n.shape[0] for n in called if n.shape and sum(m.name == n.name for m in called) > 1}
        for node in graph.nodes:
            if node.weight is None and node.name in PRODUCTS and len(node.inputs) > 1:
                inner = graph.nodes[node.inputs[0]].shape
                self.products += math.prod(node.shape) * (inner[-1] if inner else 1)
