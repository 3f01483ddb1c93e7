"""Random small spiking networks, each drawn from its number alone (`network`); tests/fuzz_networks.py uses them.

Drawn are: the framework, convolutions of one to three dimensions (grouped, depthwise, transposed, dilated), linear
layers, normalisations (also one for each time step), pooling, neurons with their reset, threshold, leak and surrogate,
skip connections, recurrent weights, the place of the time axis and what becomes of the outputs over time.
"""

import random
from dataclasses import dataclass

import norse.torch as norse
import snntorch as snn
import torch
from snntorch import surrogate as snn_surrogate
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn

from gallery.loops import Rect

KINDS = ("spikingjelly multi-step", "spikingjelly loop", "snntorch", "norse", "own loop")
SJ_SURROGATES = (surrogate.ATan, surrogate.Sigmoid, surrogate.PiecewiseQuadratic, surrogate.Rect)
SNN_SURROGATES = (snn_surrogate.atan, snn_surrogate.fast_sigmoid, snn_surrogate.sigmoid)


@dataclass(frozen=True)
class Drawn:
    """A network, an input to show it to a door, and others to compare on. `time` is as for `sp.count`."""

    kind: str
    model: nn.Module
    example: Tensor
    inputs: tuple[Tensor, ...]
    time: str

    @property
    def samples(self) -> int:
        """The axis of the input that counts samples."""
        return int(self.time == "first")

    def steps(self, x: Tensor) -> Tensor:
        """[T, N, ...] of an input."""
        return x.movedim({"first": 0, "batch-first": 1, "last": -1}[self.time], 0)


class Straight(nn.Module):
    """A straight-through spike with a sigmoid's gradient."""

    def forward(self, u):
        g = torch.sigmoid(4 * u)
        return ((u >= 0).to(u) - g).detach() + g


class Own(nn.Module):
    """A neuron of a user's own, with hard or soft reset, whose state the loop makes new."""

    def __init__(self, decay, gain, threshold, soft, keep, straight, detach):
        super().__init__()
        self.decay, self.gain, self.threshold, self.soft, self.keep = decay, gain, threshold, soft, keep
        self.fire, self.detach, self.v = Straight() if straight else Rect.apply, detach, 0.0

    def forward(self, x):
        v = self.decay * self.v + self.gain * x
        s = self.fire(v - self.threshold)
        r = s.detach() if self.detach else s
        self.v = v - r * self.threshold if self.soft else v * (1 - r) + self.keep * r
        return s


class Hidden(nn.Module):
    """Keeps the state of a Norse cell from call to call."""

    def __init__(self, cell):
        super().__init__()
        self.cell, self.state = cell, None

    def forward(self, x):
        z, self.state = self.cell(x, self.state)
        return z


class Recurrent(nn.Module):
    """A neuron whose spikes come back through weights at the next step."""

    def __init__(self, features, fires):
        super().__init__()
        self.back, self.fires, self.last = nn.Linear(features, features, bias=False), fires, None

    def forward(self, x):
        self.last = self.fires(x if self.last is None else x + self.back(self.last))
        return self.last


class PerStep(nn.Module):
    """A normalisation for each time step."""

    def __init__(self, make, T):
        super().__init__()
        self.norms, self.t = nn.ModuleList(make() for _ in range(T)), 0

    def forward(self, x):
        self.t += 1
        return self.norms[self.t - 1](x)


class Skip(nn.Module):
    """Joins a block with its input, in the ways of residual, SEW and dense networks."""

    def __init__(self, body, how, channels):
        super().__init__()
        self.body, self.how, self.channels = body, how, channels

    def forward(self, x):
        y = self.body(x)
        if self.how == "cat":
            return torch.cat([x, y], self.channels)
        return {"add": lambda: x + y, "and": lambda: x * y, "iand": lambda: (1 - x) * y}[self.how]()


