"""Counting, worked by hand: fan-out, operations, energy, size, and `count` on networks small enough to follow."""

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn

from spikeprune import zoo
from spikeprune.core.errors import InvalidValue, MissingEvidence, UnknownName
from spikeprune.count import formulas
from spikeprune.count.counts import count

# ---- functions of tensors ------------------------------------------------------------------------------------------


def test_fan_out_of_a_padded_conv_worked_by_hand():
    # 3x3 kernel, padding 1, on a 3x3 map: a corner is seen by 2x2 outputs, an edge by 2x3, the centre by all 9.
    conv = nn.Conv2d(1, 1, 3, padding=1)
    ones = torch.ones(1, 1, 3, 3)
    uses = formulas.fan_out(lambda x: conv._conv_forward(x, ones, None), (1, 3, 3), ones.device)
    assert uses.tolist() == [[[4, 6, 4], [6, 9, 6], [4, 6, 4]]]
    assert uses.dtype == torch.int64
    # Only the kernel's centre alive: every input is used once.
    centre = torch.zeros(1, 1, 3, 3)
    centre[0, 0, 1, 1] = 1
    uses = formulas.fan_out(lambda x: conv._conv_forward(x, centre, None), (1, 3, 3), ones.device)
    assert uses.tolist() == [[[1, 1, 1]] * 3]


def test_fan_out_of_a_linear_layer_worked_by_hand():
    alive = torch.tensor([[True, False, True], [True, False, False]])
    assert formulas.linear_fan_out(alive).tolist() == [2, 0, 1]


def test_operations_pair_non_zero_inputs_with_weights():
    # Rows (1, 0, 0.5) and (0, 3, 1); inputs 0, 1, 2 have 2, 0 and 1 weights: 2 + 1, and 0 + 1.
    x = torch.tensor([[1.0, 0.0, 0.5], [0.0, 3.0, 1.0]])
    assert formulas.operations(x, torch.tensor([2, 0, 1])) == 4


def test_operations_stay_exact_beyond_float_precision():
    # 2^24 + 1 is the first whole number that float32 cannot hold.
    assert formulas.operations(torch.ones(1, 2), torch.tensor([2**24, 1])) == 2**24 + 1


@pytest.mark.parametrize(
    ("values", "spiking"), [([0.0, 1.0], True), ([-1.0, 0.0], True), ([0.0, 2.0], False), ([0.25, 1.0], False)]
)
def test_spikes_are_minus_one_zero_or_one(values, spiking):
    assert formulas.is_spiking(torch.tensor(values)) == spiking


def test_energy_worked_by_hand():
    # 1,000 * 0.9 + 10 * 4.6 = 946 pJ
    assert formulas.energy_pj(1000, 10) == pytest.approx(946)


def test_stored_bytes_worked_by_hand():
    # 9 float32 values: 36 bytes; or 2 bytes of mask and 3 values of 4 bytes: 14. As float16: 18, and 2 + 6 = 8.
    weight, alive = torch.zeros(3, 3), torch.eye(3, dtype=torch.bool)
    assert formulas.stored_bytes(weight) == 36
    assert formulas.stored_bytes(weight, alive) == 14
    assert formulas.stored_bytes(weight.half()) == 18
    assert formulas.stored_bytes(weight.half(), alive) == 8


# ---- a network worked by hand --------------------------------------------------------------------------------------


class TwoLayers(nn.Module):
    """Linear 3 -> 2, IF neurons, Linear 2 -> 1; step by step over [T, N, 3] unless `multi`."""

    def __init__(self, multi: bool = False):
        super().__init__()
        self.first = layer.Linear(3, 2, bias=True)
        self.spike = neuron.IFNode(surrogate_function=surrogate.ATan())
        self.second = layer.Linear(2, 1, bias=False)
        self.multi = multi
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[1.0, 0.0, 0.0], [0.25, 0.5, 0.0]]))
            self.first.bias.zero_()
            self.second.weight.copy_(torch.tensor([[2.0, 0.0]]))
        functional.set_step_mode(self, "m" if multi else "s")

    def forward(self, x: Tensor) -> Tensor:
        if self.multi:
            return self.second(self.spike(self.first(x)))
        return torch.stack([self.second(self.spike(self.first(x_t))) for x_t in x])


