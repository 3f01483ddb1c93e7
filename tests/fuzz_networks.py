"""Random small networks through every door: `python tests/fuzz_networks.py --count 200 --seed 0`.

Each network is drawn from its number alone: a framework or a loop of its own, layers, neurons, the place of the time
axis. Its outputs in eager mode are compared with those of the fused, compiled, saved and loaded, and shrunk network,
of the NIR graph run by its own equations, and of the ONNX file in onnxruntime. A door may refuse; it may not differ.
"""

import argparse
import copy
import logging
import random
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))

import norse.torch as norse
import snntorch as snn
import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

import spikeprune as sp
from gallery.loops import Rect
from spikeprune.core.errors import UserError
from spikeprune.model.adapter import find_adapter

KINDS = ("spikingjelly multi-step", "spikingjelly loop", "snntorch", "norse", "own loop")


class Own(nn.Module):
    """A neuron of a user's own, with hard or soft reset, whose state the loop makes new."""

    def __init__(self, decay, gain, threshold, soft, keep):
        super().__init__()
        self.decay, self.gain, self.threshold, self.soft, self.keep, self.v = decay, gain, threshold, soft, keep, 0.0

    def forward(self, x):
        v = self.decay * self.v + self.gain * x
        s = Rect.apply(v - self.threshold)
        self.v = v - s * self.threshold if self.soft else v * (1 - s) + self.keep * s
        return s


class Loop(nn.Module):
    """Runs its layers step by step over the first or second axis, and sums what comes out."""

    def __init__(self, layers, residual, batch_first):
        super().__init__()
        self.layers, self.residual, self.batch_first = nn.Sequential(*layers), residual, batch_first

    def begin(self):
        for module in self.layers.modules():
            if isinstance(module, Own):
                module.v = 0.0
            elif hasattr(module, "reset_mem"):
                module.reset_mem()
            elif isinstance(module, neuron.BaseNode):
                module.reset()

    def step(self, x):
        for i, module in enumerate(self.layers):
            y = module(x)
            x = y + x if i == self.residual else y
        return x

    def forward(self, x):
        self.begin()
        return sum(self.step(step) for step in (x.transpose(0, 1) if self.batch_first else x))


class NorseLoop(Loop):
    def forward(self, x):
        states, out = [None] * len(self.layers), 0
        for step in x.transpose(0, 1) if self.batch_first else x:
            for i, module in enumerate(self.layers):
                if isinstance(module, (norse.LIFCell, norse.LIFBoxCell)):
                    step, states[i] = module(step, states[i])
                else:
                    step = module(step)
            out = out + step
        return out


class MultiStep(Loop):
    def forward(self, x):
        return self.step(x.transpose(0, 1) if self.batch_first else x).sum(0)


def make_neuron(kind, draw):
    threshold, leak = draw.choice([0.5, 1.0]), draw.choice([0.25, 0.5, 0.8])
    soft = draw.random() < 0.4
    if kind.startswith("spikingjelly"):
        keywords = {"v_threshold": threshold, "v_reset": None if soft else 0.0}
        keywords["surrogate_function"] = surrogate.ATan()
        if draw.random() < 0.3:
            return neuron.IFNode(**keywords)
        return neuron.LIFNode(tau=1 / leak, decay_input=draw.random() < 0.5, **keywords)
    if kind == "snntorch":
        reset = "subtract" if soft else "zero"
        if draw.random() < 0.2:
            return snn.Synaptic(alpha=0.5, beta=1 - leak, threshold=threshold, reset_mechanism=reset, init_hidden=True)
        return snn.Leaky(beta=1 - leak, threshold=threshold, reset_mechanism=reset, init_hidden=True)
    if kind == "norse":
        cell, parameters = draw.choice(
            [(norse.LIFCell, norse.LIFParameters), (norse.LIFBoxCell, norse.LIFBoxParameters)]
        )
        return cell(parameters(tau_mem_inv=torch.tensor(1000.0 * leak), v_th=torch.tensor(threshold)))
    return Own(1 - leak, draw.choice([1.0, leak]), threshold, soft, draw.choice([0.0, 0.0, -0.1]))


