"""Counts synaptic operations by brute force, below all modules and functions: what every product in the forward met.

An operand that depends on the input is an activation, the other one a weight. Products of two activations, as attention
has them, are counted apart: all their multiplies, whatever is zero.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

aten = torch.ops.aten


class BruteForce(TorchDispatchMode):
    """Adds up pairs of a non-zero activation and a weight."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.active: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.active[x] = True
        self.total = 0
        self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.total += self.count(func.overloadpacket, args)
        if any(isinstance(v, Tensor) and v in self.active for v in tree_leaves((args, kwargs))):
            for value in tree_leaves(result):
                if isinstance(value, Tensor):
                    self.active[value] = True
            if func._schema.is_mutable and isinstance(args[0], Tensor):
                self.active[args[0]] = True
                if args[0]._base is not None:
                    self.active[args[0]._base] = True
        return result

    def count(self, op: Any, args: Any) -> int:
        if op is aten.convolution:
            x, w, _, *settings = args
            if w in self.active:
                return 0
            ones = aten.convolution((x != 0).double(), torch.ones_like(w, dtype=torch.double), None, *settings)
            return round(float(ones.sum()))
        if op in (aten.mm, aten.bmm):
            return self.product(args[0], args[1])
        if op is aten.mv:
            return int(args[1].count_nonzero()) * args[0].shape[0] if args[1] in self.active else 0
        if op in (aten.addmm, aten.baddbmm):
            return self.product(args[1], args[2])
        return 0

    def product(self, a: Tensor, b: Tensor) -> int:
        if a in self.active and b in self.active:
            self.products += a.numel() * b.shape[-1]
            return 0
        if a not in self.active and b not in self.active:
            return 0
        if a in self.active:
            return int(a.count_nonzero()) * b.shape[-1]
        if a.shape[-1] == a.shape[-2] and a.shape[-1] < 5:
            return 0  # [T, T]: a parallel neuron mixes time steps
        return int(b.count_nonzero()) * a.shape[-2]


def operations(model: nn.Module, x: Tensor) -> tuple[int, int]:
    """Of one forward in eval mode: synaptic operations of all weights, and multiplies of products of activations."""
    x = x.clone()
    training = model.training
    model.eval()
    with torch.no_grad(), BruteForce(x) as counted:
        model(x)
    model.train(training)
    return counted.total, counted.products