def spikes_in() -> Tensor:
    """Two samples over two time steps."""
    return torch.tensor([[[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]])


@pytest.mark.parametrize("multi", [False, True])
def test_a_network_worked_by_hand(multi):
    # First layer: 3 non-zero inputs at t = 1 and 3 at t = 2, fan-out 2 each: 12 accumulates for 2 samples, 6 each.
    # Alive are w00, w10, w11: inputs 0, 1, 2 meet 2, 1 and 0 weights.
    #   t = 1: A has inputs 0, 1: 2 + 1; B has input 2: 0. t = 2: A has 0, 2: 2 + 0; B has 1: 1. Sum 6: 3 each.
    # Potentials. A: t = 1 (1, 0.75): neuron 0 fires. t = 2: (1, 0.75 + 0.25 = 1): both fire.
    #             B: t = 1 (0, 0). t = 2: (0, 0.5). No spike. So 3 spikes of 2 samples x 2 steps x 2 neurons: 3/8.
    # Second layer: 3 spikes, fan-out 1: 3 accumulates, 1.5 each; only neuron 0's weight is alive: 2, 1 each.
    model = TwoLayers(multi)
    c = count(model, [spikes_in()])
    assert c.samples == 2
    assert (c.layers["first"].dense.acs, c.layers["first"].pruned.acs) == (6, 3)
    assert (c.layers["second"].dense.acs, c.layers["second"].pruned.acs) == (1.5, 1)
    assert (c.dense.synops, c.pruned.synops) == (7.5, 4)
    assert c.dense.mac_ops == c.pruned.mac_ops == 0
    assert c.firing_rates == {"spike": 3 / 8}
    assert c.dense.firing_rate == c.pruned.firing_rate == 3 / 8
    # As if all inputs were active: 2 steps x (6 + 2) weights; alive 3 + 1.
    assert (c.dense.macs, c.pruned.macs) == (16, 8)
    assert c.dense.energy_pj == pytest.approx(0.9 * 7.5)
    # 6 + 2 biases + 2 weights, four bytes each; or one byte of mask for either weight and 4 values, and 2 biases.
    assert (c.dense.parameters, c.pruned.parameters) == (10, 10)
    assert (c.dense.alive, c.pruned.alive) == (8, 4)
    assert (c.dense.bytes, c.pruned.bytes) == (40, 1 + 1 + 4 * 4 + 2 * 4)
    # A layer's rate is that of its inputs: 6 of 2 x 2 x 3.
    assert c.layers["first"].dense.firing_rate == 0.5
    assert c.layers["second"].dense.firing_rate == 3 / 8


def test_other_inputs_are_multiplied_at_their_non_zero_positions():
    x = spikes_in()
    x[0, 0, 0] = 1.5
    c = count(TwoLayers(multi=True), [x])
    assert c.layers["first"].dense.acs == 0
    assert (c.layers["first"].dense.mac_ops, c.layers["first"].pruned.mac_ops) == (6, 3)
    assert c.layers["second"].dense.mac_ops == 0
    both = c.layers["first"].dense.energy_pj + c.layers["second"].dense.energy_pj
    assert c.dense.energy_pj == pytest.approx(both)
    assert c.layers["first"].dense.energy_pj == pytest.approx(4.6 * 6)


def test_masks_decide_where_they_are_given():
    # The mask keeps w02, which is 0 (a weight just regrown), and cuts w00: inputs meet 1, 1 and 1 weights.
    # 6 active inputs: 6 operations, 3 each. The second layer has no mask: nothing in it is pruned.
    masks = {"first.weight": torch.tensor([[False, False, True], [True, True, False]])}
    c = count(TwoLayers(), [spikes_in()], masks)
    assert c.layers["first"].pruned.acs == 3
    assert c.layers["second"].pruned.acs == c.layers["second"].dense.acs
    assert (c.dense.alive, c.pruned.alive) == (6, 3)
    assert c.pruned.bytes == 1 + 3 * 4 + 2 * 4 + 2 * 4
    # With a mask for a bias, as for pruned channels: it saves bytes, but it is no weight.
    masks["first.bias"] = torch.tensor([True, False])
    c = count(TwoLayers(), [spikes_in()], masks)
    assert c.pruned.alive == 3
    assert c.pruned.bytes == 1 + 3 * 4 + 1 + 4 + 2 * 4


def test_nothing_pruned_costs_the_same_on_both_sides():
    model = TwoLayers()
    nn.init.ones_(model.first.weight)
    nn.init.ones_(model.second.weight)
    c = count(model, [spikes_in()])
    assert c.dense == c.pruned
    assert all(sides.dense == sides.pruned for sides in c.layers.values())


# ---- convolutions of every kind ------------------------------------------------------------------------------------


class OneLayer(nn.Module):
    def __init__(self, module: nn.Module):
        super().__init__()
        self.layer = module

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv1d(2, 3, 3, padding=1, stride=2),
        nn.Conv2d(2, 4, 3, padding=(2, 0), dilation=2),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect", stride=2),
        nn.Conv2d(2, 3, (5, 3), padding="same"),
        nn.Conv3d(2, 2, 2, stride=(1, 2, 1)),
        nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1),
    ],
    ids=repr,
)
@pytest.mark.parametrize("spiking", [True, False])
def test_convolutions_equal_the_same_convolution_of_ones(module, spiking):
    torch.manual_seed(0)
    space = len(module.kernel_size)
    x = (torch.rand(5, module.in_channels, *[6] * space) < 0.4).float()
    if not spiking:
        x = x * torch.randn_like(x)
    with torch.no_grad():
        module.weight.mul_(torch.rand_like(module.weight) < 0.3)
    # The reference: the layer itself in float64, its weights and inputs replaced by ones wherever they are not 0.
    dense, pruned = (type(module)(**settings(module)).double() for _ in range(2))
    with torch.no_grad():
        nn.init.ones_(dense.weight)
        pruned.weight.copy_(module.weight != 0)
        wanted = [float(reference((x != 0).double()).sum()) / len(x) for reference in (dense, pruned)]
        outputs = dense(torch.ones_like(x).double())
    c = count(OneLayer(module), [x])
    found = c.layers["layer"]
    part = "acs" if spiking else "mac_ops"
    assert [getattr(found.dense, part), getattr(found.pruned, part)] == wanted
    assert found.dense.synops == getattr(found.dense, part)
    # As if every input were active: each kernel is laid on once per output position (transposed: per input position).
    at = x if isinstance(module, nn.ConvTranspose2d) else outputs
    positions = at[0, 0].numel()
    assert found.dense.macs == positions * module.weight.numel()
    assert found.pruned.macs == positions * int((module.weight != 0).sum())