class Over(nn.Module):
    """Runs its layers over time, from a fresh state.

    way: "whole" gives multi-step layers the sequence, "folded" gives layers time and samples in one axis and neurons
    the sequence, "loop" goes step by step.
    """

    def __init__(self, layers, way, time, out):
        super().__init__()
        self.layers, self.way, self.time, self.out = nn.Sequential(*layers), way, time, out

    def begin(self):
        for module in self.modules():
            if isinstance(module, Own):
                module.v = 0.0
            elif isinstance(module, Recurrent):
                module.last = None
            elif isinstance(module, PerStep):
                module.t = 0
            elif isinstance(module, Hidden):
                module.state = None
            elif hasattr(module, "reset_mem"):
                module.reset_mem()
            elif isinstance(module, neuron.BaseNode):
                module.reset()

    def forward(self, x):
        self.begin()
        x = x.movedim({"first": 0, "batch-first": 1, "last": -1}[self.time], 0)
        if self.way == "whole":
            y = self.layers(x)
        elif self.way == "folded":
            y = self.folded(x.flatten(0, 1), len(x))
        else:
            y = torch.stack([self.layers(step) for step in x])
        if self.out in ("sum", "mean"):
            return getattr(y, self.out)(0)
        return y[-1] if self.out == "last" else y.movedim(0, {"first": 0, "batch-first": 1, "last": -1}[self.time])

    def folded(self, x, T):
        for module in self.layers:
            if isinstance(module, neuron.BaseNode):
                x = module(x.unflatten(0, (T, -1))).flatten(0, 1)
            elif isinstance(module, Own):
                x = torch.stack([module(step) for step in x.unflatten(0, (T, -1))]).flatten(0, 1)
            else:
                x = module(x)
        return x.unflatten(0, (T, -1))


class Cells(Over):
    """Norse cells whose states the loop hands over."""

    def forward(self, x):
        states, out = [None] * len(self.layers), []
        for step in x.movedim({"first": 0, "batch-first": 1, "last": -1}[self.time], 0):
            for i, module in enumerate(self.layers):
                if isinstance(module, Hidden):
                    step, states[i] = module.cell(step, states[i])
                else:
                    step = module(step)
            out.append(step)
        y = torch.stack(out)
        return y.sum(0) if self.out == "sum" else y.mean(0)


