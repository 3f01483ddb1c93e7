"""Networks with neurons of their own: the membrane, the spike function and the loop over time stand in the model."""

import torch
import torch.nn.functional as F
from torch import nn

from gallery.entry import entry

N, T = 3, 4


class Rect(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return u.gt(0).float()

    @staticmethod
    def backward(ctx, grad):
        (u,) = ctx.saved_tensors
        return grad * (u.abs() < 0.5).float()


class Triangle(torch.autograd.Function):
    """With two arguments: the potential and the width of the surrogate."""

    @staticmethod
    def forward(ctx, u, width):
        ctx.save_for_backward(u)
        ctx.width = width
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx, grad):
        (u,) = ctx.saved_tensors
        return grad * (1 - u.abs() / ctx.width).clamp(min=0), None


fire = Rect.apply


def conv(i, o, **k):
    return nn.Conv2d(i, o, 3, padding=1, **k)


@entry("local membrane", "membrane as a local variable in a loop over x[:, t]", N, T, 2, 8, 8, time="batch-first")
class LocalMembrane(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.out = conv(2, 8), conv(8, 8), nn.Linear(128, 16), nn.Linear(16, 5)

    def forward(self, x):
        m1 = m2 = m3 = None
        out = 0
        for t in range(x.shape[1]):
            c = self.a(x[:, t])
            m1 = c if m1 is None else m1 * 0.5 + c
            s = fire(m1 - 1)
            m1 = m1 * (1 - s)
            c = self.b(s)
            m2 = c if m2 is None else m2 * 0.5 + c
            s = fire(m2 - 1)
            m2 = m2 * (1 - s)
            c = self.c(F.avg_pool2d(s, 2).flatten(1))
            m3 = c if m3 is None else m3 * 0.5 + c
            s = fire(m3 - 1)
            m3 = m3 * (1 - s)
            out = out + self.out(s)
        return out / x.shape[1]


class Neuron(nn.Module):
    """Loops over the last axis and writes into a preallocated tensor."""

    def forward(self, x):
        out, v = torch.zeros_like(x), torch.zeros_like(x[..., 0])
        for t in range(x.shape[-1]):
            v = v * 0.5 + x[..., t]
            spike = fire(v - 1)
            v = v * (1 - spike)
            out[..., t] = spike
        return out


@entry(
    "time last", "x[..., t], out[..., t] = spike, one neuron module shared by all layers", N, 2, 8, 8, T, time="last"
)
class TimeLast(nn.Module):
    def __init__(self):
        super().__init__()
        self.neuron = Neuron()
        self.a, self.b, self.c, self.out = conv(2, 8), conv(8, 8), nn.Linear(512, 16), nn.Linear(16, 5)

    def steps(self, layer, x):
        return torch.stack([layer(x[..., t]) for t in range(x.shape[-1])], -1)

    def forward(self, x):
        x = self.neuron(self.steps(self.a, x))
        x = self.neuron(self.steps(self.b, x))
        x = self.neuron(self.steps(lambda y: self.c(y.flatten(1)), x))
        return self.steps(self.out, x).mean(-1)


@entry("inline", "spike_fn(mem - 1) inline in the forward, no neuron module", T, N, 20)
class Inline(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(20, 24), nn.Linear(24, 24), nn.Linear(24, 24)])
        self.out = nn.Linear(24, 5)

    def forward(self, x):
        mem = [torch.zeros(x.shape[1], 24) for _ in self.layers]
        out = torch.zeros(x.shape[1], 5)
        for step in x:
            for i, layer in enumerate(self.layers):
                mem[i] = 0.9 * mem[i] + layer(step)
                step = fire(mem[i] - 1)
                mem[i] = mem[i] - step
            out = out + self.out(step)
        return out