def settings(module: nn.Module) -> dict[str, object]:
    names = ["in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"]
    names += ["output_padding"] if isinstance(module, nn.ConvTranspose2d) else []
    return {name: getattr(module, name) for name in names} | {"bias": False}


def test_multi_step_conv_takes_time_and_batch_as_frames():
    torch.manual_seed(0)
    x = (torch.rand(3, 2, 1, 4, 4) < 0.5).float()
    conv = layer.Conv2d(1, 2, 3, padding=1, bias=False, step_mode="m")
    model = nn.Sequential(conv, neuron.IFNode(step_mode="m"))
    together = count(model, [x])
    conv.step_mode = "s"
    apart = count(OneLayer(conv), [x.flatten(0, 1)])
    assert together.dense.synops == 3 * apart.dense.synops  # 2 samples of 3 steps, against 6 samples of one
    assert together.samples == 2


# ---- the zoo -------------------------------------------------------------------------------------------------------


def test_what_runs_once_per_image_counts_once():
    # digits-conv at 8x8, T = 3: 64 positions x 9 x 1 x 32 once, then 3 times 64 x 9 x 32 x 64 and 64 x 16 x 10.
    model = zoo.build("digits-conv", T=3, size=8)
    c = count(model, [torch.rand(2, 1, 8, 8)])
    assert c.layers["stem.0"].dense.macs == 64 * 9 * 32
    assert c.dense.macs == 64 * 9 * 32 + 3 * (64 * 9 * 32 * 64 + 64 * 16 * 10)
    # Pixels are multiplied, spikes are added.
    assert c.layers["stem.0"].dense.acs == 0
    assert c.layers["stem.0"].dense.mac_ops > 0
    assert c.dense.mac_ops == c.layers["stem.0"].dense.mac_ops
    # The same image as a sequence is not still: the stem runs 3 times.
    sequence = count(model, [torch.rand(3, 2, 1, 8, 8)])
    assert sequence.layers["stem.0"].dense.macs == 3 * 64 * 9 * 32
    assert sequence.samples == 2


