"""How a recipe's model is called over time: images, sequences, single steps, and recordings."""

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

from gallery.loops import Rect
from spikeprune import zoo
from spikeprune.core.errors import InvalidValue
from spikeprune.count.counts import count
from spikeprune.data import Dataset
from spikeprune.lab.study.features import observe
from spikeprune.lab.train.network import connect, load_weights

T, N, K = 3, 8, 5


def parts() -> list[nn.Module]:
    torch.manual_seed(0)
    spike = neuron.LIFNode(surrogate_function=surrogate.ATan())
    return [layer.Flatten(), layer.Linear(16, 6), spike, layer.Linear(6, K)]


def multi_step() -> nn.Module:
    net = nn.Sequential(*parts())
    functional.set_step_mode(net, "m")
    return net


class RepeatsItself(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = multi_step()

    def forward(self, x):
        return self.net(x.unsqueeze(0).repeat(T, 1, 1, 1, 1))


class LoopsItself(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(*parts())

    def forward(self, x):
        return torch.stack([self.net(x) for _ in range(T)])


MODELS = {
    "sequence": multi_step,
    "step": lambda: nn.Sequential(*parts()),
    "image": RepeatsItself,
    "image, in a loop": LoopsItself,
}


@pytest.mark.parametrize("form", MODELS)
def test_every_form_gives_the_same_logits(form):
    x = torch.rand(N, 1, 4, 4) * 4
    network = connect(MODELS[form](), x, T, K, "auto", recorded=False)
    assert network.takes == form.split(",")[0]
    wanted = connect(multi_step(), x, T, K, "auto", recorded=False)(x)
    assert wanted.shape == (T, N, K)
    torch.testing.assert_close(network(x), wanted)
    # A second call starts from a fresh membrane state.
    torch.testing.assert_close(network(x), wanted)


@pytest.mark.parametrize("form", ["sequence", "step"])
def test_recordings_go_in_as_they_are(form):
    x = torch.rand(T, N, 1, 4, 4) * 4
    network = connect(MODELS[form](), x, T, K, "auto", recorded=True)
    assert network.takes == form
    expected = connect(multi_step(), x, T, K, "auto", recorded=True)(x, recorded=True)
    torch.testing.assert_close(network(x, recorded=True), expected)


def test_a_zoo_network_takes_images_and_recordings():
    model = zoo.build("mlp", classes=K, T=T, size=4)
    assert connect(model, torch.rand(N, 1, 4, 4), T, K, "auto", recorded=False).takes == "image"
    recorded = connect(model, torch.rand(T, N, 1, 4, 4), T, K, "auto", recorded=True)
    assert recorded(torch.rand(T, N, 1, 4, 4), recorded=True).shape == (T, N, K)


def test_trying_out_changes_nothing():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), *parts()[1:])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    connect(model, torch.rand(N, 1, 4, 4), T, K, "auto", recorded=False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_outputs_of_the_wrong_shape_are_refused():
    with pytest.raises(InvalidValue, match=r"in no known way to give \[T, N, 7\]"):
        connect(multi_step(), torch.rand(N, 1, 4, 4), T, 7, "auto", recorded=False)


def test_counting_a_single_step_model_covers_all_steps():
    x = torch.rand(N, 1, 4, 4)
    network = connect(MODELS["step"](), x, T, K, "auto", recorded=False)
    forward = network.model.forward
    with network.one_call() as model:
        counts = count(model, [(network.fed(x), torch.zeros(N))])
    # T times the 16 * 6 + 6 * 5 weights.
    assert counts.dense.macs == T * 126
    assert network.model.forward == forward
    assert "forward" not in vars(network.model)


@pytest.mark.parametrize("inside", [None, "model", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_come_in_several_wrappings(tmp_path, inside, prefix):
    source, target = multi_step(), multi_step()
    with torch.no_grad():
        source[1].weight.fill_(0.5)
    state = {f"{prefix}{name}": value for name, value in source.state_dict().items()}
    torch.save(state if inside is None else {inside: state, "epoch": 3}, tmp_path / "weights.pt")
    load_weights(target, str(tmp_path / "weights.pt"))
    assert torch.equal(target[1].weight, source[1].weight)


def test_weights_in_safetensors(tmp_path):
    from safetensors.torch import save_file

    source, target = multi_step(), multi_step()
    with torch.no_grad():
        source[1].weight.fill_(0.5)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    load_weights(target, str(tmp_path / "weights.safetensors"))
    assert torch.equal(target[1].weight, source[1].weight)


class Found(nn.Module):
    """A neuron that is no module; `forgets` in which way."""

    def __init__(self, forgets):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.forgets, self.v = nn.Linear(16, 6), nn.Linear(6, K), forgets, 0.0

    def step(self, x):
        self.v = 0.9 * self.v + self.one(x.flatten(1))
        spike = Rect.apply(self.v - 0.3)
        self.v = self.v - spike * 0.3
        return self.two(spike)

    def forward(self, x):
        if self.forgets == "step":
            return self.step(x)
        if self.forgets:
            self.v = 0.0
        return torch.stack([self.step(at) for at in (x if self.forgets == "sequence" else [x] * T)])


class Resets(Found):
    def reset(self):
        self.v = 0.0


@pytest.mark.parametrize("takes", ["image", "sequence", "step"])
def test_a_model_whose_neurons_are_found_is_trained_as_any_other(takes):
    x = torch.rand(N, 1, 4, 4) * 4
    net = Resets(takes)
    network = connect(net, x, T, K, "auto", recorded=False)
    assert (network.takes, network.ran, net.v) == (takes, T, 0.0)
    net.v = 0.0
    wanted = torch.stack([net.step(x) for _ in range(T)])
    for _ in range(2):
        assert torch.equal(network(x), wanted)


def test_found_neurons_that_remember_the_batch_before_are_refused():
    with pytest.raises(InvalidValue, match=r"Found answers a batch differently after another one.*reset\(\)"):
        connect(Found(""), torch.rand(N, 1, 4, 4), T, K, "auto", recorded=False)


def test_a_model_without_any_spike_is_refused():
    class Smooth(Resets):
        def step(self, x):
            return self.two(self.one(x.flatten(1)).relu())

    with pytest.raises(InvalidValue, match=r"takes .* in no known way"):
        connect(Smooth("image"), torch.rand(N, 1, 4, 4), T + 1, K, "auto", recorded=False)
    with pytest.raises(InvalidValue, match="no spiking neuron was found"):
        connect(Smooth("image"), torch.rand(N, 1, 4, 4), T, K, "auto", recorded=False)


def test_analysis_of_found_neurons_is_refused_in_one_line():
    network = connect(Resets("image"), torch.rand(N, 1, 4, 4) * 4, T, K, "auto", recorded=False)
    with pytest.raises(InvalidValue, match=r"analyze reads the spikes of neuron modules, and Resets has none"):
        observe(network, object.__new__(Dataset), "test", 8, 8)