def network(number, seed=0):
    """(kind, model, example) of a number."""
    draw = random.Random(f"{seed}/{number}")
    torch.manual_seed(draw.randrange(2**31))
    kind = KINDS[number % len(KINDS)]
    own = kind == "spikingjelly multi-step"
    conv, norm, pool_m, pool_a, flat, linear = (
        (layer.Conv2d, layer.BatchNorm2d, layer.MaxPool2d, layer.AvgPool2d, layer.Flatten, layer.Linear)
        if own
        else (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d, nn.Flatten, nn.Linear)
    )
    layers, residual, channels, size = [], -1, draw.choice([1, 2]), 8
    images = draw.random() < 0.7
    shape = (channels, size, size) if images else (12,)
    if images:
        for _ in range(draw.choice([1, 2, 2])):
            width = draw.choice([4, 6, 8])
            groups = 2 if channels % 2 == 0 and draw.random() < 0.2 else 1
            kernel = draw.choice([1, 3, 3])
            layers.append(conv(channels, width, kernel, padding=kernel // 2, groups=groups, bias=draw.random() < 0.5))
            if draw.random() < 0.5:
                layers.append(norm(width))
                layers[-1].running_mean.uniform_(-0.2, 0.2)
                layers[-1].running_var.uniform_(0.2, 1.0)
            if width == channels and draw.random() < 0.7 and kind != "norse":
                residual = len(layers) - 1
            layers.append(make_neuron(kind, draw))
            if draw.random() < 0.5 and size > 2:
                layers.append(draw.choice([pool_m, pool_a])(2))
                size //= 2
            channels = width
        layers.append(flat())
        features = channels * size * size
    else:
        features = 12
    for _ in range(draw.choice([1, 2])):
        width = draw.choice([8, 12])
        layers += [linear(features, width), make_neuron(kind, draw)]
        features = width
    layers.append(linear(features, 3, bias=False))
    batch_first = draw.random() < 0.3
    with torch.no_grad():
        for module in layers:
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.weight.mul_(draw.choice([2.0, 3.0, 4.0]))
    if own:
        for module in layers:
            functional.set_step_mode(module, "m")
    cls = MultiStep if own else NorseLoop if kind == "norse" else Loop
    T, N = draw.choice([4, 5, 7]), 3
    x = torch.rand(T, N, *shape) * draw.choice([1.0, 2.0])
    if draw.random() < 0.4:
        x = (x > 0.5).float()
    x = x.transpose(0, 1).contiguous() if batch_first else x
    return kind, cls(layers, residual, batch_first).eval(), x


def eager(model, x):
    adapter = find_adapter(model)
    if adapter is not None:
        adapter.reset(model)
    with torch.no_grad():
        out = model(x)
    if adapter is not None:
        adapter.reset(model)
    return out


def fused(model, x, wanted, folder):
    return eager(sp.fuse(copy.deepcopy(model)), x)


def compiled(model, x, wanted, folder):
    made = sp.compile(model, x)
    made.save(folder / "net.compiled")
    first, second = made(x), sp.load(folder / "net.compiled")(x)
    assert torch.equal(first, second), "the loaded network differs from the saved one"
    return first


def shrunk(model, x, wanted, folder):
    model = copy.deepcopy(model)
    masks = sp.prune(model, "magnitude", 0.3, data=[x], pattern="channel")
    wanted.copy_(eager(model, x))
    return eager(sp.shrink(model, masks, x)[0], x)


def nir(model, x, wanted, folder):
    import nir as reader

    from nir_run import Simulator

    graph = reader.read(sp.export_nir(model, folder / "net.nir", x))
    steps = x.transpose(0, 1) if model.batch_first else x
    return Simulator(graph).run(steps).sum(0).float()


def onnx(model, x, wanted, folder):
    import onnxruntime

    path = sp.export_onnx(model, folder / "net.onnx", x)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


DOORS = {"fused": fused, "compiled": compiled, "shrunk": shrunk, "NIR": nir, "ONNX": onnx}


def outcome(number, seed, door):
    """("ok" | "refused" | "differs" | "error", words) of one network at one door."""
    kind, model, x = network(number, seed)
    wanted = eager(model, x)
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = DOORS[door](model, x, wanted, Path(folder))
    except UserError as refusal:
        return "refused", str(refusal)
    except Exception as error:  # what this program looks for
        return "error", f"{type(error).__name__}: {str(error)[:200]}"
    if found.shape != wanted.shape:
        return "differs", f"shape {tuple(found.shape)}, not {tuple(wanted.shape)}"
    # A potential within rounding of its threshold may fall either way; most samples have none.
    far = ((found - wanted).abs() > 1e-3 * wanted.abs().max() + 1e-4).flatten(1).any(1)
    if far.float().mean() > 0.34:
        return (
            "differs",
            f"{kind}: {int(far.sum())} of {len(far)} samples, up to {float((found - wanted).abs().max()):g}",
        )
    return "ok", ""


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--doors", nargs="+", choices=list(DOORS), default=list(DOORS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    found, said, started = Counter(), Counter(), time.perf_counter()
    for number in range(given.first, given.first + given.count):
        for door in given.doors:
            what, words = outcome(number, given.seed, door)
            found[door, what] += 1
            if what == "refused":
                said[door, words[:110]] += 1
            elif what != "ok":
                print(f"network {number} {door}: {what} {words}", flush=True)
    for door in given.doors:
        counts = {what: found[door, what] for what in ("ok", "refused", "differs", "error")}
        print(f"{door:9s}", "  ".join(f"{what} {count}" for what, count in counts.items()))
    for (door, words), count in said.most_common(12):
        print(f"{count:5d} x {door}: {words}")
    print(f"{given.count} networks, seed {given.seed}, {time.perf_counter() - started:.0f} s")
    return int(any(found[door, what] for door in given.doors for what in ("differs", "error")))


if __name__ == "__main__":
    sys.exit(main())