def test_average_pooling_makes_multiplications_only_where_it_left_something():
    model = nn.Sequential(
        neuron.IFNode(step_mode="m"),
        layer.AvgPool2d(2, step_mode="m"),
        layer.Conv2d(1, 1, 1, bias=False, step_mode="m"),
    )
    # One time step, one sample, 4x4; two of four spikes share a window, so two pooled values are not 0.
    spikes = torch.zeros(1, 1, 1, 4, 4)
    spikes[0, 0, 0, 0, 0] = spikes[0, 0, 0, 1, 1] = spikes[0, 0, 0, 3, 3] = 1
    c = count(model, [spikes])
    assert (c.dense.acs, c.dense.mac_ops) == (0, 2)
    assert c.dense.macs == 4


# ---- what count leaves behind --------------------------------------------------------------------------------------


def test_two_batches_equal_one():
    torch.manual_seed(0)
    model = zoo.build("fashion-conv", T=2, size=8)
    x = torch.rand(6, 1, 8, 8)
    once = count(model, [x])
    twice = count(model, ((part, torch.zeros(len(part))) for part in (x[:2], x[2:])))
    assert once == twice
    assert once.samples == 6
    assert count(model, x) == once  # a lone tensor is one batch


def test_count_leaves_the_model_as_it_was():
    model = nn.Sequential(
        layer.Conv2d(1, 2, 3, padding=1), layer.BatchNorm2d(2), neuron.IFNode(), nn.Flatten(), layer.Linear(32, 2)
    )
    model.train()
    model[1].eval()  # a frozen normalisation
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.rand(3, 1, 4, 4)
    random = torch.random.get_rng_state()
    with torch.no_grad():
        model(torch.ones(2, 1, 4, 4))  # leaves a membrane potential
    count(model, [x])
    assert [m.training for m in model] == [True, False, True, True, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert not isinstance(model[2].v, Tensor)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_hooks_and_modes_are_put_back_when_the_forward_fails():
    model = TwoLayers().train()
    with pytest.raises(RuntimeError):
        count(model, [spikes_in(), torch.rand(2, 2, 7)])
    assert model.training
    assert not any(m._forward_hooks for m in model.modules())
    assert not isinstance(model.spike.v, Tensor)


def test_each_batch_starts_from_rest():
    # Potentials left over would make the second batch fire more.
    model = TwoLayers()
    assert count(model, [spikes_in(), spikes_in()]).firing_rates == count(model, [spikes_in()]).firing_rates


def test_counting_runs_inside_inference_mode_and_on_a_compiled_model():
    plain = count(TwoLayers(), [spikes_in()])
    with torch.inference_mode():
        assert count(TwoLayers(), [spikes_in()]) == plain
    model = TwoLayers()
    assert count(torch.compile(model, backend="eager"), [spikes_in()]) == plain


def test_a_network_without_neurons_is_counted_too():
    c = count(nn.Sequential(nn.Linear(3, 2)), [torch.ones(5, 3)])
    assert (c.samples, c.dense.acs, c.dense.firing_rate, c.firing_rates) == (5, 6, 0.0, {})


# ---- mistakes ------------------------------------------------------------------------------------------------------


def test_masks_of_another_network_are_refused():
    model = TwoLayers()
    with pytest.raises(UnknownName, match=r"no parameter named 'first.weights'; did you mean 'first.weight'\?"):
        count(model, [spikes_in()], {"first.weights": torch.ones(2, 3, dtype=torch.bool)})
    with pytest.raises(InvalidValue, match=r"mask of 'first.weight' has shape \(3, 2\), the parameter \(2, 3\)"):
        count(model, [spikes_in()], {"first.weight": torch.ones(3, 2, dtype=torch.bool)})


def test_no_data_is_refused():
    with pytest.raises(MissingEvidence, match="no batch to count on"):
        count(TwoLayers(), [])


class Merges(nn.Module):
    """Hands its neurons four rows per sample."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.spike = neuron.IFNode()

    def forward(self, x: Tensor) -> Tensor:
        return self.spike(self.fc(x.reshape(-1, 2))).reshape(len(x), -1)


def test_a_batch_size_that_cannot_be_told_is_asked_for():
    x = torch.rand(3, 8)
    with pytest.raises(InvalidValue, match=r"the input has \[3, 8\], the neurons saw \[12\]; give \(input, target\)"):
        count(Merges(), [x])
    assert count(Merges(), [(x, torch.zeros(3))]).samples == 3
