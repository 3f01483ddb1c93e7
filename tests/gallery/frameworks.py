"""Networks of SpikingJelly, snnTorch and Norse, alone and mixed, as their users write them."""

import norse.torch as norse
import snntorch as snn
import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn
from torch.optim.swa_utils import AveragedModel

from gallery.entry import entry
from gallery.loops import N, Rect, T


def conv(i, o, **k):
    return layer.Conv2d(i, o, 3, padding=1, **k)


def lif(**k):
    return neuron.LIFNode(surrogate_function=surrogate.ATan(), **k)


def multi(*modules):
    net = nn.Sequential(*modules)
    functional.set_step_mode(net, "m")
    return net


IMAGE = (T, N, 2, 8, 8)


class Rate(nn.Module):
    """Mean over time, as a readout."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x).mean(0)


def block(i, o, pool=False):
    return [conv(i, o, bias=False), layer.BatchNorm2d(o), lif(), *([layer.MaxPool2d(2)] if pool else [])]


def head(i):
    return [layer.Flatten(), layer.Linear(i, 16), lif(), layer.Linear(16, 5)]


@entry("vgg", "SpikingJelly: conv-BN-LIF-pool, multi-step", *IMAGE)
def vgg():
    return Rate(multi(*block(2, 8, True), *block(8, 8, True), *head(32)))


@entry("single step", "SpikingJelly: single-step, the loop in the forward", *IMAGE)
def single_step():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(*block(2, 8, True), *block(8, 8, True), *head(32))

        def forward(self, x):
            return torch.stack([self.net(step) for step in x]).mean(0)

    return Net()


@entry("permuted", "[N, T] input that is permuted, then multi-step layers", N, T, 2, 8, 8, time="batch-first")
def permuted():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = multi(*block(2, 8, True), *block(8, 8, True), *head(32))

        def forward(self, x):
            return self.net(x.permute(1, 0, 2, 3, 4)).mean(0)

    return Net()


@entry("repeated image", "unsqueeze(0).repeat(T), then flatten(0, 1) around each layer", N, 2, 8, 8, time="batch-first")
class Repeated(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.n1 = nn.Conv2d(2, 8, 3, padding=1), lif(step_mode="m")
        self.b, self.n2 = nn.Conv2d(8, 8, 3, padding=1), lif(step_mode="m")
        self.c, self.n3, self.out = nn.Conv2d(8, 8, 3, padding=1), lif(step_mode="m"), nn.Linear(8, 5)

    def forward(self, x):
        x = x.unsqueeze(0).repeat(T, 1, 1, 1, 1)
        for conv_, fires in ((self.a, self.n1), (self.b, self.n2), (self.c, self.n3)):
            t, n = x.shape[:2]
            x = fires(conv_(x.flatten(0, 1)).view(t, n, 8, 8, 8))
        return self.out(x.mean((3, 4))).mean(0)


class Sew(nn.Module):
    def __init__(self, connect):
        super().__init__()
        self.a, self.b, self.connect = nn.Sequential(*block(8, 8)), nn.Sequential(*block(8, 8)), connect

    def forward(self, x):
        y = self.b(self.a(x))
        return y + x if self.connect == "add" else y * x if self.connect == "and" else (1 - y) * x


def sew(connect):
    return lambda: Rate(multi(*block(2, 8), Sew(connect), *head(512)))


for kind in ("add", "and", "iand"):
    entry(f"sew {kind}", f"SEW block with {kind}", *IMAGE)(sew(kind))


@entry("dense", "dense concatenation of channels", *IMAGE)
class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = multi(*block(2, 4)), multi(*block(6, 4)), multi(*block(10, 4))
        self.out = layer.Linear(14, 5, step_mode="m")

    def forward(self, x):
        for part in (self.a, self.b, self.c):
            x = torch.cat([x, part(x)], 2)
        return self.out(x.mean((3, 4))).mean(0)


@entry("u-net", "U-Net with ConvTranspose and a skip connection", *IMAGE)
class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.deep = multi(*block(2, 8)), multi(layer.MaxPool2d(2), *block(8, 8))
        self.up = multi(layer.ConvTranspose2d(8, 8, 2, 2), lif())
        self.last = multi(conv(16, 8), lif(), layer.Conv2d(8, 3, 1))

    def forward(self, x):
        a = self.down(x)
        return self.last(torch.cat([self.up(self.deep(a)), a], 2)).mean(0)


@entry("attention", "spiking self-attention with LIF on q, k, v, and an MLP", T, N, 2, 8, 8)
class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = multi(*block(2, 16, True))
        self.q, self.k, self.v, self.proj = (nn.Linear(16, 16, bias=False) for _ in range(4))
        self.nq, self.nk, self.nv, self.na, self.np = (lif(step_mode="m") for _ in range(5))
        self.fc1, self.fc2, self.n1, self.n2 = (
            nn.Linear(16, 32),
            nn.Linear(32, 16),
            lif(step_mode="m"),
            lif(step_mode="m"),
        )
        self.out = nn.Linear(16, 5)

    def heads(self, x):
        return x.view(*x.shape[:3], 2, 8).transpose(2, 3)

    def forward(self, x):
        x = self.stem(x).flatten(3).transpose(2, 3)
        q, k, v = self.heads(self.nq(self.q(x))), self.heads(self.nk(self.k(x))), self.heads(self.nv(self.v(x)))
        y = (q @ k.transpose(-2, -1)) @ v * 0.25
        x = x + self.np(self.proj(self.na(y.transpose(2, 3).flatten(3))))
        x = x + self.n2(self.fc2(self.n1(self.fc1(x))))
        return self.out(x.mean(2)).mean(0)


@entry("psn", "SpikingJelly: parallel spiking neurons", *IMAGE)
def psn():
    def make():
        return neuron.PSN(T=T, surrogate_function=surrogate.ATan())

    body = [conv(2, 8), make(), conv(8, 8), make(), conv(8, 8), make(), layer.Flatten(), layer.Linear(512, 5)]
    return Rate(multi(*body))


@entry("plif", "SpikingJelly: learned time constants, soft reset", *IMAGE)
def plif():
    def make():
        return neuron.ParametricLIFNode(v_reset=None, surrogate_function=surrogate.ATan())

    return Rate(
        multi(
            conv(2, 8), make(), conv(8, 8), make(), layer.Flatten(), layer.Linear(512, 16), make(), layer.Linear(16, 5)
        )
    )


@entry("grouped conv1d", "SpikingJelly: grouped 1-d convolutions", T, N, 8, 16)
def conv1d():
    def one(i, o, **k):
        return layer.Conv1d(i, o, 3, padding=1, **k)

    body = [one(8, 8, groups=2), lif(), one(8, 8), lif(), layer.MaxPool1d(2), one(8, 8), lif()]
    return Rate(multi(*body, layer.Flatten(), layer.Linear(64, 5)))


@entry("ann2snn", "a converted model: IF neurons with voltage scalers", *IMAGE)
def converted():
    class Scaler(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.register_buffer("scale", torch.tensor(scale))

        def forward(self, x):
            return x * self.scale

    def spiking():
        return [Scaler(0.5), neuron.IFNode(v_threshold=1.0, v_reset=None), Scaler(2.0)]

    body = [nn.Conv2d(2, 8, 3, padding=1), *spiking(), nn.Conv2d(8, 8, 3, padding=1), *spiking(), nn.AvgPool2d(2)]
    net = nn.Sequential(*body, nn.Flatten(), nn.Linear(128, 16), *spiking(), nn.Linear(16, 5))

    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return sum(self.net(step) for step in x)

    return Steps()


class SnnLoop(nn.Module):
    """Hidden state, loop in the forward."""

    def __init__(self, *modules, output=None):
        super().__init__()
        self.net, self.output = nn.Sequential(*modules), output

    def forward(self, x):
        for module in self.net:
            if hasattr(module, "reset_mem"):
                module.reset_mem()
        return sum(self.net(step) for step in x)


def leaky(**k):
    return snn.Leaky(beta=0.8, init_hidden=True, **k)


@entry("snntorch hidden", "snnTorch: hidden state, loop in the forward", T, N, 20)
def snn_hidden():
    return SnnLoop(nn.Linear(20, 24), leaky(), nn.Linear(24, 24), leaky(), nn.Linear(24, 16), leaky(), nn.Linear(16, 5))


@entry("snntorch conv", "snnTorch: convolutions, reset to zero", *IMAGE)
def snn_conv():
    body = [
        nn.Conv2d(2, 8, 3, padding=1),
        leaky(reset_mechanism="zero"),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1),
    ]
    body += [leaky(reset_mechanism="zero"), nn.Flatten(), nn.Linear(128, 16), leaky(reset_mechanism="zero")]
    return SnnLoop(*body, nn.Linear(16, 5))


@entry("snntorch explicit", "snnTorch: explicit state, mem of the last neuron as the output", T, N, 20)
class SnnExplicit(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(20, 24), nn.Linear(24, 24), nn.Linear(24, 5)
        self.n1, self.n2 = snn.Leaky(beta=0.8), snn.Synaptic(alpha=0.5, beta=0.8)
        self.n3 = snn.Leaky(beta=0.8, reset_mechanism="none")

    def forward(self, x):
        m1, (s2, m2), m3, out = self.n1.reset_mem(), self.n2.reset_mem(), self.n3.reset_mem(), []
        for step in x:
            z, m1 = self.n1(self.a(step), m1)
            z, s2, m2 = self.n2(self.b(z), s2, m2)
            z, m3 = self.n3(self.c(z), m3)
            out.append(m3)
        return torch.stack(out).mean(0)


@entry("snntorch recurrent", "snnTorch: RLeaky, recurrent weights in the neuron", T, N, 20)
class SnnRecurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.n1 = nn.Linear(20, 24), snn.RLeaky(beta=0.8, linear_features=24)
        self.b, self.n2, self.out = nn.Linear(24, 24), snn.RLeaky(beta=0.8, linear_features=24), nn.Linear(24, 5)

    def forward(self, x):
        (s1, m1), (s2, m2), out = self.n1.reset_mem(), self.n2.reset_mem(), 0
        for step in x:
            s1, m1 = self.n1(self.a(step), s1, m1)
            s2, m2 = self.n2(self.b(s1), s2, m2)
            out = out + self.out(s2)
        return out


@entry("snntorch conv lstm", "snnTorch: convolutional LSTM neurons", *IMAGE)
class SnnConvLstm(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.n1 = nn.Conv2d(2, 4, 3, padding=1), snn.Leaky(beta=0.8)
        self.lstm, self.fc = snn.SConv2dLSTM(4, 6, 3, threshold=0.1), nn.Linear(6, 16)
        self.n2, self.out = snn.Leaky(beta=0.8), nn.Linear(16, 5)

    def forward(self, x):
        m1, (syn, mem), m2, out = self.n1.reset_mem(), self.lstm.reset_mem(), self.n2.reset_mem(), 0
        for step in x:
            z, m1 = self.n1(self.a(step), m1)
            z, syn, mem = self.lstm(z, syn, mem)
            z, m2 = self.n2(self.fc(z.mean((2, 3))), m2)
            out = out + self.out(z)
        return out


class NorseLoop(nn.Module):
    def __init__(self, *modules):
        super().__init__()
        self.net = norse.SequentialState(*modules)

    def forward(self, x):
        state, out = None, 0
        for step in x:
            z, state = self.net(step, state)
            out = out + z
        return out


@entry("norse cells", "Norse: LIFCell in a SequentialState, LICell readout", T, N, 20)
def norse_cells():
    cells = [nn.Linear(20, 24), norse.LIFCell(), nn.Linear(24, 24), norse.LIFCell(), nn.Linear(24, 24), norse.LIFCell()]
    return NorseLoop(*cells, nn.Linear(24, 5), norse.LICell())


@entry("norse lift", "Norse: Lift and modules that run over time", *IMAGE)
def norse_lift():
    net = norse.SequentialState(
        norse.Lift(nn.Conv2d(2, 8, 3, padding=1)), norse.LIF(), norse.Lift(nn.Conv2d(8, 8, 3, padding=1)), norse.LIF(),
        nn.Flatten(2), nn.Linear(512, 16), norse.LIF(), nn.Linear(16, 5),
    )  # fmt: skip

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x)[0].mean(0)

    return Net()


@entry("norse recurrent", "Norse: recurrent cells", T, N, 20)
def norse_recurrent():
    return NorseLoop(
        norse.LIFRecurrentCell(20, 24),
        norse.LIFRecurrentCell(24, 24),
        nn.Linear(24, 16),
        norse.LIFCell(),
        nn.Linear(16, 5),
    )


@entry("norse functional", "Norse: functional steps", T, N, 20)
class NorseFunctional(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.out = nn.Linear(20, 24), nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 5)

    def forward(self, x):
        from norse.torch.functional.lif import LIFFeedForwardState, LIFParameters, lif_feed_forward_step

        zero, out = torch.zeros(x.shape[1], 24), 0
        states = [LIFFeedForwardState(v=zero, i=zero) for _ in range(3)]
        for step in x:
            for i, linear in enumerate((self.a, self.b, self.c)):
                step, states[i] = lif_feed_forward_step(linear(step), states[i], LIFParameters(), 0.01)
            out = out + self.out(step)
        return out


@entry("two frameworks", "SpikingJelly, snnTorch and a spike function in one model", T, N, 20)
class TwoFrameworks(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.n1, self.b, self.n2 = nn.Linear(20, 24), lif(), nn.Linear(24, 24), leaky()
        self.c, self.out = nn.Linear(24, 24), nn.Linear(24, 5)

    def forward(self, x):
        self.n1.reset()
        self.n2.reset_mem()
        v, out = 0, 0
        for step in x:
            v = 0.5 * v + self.c(self.n2(self.b(self.n1(self.a(step)))))
            s = Rect.apply(v - 1)
            v = v - s
            out = out + self.out(s)
        return out


@entry("DataParallel", "a network inside nn.DataParallel", *IMAGE)
def data_parallel():
    return nn.DataParallel(vgg())


@entry("compiled", "a network inside torch.compile", *IMAGE)
def compiled():
    return torch.compile(vgg(), backend="eager")


@entry("averaged", "an averaged (EMA) copy", *IMAGE)
def averaged():
    return AveragedModel(vgg())
