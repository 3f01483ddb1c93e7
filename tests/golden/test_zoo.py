"""The zoo against the paper's facts: neurons, surrogates, normalisation, parameter counts. Working shown beside each.

The numbers of the paper's networks come from the authors' public code (arXiv:2311.16141).
"""

import math

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

from spikeprune import zoo
from spikeprune.core.errors import InvalidValue, UnknownName
from spikeprune.zoo import readout, registry
from spikeprune.zoo.paper import BatchNorm2dPerStep, Dspike, Gate, lif_channels, lif_weights
from spikeprune.zoo.transformer import SpikingAttention

PAPER = ["vgg16-weights", "vgg16-channels", "resnet19-weights", "resnet19-channels"]
PAPER += ["resnet19-weights-authors"]
SMALL = ["digits-conv", "digits-conv-wide", "fashion-conv", "fashion-conv-fc", "fashion-conv-large", "mlp"]
SMALL += ["digits-conv-small", "fashion-conv-small", "vgg16-quarter", "resnet19-slim"]
SMALL += ["vgg16-eighth", "resnet19-eighth", "fashion-transformer"]


def fresh(name: str, **settings: int) -> nn.Module:
    torch.manual_seed(0)
    return zoo.build(name, **settings)


def outline(name: str, **settings: int) -> nn.Module:
    """The network without its numbers, which takes no time to make."""
    with torch.device("meta"):
        return zoo.build(name, **settings)


# ---- the surrogate -------------------------------------------------------------------------------------------------


def test_dspike_curve_worked_by_hand():
    # x = u - 1/2 and k = 3, so at the threshold: h' = k / (2 tanh 1.5) = 3 / (2 * 0.905148) = 1.657187.
    # At u = 0 and u = 1: sech^2(1.5) = 1 - 0.905148^2 = 0.180707, so h' = 1.657187 * 0.180707 = 0.299465.
    u = torch.tensor([-0.001, 0.0, 0.5, 1.0, 1.001], requires_grad=True)
    Dspike()(u - 0.5).sum().backward()
    assert u.grad is not None
    torch.testing.assert_close(u.grad, torch.tensor([0.0, 0.299465, 1.657187, 0.299465, 0.0]), atol=1e-5, rtol=0)
    # h itself: 0, 1/2 and 1 at u = 0, 1/2, 1, constant outside.
    h = Dspike(spiking=False)(torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0]))
    torch.testing.assert_close(h, torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]))


@pytest.mark.parametrize("k", [1.0, 3.0, 8.0])
def test_dspike_gradient_equals_autograd_of_its_curve(k: float):
    x = torch.arange(-2, 2, 1 / 256, dtype=torch.float64)
    x = x[x.abs() != 0.5]  # at its ends, torch's clamp passes the gradient in torch 2.13 and not in 2.15
    by_hand, by_autograd = x.clone().requires_grad_(), x.clone().requires_grad_()
    weights = torch.linspace(-1, 2, len(x), dtype=torch.float64)
    (Dspike(k)(by_hand) * weights).sum().backward()
    (Dspike(k, spiking=False)(by_autograd) * weights).sum().backward()
    torch.testing.assert_close(by_hand.grad, by_autograd.grad)
    torch.testing.assert_close(Dspike.backward(weights, x, k), by_hand.grad)


def test_dspike_fires_strictly_above_the_threshold():
    x = torch.tensor([-0.1, 0.0, 1e-7, 0.3])
    assert Dspike()(x).tolist() == [0, 0, 1, 1]


# ---- the neurons ---------------------------------------------------------------------------------------------------


def trace(lif: neuron.BaseNode, inputs: list[float]) -> tuple[list[float], list[float]]:
    """Spikes and potentials after reset, step by step."""
    lif.step_mode, lif.store_v_seq = "m", True
    x = torch.tensor(inputs).reshape(-1, 1, 1)
    spikes = lif(x)
    return spikes.flatten().tolist(), lif.v_seq.flatten().tolist()


def test_neuron_of_the_weights_variant_worked_by_hand():
    # v_pre = v/4 + x; spike if v_pre > 0.5; then v = 0.
    # t  x     v_pre              spike  v
    # 1  0.40  0.40               0      0.40
    # 2  0.30  0.10 + 0.30 = 0.40  0     0.40
    # 3  0.45  0.10 + 0.45 = 0.55  1     0
    # 4  0.50  0.50  (a tie)       0     0.50
    # 5  0.375 0.125 + 0.375 = 0.5 0     0.50   (a tie again)
    # 6  2.00  2.125               1     0
    spikes, v = trace(lif_weights(), [0.40, 0.30, 0.45, 0.50, 0.375, 2.0])
    assert spikes == [0, 0, 1, 0, 0, 1]
    assert v == pytest.approx([0.40, 0.40, 0, 0.50, 0.50, 0], abs=1e-6)


