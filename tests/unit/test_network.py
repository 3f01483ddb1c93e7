"""How a recipe's model is called over time: images, sequences, single steps, and recordings."""

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

from spikeprune import zoo
from spikeprune.core.errors import InvalidValue
from spikeprune.count.counts import count
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