class Drawing:
    """One network in the making."""

    def __init__(self, number, seed):
        self.draw = random.Random(f"{seed}/{number}")
        torch.manual_seed(self.draw.randrange(2**31))
        self.kind = KINDS[number % len(KINDS)]
        self.whole = self.kind == KINDS[0]
        self.T, self.N = self.draw.choice([3, 4, 5, 7]), 3
        self.time = self.draw.choice(["first", "first", "batch-first", "last"])
        self.folded = self.kind in (KINDS[0], KINDS[4]) and self.chance(0.2)
        self.cells = self.kind == "norse" and self.chance(0.5)
        self.plain = self.folded or self.cells  # layers in one row, none inside of another

    def chance(self, share):
        return self.draw.random() < share

    def of(self, name):
        """A layer's class: SpikingJelly's own where it sees sequences."""
        return getattr(layer if self.whole and not self.folded else nn, name)

    def neuron(self, features=None):
        threshold, leak = self.draw.choice([0.5, 1.0]), self.draw.choice([0.25, 0.5, 0.8])
        soft, detach = self.chance(0.4), self.chance(0.3)
        if self.kind.startswith("spikingjelly"):
            keywords = {"v_threshold": threshold, "v_reset": None if soft else self.draw.choice([0.0, 0.0, -0.2])}
            keywords |= {"surrogate_function": self.draw.choice(SJ_SURROGATES)(), "detach_reset": detach}
            if self.chance(0.3):
                return neuron.IFNode(**keywords)
            cls = self.draw.choice([neuron.LIFNode, neuron.LIFNode, neuron.ParametricLIFNode])
            tau = {"init_tau" if cls is neuron.ParametricLIFNode else "tau": 1 / leak}
            return cls(decay_input=self.chance(0.5), **tau, **keywords)
        if self.kind == "snntorch":
            keywords = {"reset_mechanism": self.draw.choice(["subtract", "subtract", "zero", "none"])}
            keywords |= {"threshold": threshold, "init_hidden": True, "spike_grad": self.draw.choice(SNN_SURROGATES)()}
            if self.chance(0.2):
                return snn.Synaptic(alpha=0.5, beta=1 - leak, **keywords)
            if features and self.chance(0.2):
                return snn.RLeaky(beta=1 - leak, linear_features=features, **keywords)
            return snn.Leaky(beta=1 - leak, reset_delay=self.chance(0.7), **keywords)
        if self.kind == "norse":
            box = self.chance(0.5)
            made = (norse.LIFBoxParameters if box else norse.LIFParameters)(
                tau_mem_inv=torch.tensor(1000.0 * leak), v_th=torch.tensor(threshold)
            )
            if features and not box and self.chance(0.3):
                return Hidden(norse.LIFRecurrentCell(features, features, p=made))
            return Hidden((norse.LIFBoxCell if box else norse.LIFCell)(made))
        gain, keep = self.draw.choice([1.0, leak]), self.draw.choice([0.0, 0.0, -0.1])
        return Own(1 - leak, gain, threshold, soft, keep, self.chance(0.3), detach)

    def fires(self, features):
        made = self.neuron(features)
        if self.kind in ("spikingjelly loop", "own loop") and not self.plain and self.chance(0.2):
            return Recurrent(features, made)
        return made

    def convolution(self, d, channels, size):
        """(layer, channels, size)"""
        width, kernel = self.draw.choice([4, 6, 8]), self.draw.choice([1, 3, 3])
        if d == 2 and self.chance(0.15):
            return self.of("ConvTranspose2d")(channels, width, 2, stride=2), width, size * 2
        groups = self.draw.choice([1, 1, 1, 2, channels]) if channels % 2 == 0 else 1
        width = channels if groups == channels else width
        dilation = 2 if kernel == 3 and self.chance(0.15) else 1
        made = self.of(f"Conv{d}d")(
            channels, width, kernel, padding=dilation * (kernel // 2), groups=groups, dilation=dilation,
            bias=self.chance(0.5), padding_mode="circular" if kernel == 3 and self.chance(0.1) else "zeros",
        )  # fmt: skip
        return made, width, size

    def norm(self, d, width):
        def make():
            made = self.of(f"BatchNorm{d}d")(width)
            made.running_mean.uniform_(-0.2, 0.2)
            made.running_var.uniform_(0.2, 1.0)
            return made

        if self.whole or self.plain or not self.chance(0.25):
            return make()
        return PerStep(make, self.T)

    def block(self, d, channels, size):
        """(layers, channels, size): convolution, norm, neuron, pooling, and what is skipped over."""
        conv, width, wide = self.convolution(d, channels, size)
        parts = [conv, self.norm(d, width)] if self.chance(0.5) else [conv]
        same = wide == size and not self.plain and channels > 2
        if same and width == channels and self.chance(0.3):  # a membrane shortcut
            parts = [Skip(nn.Sequential(*parts), "add", 1)]
        parts.append(self.neuron())
        how = self.draw.choice(["add", "and", "iand", "cat"])
        if same and (width == channels or how == "cat") and self.chance(0.6):
            parts = [Skip(nn.Sequential(*parts), how, 2 if self.whole else 1)]
            width += channels if how == "cat" else 0
        if wide > 2 and self.chance(0.5):
            parts.append(self.of(self.draw.choice([f"MaxPool{d}d", f"AvgPool{d}d"]))(2))
            wide //= 2
        return parts, width, wide

    def layers(self):
        d = self.draw.choice([0, 0, 1, 2, 2, 2, 2, 3])
        if not d:
            shape, layers, features = (12,), [], 12
        else:
            channels, size = self.draw.choice([1, 2]), 4 if d == 3 else 8
            shape, layers = (channels, *[size] * d), []
            for _ in range(self.draw.choice([1, 2, 2, 3])):
                made, channels, size = self.block(d, channels, size)
                layers += made
            if self.chance(0.2) and d == 2:
                layers.append(self.of("AdaptiveAvgPool2d")(1))
                size = 1
            layers.append(self.of("Flatten")())
            features = channels * size**d
        for _ in range(self.draw.choice([1, 2])):
            width = self.draw.choice([8, 12])
            layers += [self.of("Linear")(features, width), self.fires(width)]
            features = width
        return [*layers, self.of("Linear")(features, 3, bias=False)], shape

    def input(self, shape, scale, samples):
        x = torch.rand(self.T, samples, *shape) * scale
        if self.chance(0.4):
            x = (x > 0.5 * scale).float()
        return x.movedim(0, {"first": 0, "batch-first": 1, "last": -1}[self.time]).contiguous()

    def made(self):
        layers, shape = self.layers()
        way = "folded" if self.folded else "whole" if self.whole else "loop"
        out = self.draw.choice(["sum", "mean"] if self.plain else ["sum", "mean", "mean", "last", "all"])
        model = (Cells if self.cells else Over)(layers, way, self.time, out)
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
                    module.weight.mul_(self.draw.choice([2.0, 3.0, 4.0]))
        if self.whole:
            functional.set_step_mode(model, "m")
        scale = self.draw.choice([1.0, 2.0])
        quiet = self.draw.choice([0.1, 1.0])  # an example on which little fires is no excuse
        inputs = self.input(shape, scale, self.N), self.input(shape, 2 * scale, self.N + 1)
        return Drawn(self.kind, model.eval(), self.input(shape, quiet * scale, self.N), inputs, self.time)


def network(number, seed=0):
    """The network of a number."""
    return Drawing(number, seed).made()