def test_neuron_of_the_channels_variant_worked_by_hand():
    # v_pre = v/4 + 3x/4; spike if v_pre >= 1; then v = 0.
    # t  x    v_pre                 spike  v
    # 1  1.0  0.75                  0      0.75
    # 2  1.0  0.1875 + 0.75 = 0.9375  0    0.9375
    # 3  1.2  0.234375 + 0.9 = 1.134375  1  0
    # 4  4/3  1.0                   1      0       (a tie fires)
    # 5  0.5  0.375                 0      0.375
    spikes, v = trace(lif_channels(), [1.0, 1.0, 1.2, 4 / 3, 0.5])
    assert spikes == [0, 0, 1, 1, 0]
    assert v == pytest.approx([0.75, 0.9375, 0, 0, 0.375], abs=1e-6)


def test_gradient_passes_through_the_reset_unless_cut():
    # Weights variant, x_1 = 0.6: v_pre = 0.6 fires. v_1 = v_pre (1 - s), so
    # dv_1/dx = (1 - s) - v_pre h'(0.1) = -0.6 * 1.657187 * sech^2(0.3) = -0.6 * 1.657187 * 0.915137 = -0.909938,
    # and 0 where the reset is cut from the gradient, as SpikingJelly's detach_reset does.
    def dv_dx(lif: neuron.BaseNode) -> float:
        x = torch.tensor([[0.6]], requires_grad=True)
        lif(x)
        lif.v.sum().backward()
        assert x.grad is not None
        return x.grad.item()

    assert dv_dx(lif_weights()) == pytest.approx(-0.909938, abs=1e-5)
    assert dv_dx(lif_weights(detach_reset=True)) == 0


def test_where_the_reset_is_cut():
    def cut(name: str) -> list[bool]:
        return [m.detach_reset for m in outline(name).modules() if isinstance(m, neuron.BaseNode)]

    assert cut("vgg16-weights") == [False] * 13
    assert cut("vgg16-channels") == [False] * 13
    assert cut("resnet19-weights") == cut("resnet19-weights-authors") == [False] * 17
    assert cut("resnet19-channels") == [False] * 16 + [True]