@entry("norm per step", "BatchNorm per time step, a list of norms", T, N, 2, 8, 8)
class NormPerStep(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = conv(2, 8, bias=False), conv(8, 8, bias=False), conv(8, 8, bias=False)
        self.norms = nn.ModuleList(nn.ModuleList(nn.BatchNorm2d(8) for _ in range(T)) for _ in range(3))
        self.out = nn.Linear(8, 5)

    def forward(self, x):
        mem, out = [0, 0, 0], 0
        for t in range(T):
            s = x[t]
            for i, layer in enumerate((self.a, self.b, self.c)):
                mem[i] = 0.9 * mem[i] + self.norms[i][t](layer(s))
                s = fire(mem[i] - 0.5)
                mem[i] = mem[i] - s * 0.5
            out = out + self.out(s.mean((2, 3)))
        return out


class RecurrentLayer(nn.Module):
    """Holds its weights itself; no self-connections."""

    def __init__(self, i, o):
        super().__init__()
        self.W, self.V = nn.Linear(i, o, bias=False), nn.Linear(o, o, bias=False)
        self.norm = nn.BatchNorm1d(o)

    def forward(self, x):
        wx = self.norm(self.W(x).flatten(0, 1)).view(x.shape[0], x.shape[1], -1)
        v = s = torch.zeros_like(wx[:, 0])
        out, V = [], self.V.weight.clone().fill_diagonal_(0)
        for t in range(x.shape[1]):
            v = 0.8 * (v - s) + 0.2 * (wx[:, t] + torch.matmul(s, V))
            s = Triangle.apply(v - 0.3, 1.0)
            out.append(s)
        return torch.stack(out, 1)


@entry("recurrent layer", "V.clone().fill_diagonal_(0), weights inside the layer", N, T, 20, time="batch-first")
class RecurrentNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(RecurrentLayer(20, 16), RecurrentLayer(16, 16))
        self.out = nn.Linear(16, 5)

    def forward(self, x):
        return self.out(self.layers(x)).mean(1)


@entry("straight through", "(s - g).detach() + g with the threshold as a Parameter", T, N, 20)
class StraightThrough(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(20, 24), nn.Linear(24, 24), nn.Linear(24, 24)])
        self.out, self.threshold = nn.Linear(24, 5), nn.Parameter(torch.tensor(1.0))

    def fire(self, v):
        g = torch.sigmoid(4 * (v - self.threshold))
        return ((v >= self.threshold).float() - g).detach() + g

    def forward(self, x):
        mem, out = [0, 0, 0], 0
        for s in x:
            for i, layer in enumerate(self.layers):
                mem[i] = 0.5 * mem[i] + layer(s)
                s = self.fire(mem[i])
                mem[i] = mem[i] - s * self.threshold
            out = out + self.out(s)
        return out


def mem_update(layer, x, mem, spike):
    mem = mem * 0.2 * (1 - spike) + layer(x)
    return mem, fire(mem - 0.5)


