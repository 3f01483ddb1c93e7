"""Runs a NIR graph by the equations of its nodes, in Euler steps of dt; the package nir has no simulator.

An edge that closes a loop arrives one step later. A potential begins at 0.
"""

import nir
import numpy as np
import torch
import torch.nn.functional as F

DT = 1e-4


def t(array):
    return torch.as_tensor(np.asarray(array)).double()


def pairs(node):
    return [tuple(int(v) for v in np.atleast_1d(x)) for x in (node.stride, node.padding, node.dilation)]


class Simulator:
    def __init__(self, graph):
        self.nodes = graph.nodes
        self.before = {name: [a for a, b in graph.edges if b == name] for name in graph.nodes}
        self.late = self._loops()
        self.potential, self.past = {}, {}

    def _loops(self):
        """Edges that lead back to a node on the way from the input."""
        after = {name: [b for b, sources in self.before.items() if name in sources] for name in self.nodes}
        found, open_, done = set(), set(), set()

        def walk(name):
            open_.add(name)
            for other in after[name]:
                if other in open_:
                    found.add((name, other))
                elif other not in done:
                    walk(other)
            open_.discard(name)
            done.add(name)

        walk("input")
        return found

    def run(self, frames):
        """[T, N, ...] -> the output at each step."""
        return torch.stack([self.step(frame) for frame in frames.double()])

    def step(self, frame):
        seen = {"input": frame}

        def value(name):
            if name not in seen:
                total = 0
                for other in self.before[name]:
                    if (other, name) not in self.late:
                        total = total + value(other)
                    elif other in self.past:
                        total = total + self.past[other]
                seen[name] = self.compute(name, self.nodes[name], total)
            return seen[name]

        out = value("output")
        for name, _ in self.late:
            value(name)
        self.past = seen
        return out

    def compute(self, name, node, x):
        match node:
            case nir.Conv2d():
                return F.conv2d(x, t(node.weight), t(node.bias), *pairs(node), int(node.groups))
            case nir.Conv1d():
                return F.conv1d(x, t(node.weight), t(node.bias), *pairs(node), int(node.groups))
            case nir.Affine():
                return F.linear(x, t(node.weight), t(node.bias))
            case nir.AvgPool2d() | nir.SumPool2d():
                size = [tuple(int(v) for v in pair) for pair in (node.kernel_size, node.stride, node.padding)]
                area = 1 if isinstance(node, nir.AvgPool2d) else size[0][0] * size[0][1]
                return F.avg_pool2d(x, *size) * area
            case nir.Threshold():
                return (x > t(node.threshold)).double()
            case nir.Scale():
                return x * t(node.scale)
            case nir.Flatten():
                return x.flatten(1)
            case nir.Delay():
                kept = self.potential.setdefault(name, [torch.zeros_like(x)] * round(float(t(node.delay).max()) / DT))
                kept.append(x)
                return kept.pop(0)
            case nir.LI() | nir.LIF() | nir.I() | nir.IF():
                v = self.potential.get(name, torch.zeros_like(x))
                if isinstance(node, (nir.LI, nir.LIF)):
                    v = v + DT / t(node.tau) * (t(node.v_leak) - v + t(node.r) * x)
                else:
                    v = v + DT * t(node.r) * x
                if isinstance(node, (nir.LI, nir.I)):
                    self.potential[name] = v
                    return v
                fired = v >= t(node.v_threshold) - 1e-12
                self.potential[name] = torch.where(fired, t(node.v_reset), v)
                return fired.double()
            case nir.Output():
                return x
        raise AssertionError(f"no equation for {type(node).__name__}")