# ---- sizes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["weights", "channels"])
@pytest.mark.parametrize(
    ("net", "totals", "masked", "norm_channels", "conv_weights"),
    [
        # conv + classifier + BN (two per channel): 14,710,464 + 512 c + c + 8,448
        ("vgg16", (14_724_042, 14_770_212, 14_821_512), (14_715_584, 14_761_664), 4_224, 14_710_464),
        # 12,486,336 + 512 c + c + 8,832
        ("resnet19", (12_500_298, 12_546_468, 12_597_768), (12_491_456, 12_537_536), 4_416, 12_486_336),
    ],
)
def test_parameter_counts_of_the_paper(net, kind, totals, masked, norm_channels, conv_weights):
    for classes, total in zip((10, 100, 200), totals, strict=True):
        model = outline(f"{net}-{kind}", classes=classes)
        assert sum(p.numel() for p in model.parameters()) == total
        weights = sum(p.numel() for p in model.parameters() if p.dim() in (2, 4))
        assert weights == conv_weights + 512 * classes
        if classes <= 100:
            assert weights == masked[classes // 100]
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        assert sum(m.num_features for m in norms) == norm_channels


@pytest.mark.parametrize("kind", ["weights", "channels"])
@pytest.mark.parametrize(
    ("net", "size", "macs"),
    [("vgg16", 32, 313_196_544), ("vgg16", 64, 1_252_786_176), ("resnet19", 32, 555_417_600)],
)
def test_conv_multiplies_per_step(net, kind, size, macs):
    model = outline(f"{net}-{kind}", size=size)
    per_step: list[int] = []

    def count(conv: nn.Conv2d, _: tuple[Tensor, ...], out: Tensor) -> None:
        assert conv.bias is None
        per_step.append(conv.weight.numel() * out.shape[-2] * out.shape[-1])

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    functional.set_step_mode(model, "s")
    model(torch.empty(1, 3, size, size, device="meta"))
    assert sum(per_step) == macs
    if (net, size) == ("vgg16", 32):
        millions = [1.77, 37.7, 18.9, 37.7, 18.9, 37.7, 37.7, 18.9, 37.7, 37.7, 9.4, 9.4, 9.4]
        assert [n / 1e6 for n in per_step] == pytest.approx(millions, rel=0.01)


def test_gates_are_no_parameters():
    gates = [m for m in outline("resnet19-channels").modules() if isinstance(m, Gate)]
    assert len(gates) == 9
    assert sum(g.channels for g in gates) == 2_240
    assert not any(list(g.parameters()) for g in gates)
    assert not any(isinstance(m, Gate) for m in outline("resnet19-weights").modules())


# ---- structure -----------------------------------------------------------------------------------------------------


def test_vgg_starts_as_described():
    # Kaiming normal, fan out: the variance of a weight is 2 / (9 * output channels); the classifier's is 0.01^2.
    model = fresh("vgg16-weights")
    for conv in (m for m in model.modules() if isinstance(m, nn.Conv2d)):
        wanted = math.sqrt(2 / (9 * conv.out_channels))
        assert conv.weight.std().item() == pytest.approx(wanted, rel=0.05)
    assert model.head.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert model.head.bias.abs().max() == 0
    assert sum(isinstance(m, nn.AvgPool2d) for m in model.modules()) == 5
    assert not any(isinstance(m, (nn.MaxPool2d, nn.Dropout)) for m in model.modules())


def test_resnet_shortcuts_take_the_raw_stream():
    model = fresh("resnet19-weights", T=1, size=8).eval()
    shortcuts = [m.shortcut for m in model.body if hasattr(m, "shortcut")]
    convs = [m for m in shortcuts if isinstance(m, nn.Conv2d)]
    assert [(m.kernel_size, m.stride, m.in_channels, m.out_channels) for m in convs] == [
        ((1, 1), (2, 2), 64, 128),
        ((1, 1), (2, 2), 128, 256),
        ((1, 1), (2, 2), 256, 512),
    ]
    assert len(shortcuts) == 8
    seen = {}
    convs[0].register_forward_pre_hook(lambda _, x: seen.update(shortcut=x[0]))
    model.stem.register_forward_hook(lambda _m, _x, y: seen.update(stem=y))
    model(torch.rand(1, 3, 8, 8))
    assert torch.equal(seen["shortcut"], seen["stem"])


@pytest.mark.parametrize(("name", "binary"), [("resnet19-weights", True), ("resnet19-weights-authors", False)])
def test_what_the_second_convolution_of_a_block_takes(name, binary):
    block = fresh(name, T=2, size=8).body[0]
    seen = []
    block.conv2.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    block(torch.randn(2, 1, 64, 8, 8))
    assert bool(((seen[0] == 0) | (seen[0] == 1)).all()) == binary


def test_normalisation_over_all_steps_or_step_by_step():
    x = torch.randn(3, 4, 2, 5, 5) * torch.arange(1, 4).reshape(3, 1, 1, 1, 1)
    merged, per_step = layer.BatchNorm2d(2, step_mode="m"), BatchNorm2dPerStep(2, step_mode="m")
    # One set of statistics over (T, N, H, W): the whole has variance 1, the loud last step more.
    y = merged(x)
    assert y.var().item() == pytest.approx(1, abs=0.01)
    assert y[2].var() > 1.5
    # One set a step: each step has variance 1, and the averages move T times.
    y = per_step(x)
    assert [y_t.var().item() for y_t in y] == pytest.approx([1, 1, 1], abs=0.02)
    one_by_one = nn.BatchNorm2d(2)
    torch.testing.assert_close(y, torch.stack([one_by_one(x_t) for x_t in x]))
    assert torch.equal(per_step.running_mean, one_by_one.running_mean)
    assert torch.equal(per_step.running_var, one_by_one.running_var)
    assert per_step.num_batches_tracked == 3
    per_step.eval()
    one_by_one.eval()
    torch.testing.assert_close(per_step(x), torch.stack([one_by_one(x_t) for x_t in x]))


def test_which_normalisation_each_variant_uses():
    def kinds(name: str) -> set[type]:
        return {type(m) for m in outline(name).modules() if isinstance(m, nn.BatchNorm2d)}

    for net in ("vgg16", "resnet19"):
        assert kinds(f"{net}-weights") == {layer.BatchNorm2d}
        assert kinds(f"{net}-channels") == {BatchNorm2dPerStep}


@pytest.mark.parametrize(
    ("name", "steps"),
    [("resnet19-weights", 3), ("resnet19-channels", 1), ("digits-conv", 1), ("mlp", 1)],
)
def test_how_often_the_stem_runs_on_an_image(name, steps):
    model = fresh(name, T=3, size=8).eval()
    seen = []
    model.stem.register_forward_hook(lambda _m, _x, y: seen.append(y.shape[0]))
    image = torch.rand(2, *model.image_shape)
    logits = model(image)
    functional.reset_net(model)
    # The same image as a sequence: the stem sees every step, and the answer is the same.
    torch.testing.assert_close(model(image.expand(3, *image.shape)), logits)
    assert seen == [steps, 3]


def test_gate_lets_the_chosen_channels_pass():
    gate = Gate(4)
    x = torch.rand(2, 3, 4, 5, 5)
    assert gate(x) is x
    gate.select(torch.tensor([True, False, False, True]))
    assert torch.equal(gate(x), x[:, :, [0, 3]])
    assert torch.equal(gate(x[0]), x[0][:, [0, 3]])
    other = Gate(4)
    other.load_state_dict(gate.state_dict())
    assert torch.equal(other(x), gate(x))
    assert list(gate.state_dict()) == ["keep"]


# ---- losses --------------------------------------------------------------------------------------------------------


def test_losses_worked_by_hand():
    # T = 2, N = 1, two classes, target 0. CE of a difference d between the two logits: log(1 + e^-d).
    # Step 1: d = 0, CE = log 2 = 0.693147. Step 2: d = 2, CE = log(1 + e^-2) = 0.126928.
    # Mean of the logits: d = 1, CE = log(1 + e^-1) = 0.313262; over T = 2: 0.156631. Mean of the CEs: 0.410038.
    logits = torch.tensor([[[0.0, 0.0]], [[2.0, 0.0]]])
    target = torch.tensor([0])
    assert readout.mean_loss(logits, target).item() == pytest.approx(0.313262, abs=1e-6)
    assert readout.paper_unstructured_loss(logits, target).item() == pytest.approx(0.156631, abs=1e-6)
    assert readout.per_step_loss(logits, target).item() == pytest.approx(0.410038, abs=1e-6)


def test_per_step_loss_pairs_each_image_with_its_own_target():
    torch.manual_seed(0)
    logits, target = torch.randn(3, 4, 5), torch.tensor([0, 4, 2, 1])
    wanted = sum(F.cross_entropy(step, target) for step in logits) / 3
    torch.testing.assert_close(readout.per_step_loss(logits, target), wanted)


def test_decision_sums_over_time():
    # Class 1 leads at two steps by 1, class 0 at one step by 3: the sum decides for 0.
    logits = torch.tensor([[[0.0, 1.0]], [[0.0, 1.0]], [[3.0, 0.0]]])
    assert readout.predict(logits).tolist() == [0]


def test_readout_of_each_network():
    wanted = dict.fromkeys(SMALL, "mean") | {
        "vgg16-weights": "mean-over-T",
        "resnet19-weights": "mean-over-T",
        "resnet19-weights-authors": "mean-over-T",
        "vgg16-channels": "per-step",
        "resnet19-channels": "per-step",
        "recurrent": "mean",
    }
    assert {name: outline(name).readout for name in zoo.names()} == wanted
    assert set(readout.LOSSES) == set(wanted.values())


# ---- every network runs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAPER + SMALL)
def test_shapes_for_any_length_and_batch(name):
    size = 32 if name.startswith("vgg") else 8
    model = fresh(name, classes=7, T=4, size=size).eval()
    c, h, w = model.image_shape
    with torch.no_grad():
        assert model(torch.rand(2, c, h, w)).shape == (4, 2, 7)
        for T, n in ((1, 1), (5, 2)):
            functional.reset_net(model)
            assert model(torch.rand(T, n, c, h, w)).shape == (T, n, 7)


@pytest.mark.parametrize("name", PAPER + SMALL)
def test_one_training_step_reaches_every_weight(name):
    size = {"vgg16": 32, "resnet19": 16}.get(name.split("-")[0], 8)
    model = fresh(name, T=2, size=size)
    logits = model(torch.randn(4, *model.image_shape))
    loss = readout.LOSSES[model.readout](logits, torch.tensor([3, 1, 0, 9]))
    assert torch.isfinite(loss)
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert all(p.grad.abs().sum() > 0 for p in model.parameters() if p.dim() > 1)


@pytest.mark.parametrize("name", ["resnet19-channels", "fashion-conv", "mlp"])
def test_step_by_step_equals_all_steps_at_once(name):
    model = fresh(name, T=3, size=8).eval()
    x = torch.rand(3, 2, *model.image_shape)
    with torch.no_grad():
        at_once = model(x)
        functional.reset_net(model)
        functional.set_step_mode(model, "s")
        torch.testing.assert_close(torch.stack([model(x_t) for x_t in x]), at_once)


@pytest.mark.parametrize("steps", [(), (2,)])
def test_spiking_attention_equals_its_formula_head_by_head(steps: tuple[int, ...]):
    torch.manual_seed(0)
    attention = SpikingAttention(width=6, heads=2).eval()
    functional.set_step_mode(attention, "m" if steps else "s")
    for module in attention.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
    x, given = torch.randn(*steps, 2, 6, 2, 3), {}
    for name in ("q", "k", "v"):
        getattr(attention, name).register_forward_hook(lambda _, __, y, name=name: given.update({name: y}))
    attention.mixed.register_forward_pre_hook(lambda _, args: given.update(mixed=args[0]))
    with torch.no_grad():
        attention(x)
    q, k, v = (given[name].flatten(-2) for name in ("q", "k", "v"))  # [..., C, tokens], 0 and 1
    assert all(0 < part.mean() < 1 for part in (q, k, v))
    wanted = torch.zeros_like(q)
    for head in (slice(0, 3), slice(3, 6)):
        shared = torch.einsum("...ci,...cj->...ij", q[..., head, :], k[..., head, :])  # how many channels both fire in
        wanted[..., head, :] = torch.einsum("...ij,...cj->...ci", shared, v[..., head, :]) / 8
    torch.testing.assert_close(given["mixed"].flatten(-2), wanted, atol=0, rtol=0)


# ---- mistakes ------------------------------------------------------------------------------------------------------


def test_unknown_name_offers_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'vgg16-weights'"):
        zoo.build("vgg16-weight")
    assert zoo.names() == sorted([*PAPER, *SMALL, "recurrent"])


@pytest.mark.parametrize(
    "settings", [{"classes": 0}, {"T": 0}, {"T": 2.0}, {"size": 31}, {"in_channels": 0}, {"classes": True}]
)
def test_impossible_settings_are_refused(settings):
    (what,) = settings
    with pytest.raises(InvalidValue, match=f"{what} of vgg16-weights must be a whole number"):
        zoo.build("vgg16-weights", **settings)


def test_images_of_another_size_are_refused():
    model = fresh("digits-conv", size=8)
    with pytest.raises(InvalidValue, match=r"takes \[N, 1, 8, 8\] or \[T, N, 1, 8, 8\], got \[2, 1, 28, 28\]"):
        model(torch.rand(2, 1, 28, 28))
    with pytest.raises(InvalidValue, match=r"got \[1, 8, 8\]"):
        model(torch.rand(1, 8, 8))


def test_a_recurrent_network_does_not_run_single_steps():
    model = fresh("recurrent", size=2, in_channels=3)
    functional.set_step_mode(model, "s")
    with pytest.raises(InvalidValue, match=r"'recurrent' takes sequences .*not 's'; functional\.set_step_mode\(net"):
        model(torch.rand(2, 3, 2, 2))
    functional.set_step_mode(model, "m")
    assert model(torch.rand(2, 3, 2, 2)).shape[1] == 2


@pytest.mark.parametrize("name", ["elsewhere", None])
def test_a_missing_package_that_is_not_spikingjelly_is_told_by_its_own_error(name, monkeypatch):
    def builder(spec):
        raise ModuleNotFoundError("no elsewhere", name=name)

    monkeypatch.setitem(registry._ENTRIES, "mine", registry.Entry(builder, channels=1, min_size=1))
    with pytest.raises(ModuleNotFoundError, match=r"^no elsewhere$"):
        zoo.build("mine")


def test_missing_spikingjelly_names_the_install_line(monkeypatch):
    import builtins
    import sys

    from spikeprune.core.errors import MissingDependency

    real = builtins.__import__

    def without_spikingjelly(name, *args, **kwargs):
        if name.split(".")[0] == "spikingjelly":
            raise ModuleNotFoundError("no spikingjelly", name="spikingjelly")
        return real(name, *args, **kwargs)

    for module in ("spikeprune.zoo.small", "spikeprune.zoo.net"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(builtins, "__import__", without_spikingjelly)
    with pytest.raises(MissingDependency, match=r"pip install 'spikeprune\[demo\]'"):
        zoo.build("digits-conv")
    assert "digits-conv" in zoo.names()