@entry("mem_update", "a function that takes conv and state", N, T, 2, 8, 8, time="batch-first")
class MemUpdate(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = conv(2, 8), conv(8, 8)
        self.fc1, self.fc2 = nn.Linear(128, 16), nn.Linear(16, 5)

    def forward(self, x):
        n = x.shape[0]
        m1 = s1 = torch.zeros(n, 8, 8, 8)
        m2 = s2 = torch.zeros(n, 8, 8, 8)
        m3 = s3 = torch.zeros(n, 16)
        m4 = s4 = total = torch.zeros(n, 5)
        for t in range(x.shape[1]):
            m1, s1 = mem_update(self.conv1, x[:, t], m1, s1)
            m2, s2 = mem_update(self.conv2, s1, m2, s2)
            m3, s3 = mem_update(self.fc1, F.avg_pool2d(s2, 2).view(n, -1), m3, s3)
            m4, s4 = mem_update(self.fc2, s3, m4, s4)
            total = total + s4
        return total / x.shape[1]


class Folded(nn.Module):
    """A neuron for [T * N, ...]."""

    def forward(self, x):
        v, out = 0, []
        for step in x.view(T, -1, *x.shape[1:]):
            v = v * 0.5 + step
            s = fire(v - 1)
            v = v * (1 - s)
            out.append(s)
        return torch.cat(out)


@entry("time folded", "time folded into the batch", T, N, 2, 8, 8)
def time_folded():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(
                conv(2, 8), nn.BatchNorm2d(8), Folded(), conv(8, 8), Folded(), nn.AvgPool2d(2), conv(8, 8), Folded()
            )
            self.out = nn.Linear(8, 5)

        def forward(self, x):
            y = self.body(x.flatten(0, 1)).mean((2, 3))
            return self.out(y).view(T, -1, 5).mean(0)

    return Net()


@entry("direct coding", "the first conv outside of the loop over time", N, 2, 8, 8, time="batch-first")
class DirectCoding(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.b, self.c, self.out = conv(2, 8), conv(8, 8), conv(8, 8), nn.Linear(8, 5)

    def forward(self, x):
        c = self.stem(x)
        v1 = v2 = v3 = torch.zeros_like(c)
        out = 0
        for _ in range(T):
            v1 = v1 * 0.5 + c
            s1 = fire(v1 - 1)
            v2 = v2 * 0.5 + self.b(s1)
            s2 = fire(v2 - 1)
            v3 = v3 * 0.5 + self.c(s2)
            s3 = fire(v3 - 1)
            v1, v2, v3 = v1 - s1, v2 - s2, v3 - s3
            out = out + self.out(s3.mean((2, 3)))
        return out


class Masked(nn.Conv2d):
    """Called functionally with a mask of its own."""

    def __init__(self, *args, **keywords):
        super().__init__(*args, **keywords)
        self.register_buffer("keep", (torch.arange(self.weight.numel()) % 3 > 0).view_as(self.weight).float())


class Standardised(nn.Conv2d):
    def forward(self, x):
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, w / (w.std((1, 2, 3), keepdim=True) + 1e-5), self.bias, self.stride, self.padding)


class Simple(nn.Module):
    """Four layers in a loop over time; subclasses say what the layers are."""

    def __init__(self, a, b, c):
        super().__init__()
        self.a, self.b, self.c, self.out = a, b, c, nn.Linear(8, 5)

    def call(self, layer, x):
        return layer(x)

    def forward(self, x):
        mem, out = [0, 0, 0], 0
        for s in x:
            for i, layer in enumerate((self.a, self.b, self.c)):
                mem[i] = mem[i] * 0.5 + self.call(layer, s)
                s = fire(mem[i] - 1)
                mem[i] = mem[i] * (1 - s)
            out = out + self.out(s.mean((2, 3)))
        return out


@entry("masked conv", "a masked convolution that is called functionally", T, N, 2, 8, 8)
class MaskedConvs(Simple):
    def __init__(self):
        super().__init__(*(Masked(i, 8, 3, padding=1) for i in (2, 8, 8)))

    def call(self, layer, x):
        return F.conv2d(x, layer.weight * layer.keep, layer.bias, padding=1)


@entry("standardised conv", "weight standardisation: a stored 0 is no 0", T, N, 2, 8, 8)
def standardised():
    return Simple(*(Standardised(i, 8, 3, padding=1) for i in (2, 8, 8)))


@entry("weight_norm", "weight_norm on all hidden layers", T, N, 2, 8, 8)
def weight_norm():
    return Simple(*(nn.utils.parametrizations.weight_norm(conv(i, 8)) for i in (2, 8, 8)))


@entry("spectral_norm", "spectral_norm on one layer", T, N, 2, 8, 8)
def spectral_norm():
    return Simple(conv(2, 8), nn.utils.parametrizations.spectral_norm(conv(8, 8)), conv(8, 8))


@entry("depthwise", "depthwise-separable convolutions", T, N, 2, 8, 8)
def depthwise():
    def separable(i, o):
        return nn.Sequential(conv(i, i, groups=i, bias=False), nn.Conv2d(i, o, 1), nn.BatchNorm2d(o))

    return Simple(conv(2, 8), separable(8, 8), separable(8, 8))


@entry("parallel neuron", "PSN-like: h = W x over time at once, no loop", T, N, 20)
class Parallel(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(20, 24), nn.Linear(24, 24), nn.Linear(24, 24)])
        self.mix = nn.ParameterList([torch.eye(T) + 0.1 * torch.rand(T, T).tril() for _ in range(3)])
        self.bias, self.out = nn.Parameter(-torch.ones(T, 1)), nn.Linear(24, 5)

    def forward(self, x):
        for layer, mix in zip(self.layers, self.mix, strict=True):
            h = layer(x)
            x = fire(torch.addmm(self.bias, mix, h.flatten(1)).view_as(h))
        return self.out(x).mean(0)


@entry("ms-resnet", "membrane shortcut: x + conv(spike(x))", T, N, 2, 8, 8)
class MembraneShortcut(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b, self.c, self.d = conv(2, 8), conv(8, 8), conv(8, 8), conv(8, 8), conv(8, 8)
        self.out = nn.Linear(8, 5)

    def spikes(self, x):
        v, out = torch.zeros_like(x[0]), torch.zeros_like(x)
        for t in range(x.shape[0]):
            v = v * 0.25 + x[t]
            out[t] = fire(v - 0.5)
            v = v * (1 - out[t].detach())
        return out

    def run(self, layer, x):
        return layer(x.flatten(0, 1)).view(x.shape[0], -1, 8, 8, 8)

    def forward(self, x):
        x = self.run(self.stem, x)
        x = x + self.run(self.b, self.spikes(self.run(self.a, self.spikes(x))))
        x = x + self.run(self.d, self.spikes(self.run(self.c, self.spikes(x))))
        return self.out(self.spikes(x).mean((3, 4))).mean(0)


@entry("audio filters", "1-d net on SHD-like input with synaptic filters", N, 12, 40, time="batch-first")
class SynapticFilters(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.ModuleList([nn.Linear(40, 24), nn.Linear(24, 24), nn.Linear(24, 24)])
        self.alpha, self.out = nn.Parameter(torch.tensor(0.7)), nn.Linear(24, 5)

    def forward(self, x):
        for layer in self.fc:
            current, v, out = 0, 0, []
            for t in range(x.shape[1]):
                current = self.alpha * current + layer(x[:, t])
                v = 0.9 * v + 0.3 * current
                s = Triangle.apply(v - 1, 0.8)
                v = v * (1 - s.detach())
                out.append(s)
            x = torch.stack(out, 1)
        return self.out(x).amax(1)


@entry("delays", "delays by padding and dilated 1-d convolutions over time", N, 20, 16, time="last")
class Delays(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv1d(20, 16, 3, dilation=2), nn.Conv1d(16, 16, 3, dilation=2)
        self.c, self.out = nn.Conv1d(16, 16, 1), nn.Linear(16, 5)

    def spikes(self, x):
        v, out = 0, []
        for t in range(x.shape[-1]):
            v = 0.8 * v + x[..., t]
            s = fire(v - 1)
            v = v - s
            out.append(s)
        return torch.stack(out, -1)

    def forward(self, x):
        for layer in (self.a, self.b, self.c):
            x = self.spikes(layer(F.pad(x, (2 * layer.kernel_size[0] - 2, 0))))
        return self.out(x.mean(-1))


class Stateful(nn.Module):
    """Keeps its potential as an attribute, to be reset by the user."""

    def __init__(self):
        super().__init__()
        self.v = None

    def reset(self):
        self.v = None

    def forward(self, x):
        v = x if self.v is None else 0.5 * self.v + x
        s = fire(v - 1)
        self.v = v * (1 - s)
        return s


@entry("stateful modules", "neurons of the user's own with an attribute v and reset()", T, N, 20)
def stateful():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(20, 24), Stateful(), nn.Linear(24, 24), Stateful())
            self.body.extend([nn.Linear(24, 24), Stateful(), nn.Linear(24, 5)])

        def forward(self, x):
            for module in self.body:
                if isinstance(module, Stateful):
                    module.reset()
            return sum(self.body(step) for step in x)

    return Net()


@entry("einsum", "weights used by einsum and matmul, no layer's own call", T, N, 20)
class Einsum(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.out = nn.Linear(20, 24), nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 5)

    def forward(self, x):
        v1 = v2 = v3 = out = 0
        for step in x:
            v1 = 0.5 * v1 + torch.einsum("ni,oi->no", step, self.a.weight)
            s1 = fire(v1 - 1)
            v2 = 0.5 * v2 + torch.addmm(self.b.bias, s1, self.b.weight.t())
            s2 = fire(v2 - 1)
            v3 = 0.5 * v3 + s2 @ self.c.weight
            s3 = fire(v3 - 1)
            v1, v2, v3 = v1 - s1, v2 - s2, v3 - s3
            out = out + self.out(s3)
        return out
