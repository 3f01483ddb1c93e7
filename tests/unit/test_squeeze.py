"""`sp.squeeze` as a user calls it: what it changes, what it leaves alone, and what it refuses."""

import copy
import warnings

import pytest
import torch
from spikingjelly.activation_based import functional, layer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import spikeprune as sp
from nets import CLASSES, SIZE, N, T, batch, conv_net, lif, mlp, weights_of
from spikeprune.core.errors import InvalidValue, UnknownName
from spikeprune.squeeze.solve import LeastSquares, Solver, solve

TOTAL = 768  # prunable weights of conv_net


@pytest.fixture(autouse=True)
def _few_rows_are_fine():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*so the ridge decides")
        yield


def batches(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    return [batch(i) for i in range(count)]


def small_net(seed: int = 0) -> nn.Sequential:
    """conv_net in eval mode with statistics of its own and currents large enough for spikes."""
    net = conv_net(seed=seed)
    norms = (net[1], net[5])
    with torch.no_grad():
        for m in norms:
            m.weight.mul_(2.0)
            m.bias.add_(0.5)
            m.momentum = None  # the mean over all batches
        net.train()
        for x, _ in batches(3):
            net(x)
            functional.reset_net(net)
        for m in norms:
            m.momentum = 0.1
    return net.eval()


def louder(net: nn.Module, factor: float = 4.0) -> nn.Module:
    """The weights times a factor, so that every neuron fires."""
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(factor)
    return net


def same(a: nn.Module, b: dict[str, Tensor]) -> bool:
    return all(torch.equal(v, b[n]) for n, v in a.state_dict().items())


def test_it_prunes_in_place_to_the_weight():
    net = small_net()
    keys, out = list(net.state_dict()), sp.squeeze(net, batches(), 0.8)
    assert list(net.state_dict()) == keys
    kept = int(TOTAL * (1 - 0.8) + 1e-6)
    assert out.masks.alive == kept == sum(int((net.get_parameter(n) != 0).sum()) for n in out.masks)
    assert out.sparsity == 1 - kept / TOTAL
    assert set(out.masks) == {"0.weight", "4.weight", "8.weight"}
    for name, mask in out.masks.items():
        assert bool((net.get_parameter(name)[~mask] == 0).all())
    assert set(out.agreement) == {"2", "6"}
    assert all(0.5 < a <= 1 for a in out.agreement.values())
    assert not any(m.training for m in net.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert out.seconds > 0
    assert out.images == 3 * N
    text = str(out.table())
    assert "4.weight" in text
    assert "time: " in text
    assert "solving" in repr(out)


def test_solved_weights_reproduce_every_layer_better_than_cut_ones():
    masks = sp.prune(small_net(), "magnitude", 0.6)
    only_cut = sp.squeeze(small_net(), batches(), masks=masks, solve=False, weighting="none").table()
    solved = sp.squeeze(small_net(), batches(), masks=masks, weighting="none").table()
    for a, b in zip(solved, only_cut, strict=True):
        assert a.error < b.error
    assert solved[0].error < 0.5 * only_cut[0].error  # pixels are all positive, so one makes up for another


def test_a_second_call_and_sparsity_zero_change_nothing():
    net = small_net()
    before = weights_of(net)
    out = sp.squeeze(net, batches(), 0.0)
    assert same(net, before)
    assert out.sparsity == 0
    assert set(out.agreement.values()) == {1.0}
    sp.squeeze(net, batches(), 0.9)
    once = weights_of(net)
    again = sp.squeeze(net, batches(), 0.9)
    assert same(net, once)
    assert again.sparsity == pytest.approx(0.9, abs=1 / TOTAL)
    sp.squeeze(net, batches(), 0.5)  # fewer zeros than there are: nothing to do
    assert same(net, once)


def test_squeezing_further_revives_nothing():
    net = small_net()
    first = sp.squeeze(net, batches(), 0.7)
    second = sp.squeeze(net, batches(), 0.9)
    assert all(bool((second.masks[n] <= first.masks[n]).all()) for n in first.masks)
    assert second.masks.alive == int(TOTAL * 0.1 + 1e-6)


def test_same_seed_same_result_and_the_seed_matters():
    results = []
    for seed in (0, 0, 1):
        net = small_net()
        sp.squeeze(net, batches(), 0.8, rows=100, seed=seed)
        results.append(weights_of(net))
    assert all(torch.equal(results[0][n], results[1][n]) for n in results[0])
    assert any(not torch.equal(results[0][n], results[2][n]) for n in results[0])


def test_targets_modes_and_random_numbers_are_left_alone():
    one, two = small_net().train(), small_net().train()
    one[1].eval()  # a frozen norm among training modules
    modes = [m.training for m in one.modules()]
    state = torch.random.get_rng_state()
    sp.squeeze(one, batches(), 0.8)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [m.training for m in one.modules()] == modes
    sp.squeeze(two, [x for x, _ in batches()], 0.8)
    assert all(torch.equal(v, two.state_dict()[n]) for n, v in one.state_dict().items())


def test_single_and_multi_step_agree():
    multi = small_net()
    single = small_net()
    functional.set_step_mode(single, "s")

    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = single

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.net(step) for step in x])

    loop = Loop().eval()
    a = sp.squeeze(multi, batches(), 0.8, rows=10_000, statistics=False)
    b = sp.squeeze(loop, batches(), 0.8, rows=10_000, statistics=False)
    for name, mask in a.masks.items():
        assert torch.equal(mask, b.masks[f"net.{name}"])
        torch.testing.assert_close(multi.get_parameter(name), single.get_parameter(name), atol=1e-4, rtol=1e-3)


def test_statistics_are_those_of_the_squeezed_network():
    net = small_net()
    sp.squeeze(net, batches(), 0.9)
    tracked = int(net[1].num_batches_tracked)
    current = torch.cat([net[0](x) for x, _ in batches()]).movedim(2, 0).flatten(1)
    torch.testing.assert_close(net[1].running_mean, current.mean(1))
    assert tracked == int(small_net()[1].num_batches_tracked)
    assert net[1].momentum == 0.1
    frozen = small_net()
    before = weights_of(frozen)
    sp.squeeze(frozen, batches(), 0.9, statistics=False)
    assert all(torch.equal(v, before[n]) for n, v in frozen.state_dict().items() if "running" in n)


def test_dropout_stays_off_while_statistics_are_measured():
    torch.manual_seed(0)
    net = nn.Sequential(layer.Linear(12, 8), layer.BatchNorm1d(8), lif(), layer.Dropout(0.5), layer.Linear(8, 4))
    net.append(layer.BatchNorm1d(4))
    functional.set_step_mode(net, "m")
    x = torch.rand(T, 16, 12) * 3
    sp.squeeze(net, [x], 0.5)
    with torch.no_grad():
        net.eval()
        current = net[4](net[3](net[2](net[1](net[0](x)))))
    torch.testing.assert_close(net[5].running_mean, current.flatten(0, 1).mean(0))


def test_the_table_tells_the_error_of_the_layer_outputs():
    net = small_net()
    before = weights_of(net)
    out = sp.squeeze(net, batches(), 0.8, weighting="none", rows=10_000, statistics=False)
    inputs = torch.cat([x for x, _ in batches()]).flatten(0, 1)
    want = torch.nn.functional.conv2d(inputs, before["0.weight"], padding=1)
    got = torch.nn.functional.conv2d(inputs, net[0].weight, padding=1)
    error = float(((got - want).square().sum() / want.square().sum()).detach())
    assert error > 1e-3
    assert out.table()[0].error == pytest.approx(error, rel=1e-3)


def test_tolerance_finds_the_highest_sparsity():
    def agreement(out):
        return sum(out.agreement.values()) / len(out.agreement)

    net = small_net()
    out = sp.squeeze(net, [x for x, _ in batches()], tolerance=0.1, rounds=2)
    assert 0.2 < out.sparsity < 0.99
    assert agreement(out) >= 0.9
    other = small_net()
    denser = 1 - 2 ** (-1 / 8)  # two steps further on, the agreement is too low
    beyond = sp.squeeze(other, [x for x, _ in batches()], 1 - out.masks.density * (1 - denser), rounds=2)
    assert agreement(beyond) < 0.9
    straight = small_net()
    sp.squeeze(straight, [x for x, _ in batches()], out.sparsity, rounds=2)
    assert all(torch.equal(v, net.state_dict()[n]) for n, v in straight.state_dict().items())


def test_tolerance_with_labels_is_about_accuracy():
    net = small_net()
    data = []
    for x, _ in batches():
        with torch.no_grad():
            data.append((x, net(x).mean(0).argmax(1)))  # the dense network is always right
        functional.reset_net(net)
    exact = copy.deepcopy(net)
    out = sp.squeeze(exact, data, tolerance=0.0, rounds=2)
    with torch.no_grad():
        right = 0
        for x, y in data:
            right += int((exact(x).mean(0).argmax(1) == y).sum())
            functional.reset_net(exact)
    assert right == 3 * N
    loose = sp.squeeze(net, data, tolerance=0.9, rounds=2)
    assert loose.sparsity > out.sparsity


def test_given_masks_are_solved_for():
    net = small_net()
    masks = sp.prune(copy.deepcopy(net), "magnitude", 0.8)
    out = sp.squeeze(net, batches(), masks=masks)
    assert all(torch.equal(out.masks[n], masks[n]) for n in masks)
    for name, mask in masks.items():
        assert bool((net.get_parameter(name)[~mask] == 0).all())
    assert not torch.equal(net[4].weight, small_net()[4].weight * masks["4.weight"])  # solved, not only cut
    once = weights_of(net)
    sp.squeeze(net, batches(), masks=masks)
    assert same(net, once)


def test_cut_channels_are_made_up_for_and_shrink():
    net = small_net()
    masks = sp.prune(copy.deepcopy(net), "magnitude", 0.4, data=batches(1), pattern="channel")
    out = sp.squeeze(net, batches(), masks=masks)
    assert set(out.masks) == set(masks)
    for name, mask in masks.items():
        assert bool((net.get_parameter(name)[~mask] == 0).all())
    small, _ = sp.shrink(net, out.masks, batch(0)[0])
    with torch.no_grad():
        want = net(batch(0)[0])
        functional.reset_net(net)
        torch.testing.assert_close(small(batch(0)[0]), want)
    assert sum(p.numel() for p in small.parameters()) < 0.8 * sum(p.numel() for p in net.parameters())


def test_whole_channels_are_cut_made_up_for_and_shrunk():
    net = small_net()
    only_cut, seen = copy.deepcopy(net), list[Tensor]()
    hook = net[8].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for x, _ in batches():
        net(x)
        functional.reset_net(net)
    hook.remove()
    fed = torch.cat(seen, 1).flatten(0, 1).any(0)  # inputs of the last layer that the dense network ever feeds
    out = sp.squeeze(net, iter(batches()), 0.4, pattern="channel")
    want = sp.prune(only_cut, "weight-norm", 0.4, data=batches(1), pattern="channel")
    dead = ~want["4.weight"].flatten(1).any(1)
    assert bool(dead.any())
    assert torch.equal(~out.masks["4.weight"].flatten(1).any(1), dead)
    columns = (out.masks["8.weight"] & fed).view(-1, 6, len(fed) // 6)
    assert not bool(columns[:, dead].any())  # what reads a dead channel is cut too, so the others make up for it
    assert bool(columns[:, ~dead].any())
    x = batch(0)[0]
    small, _ = sp.shrink(net, out.masks, x)
    assert sum(p.numel() for p in small.parameters()) < 0.8 * sum(p.numel() for p in net.parameters())
    with torch.no_grad():
        found = net(x)
        functional.reset_net(net)
        torch.testing.assert_close(small(x), found)
    once = weights_of(net)
    sp.squeeze(net, batches(), 0.4, pattern="channel")
    assert same(net, once)
    sp.squeeze(net, batches(), 0.0, pattern="channel")
    assert same(net, once)


@pytest.mark.parametrize("allocate", ["lamp", "global", "energy", "neuron", "uniform", "erk"])
@pytest.mark.parametrize("saliency", ["critical", "energy", "magnitude", "obs", "random", "wanda"])
def test_every_score_and_allocation_meets_the_count(saliency, allocate):
    net = small_net()
    out = sp.squeeze(net, batches(1), 0.85, saliency=saliency, allocate=allocate, rounds=2, floor=3)
    assert out.masks.alive == int(TOTAL * 0.15 + 1e-6)
    assert all(int(m.sum()) >= 3 for m in out.masks.values())


def test_equal_shares_per_neuron():
    net = small_net()
    out = sp.squeeze(net, batches(1), 0.75, allocate="neuron", include="4", rounds=1)
    assert out.masks["4.weight"].flatten(1).sum(1).tolist() == [9] * 6


def test_weighting_changes_the_solution_and_none_is_the_plain_one():
    nets = [small_net() for _ in range(3)]
    masks = sp.prune(copy.deepcopy(nets[0]), "magnitude", 0.8)
    sp.squeeze(nets[0], batches(), masks=masks, statistics=False)
    sp.squeeze(nets[1], batches(), masks=masks, statistics=False, weighting="none")
    sp.squeeze(nets[2], batches(), masks=masks, statistics=False, surrogate="sigmoid")
    assert not torch.allclose(nets[0][0].weight, nets[1][0].weight)
    assert not torch.allclose(nets[0][0].weight, nets[2][0].weight)
    # The classifier feeds no neuron, so both solve it plainly.
    torch.testing.assert_close(nets[0][8].weight, nets[1][8].weight)
    only_cut = small_net()
    sp.squeeze(only_cut, batches(), masks=masks, statistics=False, solve=False)
    assert torch.equal(only_cut[4].weight, small_net()[4].weight * masks["4.weight"])


@pytest.mark.parametrize("budget", ["parameters", "macs", "synops"])
def test_budgets_of_cost_are_met(budget):
    net = small_net()
    out = sp.squeeze(net, batches(), 0.6, budget=budget)
    counts = sp.count(small_net(), batches(), masks=out.masks)
    if budget == "parameters":
        fixed = sum(p.numel() for p in net.parameters()) - TOTAL
        assert out.masks.alive + fixed <= 0.4 * (TOTAL + fixed) < out.masks.alive + fixed + 1
    else:
        share = getattr(counts.pruned, budget) / getattr(counts.dense, budget)
        assert 0.35 < share <= 0.4001


def test_n_of_m():
    net = small_net()
    out = sp.squeeze(net, batches(), 0.5, pattern="2:4")
    assert set(out.masks) == {"4.weight", "8.weight"}  # two input channels are not divisible by four
    for mask in out.masks.values():
        assert bool((mask.movedim(1, -1).reshape(-1, 4).sum(1) == 2).all())
    once = weights_of(net)
    sp.squeeze(net, batches(), 0.5, pattern="2:4")
    assert same(net, once)


def test_include_exclude_and_floor():
    net = small_net()
    before = weights_of(net)
    out = sp.squeeze(net, batches(), 0.9, exclude="0", statistics=False, floor=0.2)
    assert torch.equal(net[0].weight, before["0.weight"])
    assert out.masks.alive == int((TOTAL - 72) * 0.1 + 1e-6) == 69
    assert int(out.masks["4.weight"].sum()) > 15


def test_a_loader_is_read_only_as_far_as_needed():
    net = small_net()
    x = torch.cat([b[0] for b in batches(6)], dim=1).transpose(0, 1)  # [24, T, ...]
    taken = []

    def collate(samples):
        taken.append(len(samples))
        return torch.stack([s[0] for s in samples], dim=1), torch.stack([s[1] for s in samples])

    loader = DataLoader(TensorDataset(x, torch.arange(24)), batch_size=5, collate_fn=collate)
    out = sp.squeeze(net, loader, 0.8, images=12)
    assert out.images == 12
    assert taken == [5, 5, 5]  # the third batch is cut after two images
    other = small_net()
    sp.squeeze(other, [x[:5].transpose(0, 1), x[5:10].transpose(0, 1), x[10:12].transpose(0, 1)], 0.8)
    assert same(other, weights_of(net))


def test_one_tensor_is_one_batch_and_its_images_are_found():
    net = small_net()
    x = torch.cat([b[0] for b in batches(6)], dim=1)  # [T, 24, ...]
    assert sp.squeeze(net, x, 0.8, images=10).images == 10


def test_shift_goes_into_the_bias_or_the_running_mean():
    torch.manual_seed(0)
    net = nn.Sequential(layer.Linear(12, 8), lif(), layer.Linear(8, 6, bias=False), layer.BatchNorm1d(6), lif())
    functional.set_step_mode(louder(net), "m")
    net.eval()
    x = torch.rand(T, 32, 12) * 6
    with torch.no_grad():
        want = net[0](x).flatten(0, 1)
    with_shift, without = copy.deepcopy(net), copy.deepcopy(net)
    sp.squeeze(with_shift, [x], 0.8, shift=True, statistics=False, weighting="none", ridge=1e-4)
    sp.squeeze(without, [x], 0.8, statistics=False, weighting="none", ridge=1e-4)
    assert not torch.equal(with_shift[0].bias, net[0].bias)
    assert torch.equal(without[0].bias, net[0].bias)
    assert bool((with_shift[3].running_mean != 0).any())
    error = [(m[0](x).flatten(0, 1) - want).mean(0).abs().max() for m in (with_shift, without)]
    assert error[0] < 0.1 * error[1]  # no mean error is left where a constant may take it


def test_what_stops_it_leaves_the_model_as_it_was(monkeypatch):
    from spikeprune.squeeze import run

    for place, error in (("measure_again", KeyboardInterrupt), ("watch_spikes", RuntimeError)):
        net = small_net().train()
        before = weights_of(net)

        def fail(model, *_, error=error):
            model[1].running_mean.add_(1)
            model[1].momentum = 0.7
            model.eval()
            raise error

        monkeypatch.setattr(run, place, fail)
        with pytest.raises(error):
            sp.squeeze(net, batches(), 0.8)
        monkeypatch.undo()
        assert same(net, before)
        assert net[1].momentum == 0.1
        assert all(m.training for m in net.modules())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_progress_is_shown_on_stderr_only_when_asked_for(capsys):
    sp.squeeze(small_net(), batches(1), 0.8, progress=True)
    assert capsys.readouterr().out == ""
    sp.squeeze(small_net(), batches(1), 0.8)
    assert capsys.readouterr() == ("", "")


# ---- layers out of the ordinary -------------------------------------------------------------------------------


def test_grouped_strided_and_transposed_layers():
    torch.manual_seed(0)
    net = nn.Sequential(
        layer.Conv2d(2, 8, 3, stride=2, padding=1, padding_mode="circular"), lif(),
        layer.Conv2d(8, 8, 3, padding="same", groups=8), lif(),
        layer.Conv2d(8, 6, 3, dilation=2, groups=2), layer.ConvTranspose2d(6, 4, 2), layer.Flatten(),
        layer.Linear(36, CLASSES),
    )  # fmt: skip
    functional.set_step_mode(louder(net), "m")
    x = torch.rand(T, 8, 2, 12, 12) * 4
    before = weights_of(net)
    with pytest.warns(UserWarning, match=r"'5.weight' cannot be solved .* masked only"):
        out = sp.squeeze(net, [x], 0.6)
    assert out.masks.alive == int(out.masks.total * 0.4 + 1e-6)
    notes = {row.name: row.note for row in out.table()}
    assert notes["5.weight"] == "masked only"
    assert notes["2.weight"] == ""
    assert torch.equal(net[5].weight, before["5.weight"] * out.masks["5.weight"])
    assert not torch.equal(net[2].weight, before["2.weight"] * out.masks["2.weight"])


def test_neurons_behind_pooling_are_told_and_a_cat_is_solved_plainly():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = layer.Conv2d(2, 4, 3, padding=1), layer.Conv2d(2, 4, 3, padding=1)
            self.c, self.pool = layer.Conv2d(8, 6, 3, padding=1), layer.AvgPool2d(2)
            self.one, self.two = lif(), lif()

        def forward(self, x: Tensor) -> Tensor:
            spikes = self.one(torch.cat([self.a(x), self.b(x)], dim=2))
            return self.two(self.pool(self.c(spikes)))

    torch.manual_seed(0)
    net = louder(Net())
    functional.set_step_mode(net, "m")
    out = sp.squeeze(net, [torch.rand(T, 8, 2, 8, 8) * 6], 0.7)
    notes = {row.name: row.note for row in out.table()}
    assert notes["c.weight"] == ""
    assert "cat" in notes["a.weight"]


def test_a_layer_that_runs_once_for_all_time_steps():
    class Stem(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.spike, self.head = nn.Conv2d(2, 4, 3, padding=1), lif(), nn.Linear(4 * SIZE * SIZE, CLASSES)
            self.spike.step_mode = "m"

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.spike(self.conv(x).expand(T, -1, -1, -1, -1)).flatten(2)).mean(0)

    net = Stem()
    out = sp.squeeze(net, [torch.rand(16, 2, SIZE, SIZE) * 4], 0.7)
    assert {row.name: row.note for row in out.table()}["conv.weight"] == ""
    assert out.images == 16


def test_snntorch_and_norse():
    import norse.torch as norse
    import snntorch

    class Leaky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(10, 12), nn.Linear(12, 4)
            self.spike = snntorch.Leaky(beta=0.8, init_hidden=True)
            self.out = snntorch.Leaky(beta=0.8)

        def forward(self, x: Tensor) -> Tensor:
            mem, spikes = self.out.init_leaky(), []
            for step in x:
                spike, mem = self.out(self.two(self.spike(self.one(step))), mem)
                spikes.append(spike)
            return torch.stack(spikes)

    class Cells(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(10, 12), nn.Linear(12, 4)
            self.spike, self.out = norse.LIFBoxCell(), norse.LIFBoxCell()

        def forward(self, x: Tensor) -> Tensor:
            a = b = None
            spikes = []
            for step in x:
                z, a = self.spike(10 * self.one(step), a)
                y, b = self.out(10 * self.two(z), b)
                spikes.append(y)
            return torch.stack(spikes)

    for make in (Leaky, Cells):
        torch.manual_seed(0)
        net = make()
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(3)
        before = weights_of(net)
        x = torch.rand(8, 40, 10) * 3
        out = sp.squeeze(net, [x], 0.6)
        assert out.masks.alive == int(168 * 0.4 + 1e-6)
        assert [row.note for row in out.table()] == ["", ""], make
        assert set(out.agreement) == {"spike", "out"}
        once = weights_of(net)
        assert not torch.equal(once["one.weight"], before["one.weight"] * out.masks["one.weight"])
        sp.squeeze(net, [x], 0.6)
        assert all(torch.equal(v, once[n]) for n, v in net.state_dict().items())


class Step(torch.autograd.Function):
    """A spike function as users write it."""

    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return (u > 0).to(u)

    @staticmethod
    def backward(ctx, grad):
        (u,) = ctx.saved_tensors
        return grad / (1 + 10 * u.abs()) ** 2


def test_spike_functions_of_the_users_own():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.head = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(4 * SIZE * SIZE, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            v, outs = 0.0, []
            for step in x:
                v = 0.5 * v + self.conv(step)
                spike = Step.apply(v - 1.0)
                v = v * (1 - spike)
                outs.append(self.head(spike.flatten(1)))
            return torch.stack(outs).mean(0)

    net = louder(Own())
    out = sp.squeeze(net, batches(), 0.7)
    assert {row.name: row.note for row in out.table()}["conv.weight"] == ""
    assert len(out.agreement) == 1
    once = weights_of(net)
    sp.squeeze(net, batches(), 0.7)
    assert same(net, once)
    # The rows weigh by the user's own derivative: without weighting another solution comes out.
    plain = louder(Own())
    sp.squeeze(plain, batches(), masks=out.masks, weighting="none")
    assert not torch.allclose(plain.conv.weight, net.conv.weight)


# ---- what is refused, and what is warned about ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("keywords", "error", "text"),
    [
        ({"sparsity": 1.0}, InvalidValue, "sparsity must be in"),
        ({"sparsity": -0.1}, InvalidValue, "sparsity must be in"),
        ({"sparsity": 95}, InvalidValue, "for 95 % pass 0.95"),
        ({"tolerance": 1.5}, InvalidValue, "tolerance must be in"),
        ({"tolerance": 0.1, "masks": {}}, InvalidValue, "nothing to search"),
        ({"tolerance": 0.1, "pattern": "2:4"}, InvalidValue, "whose sparsity can be any"),
        ({"images": 0}, InvalidValue, "images must be at least 1"),
        ({"rounds": 0}, InvalidValue, "rounds must be a whole number"),
        ({"rows": 0}, InvalidValue, "rows must be a whole number"),
        ({"ridge": -1.0}, InvalidValue, "ridge must be a finite number"),
        ({"eps": float("nan")}, InvalidValue, "eps must be a finite number"),
        ({"weighting": "criticallity"}, InvalidValue, "weighting must be one of"),
        ({"allocate": "lampe"}, UnknownName, "did you mean 'lamp'"),
        ({"saliency": "critcal"}, UnknownName, "did you mean 'critical'"),
        ({"budget": "mac"}, UnknownName, "did you mean 'macs'"),
        ({"surrogate": "atn"}, UnknownName, "did you mean 'atan'"),
        ({"pattern": "2:5:1"}, UnknownName, "no pattern named"),
        ({"pattern": "gate"}, InvalidValue, "got 'gate'"),
        ({"pattern": "2:4", "sparsity": 0.3}, InvalidValue, "keeps at most 2 of 4"),
        ({"pattern": "2:4", "budget": "macs"}, InvalidValue, "fixes what every layer keeps"),
        ({"budget": "macs", "allocate": "erk"}, InvalidValue, "ranks all layers together"),
        ({"budget": "parameters", "sparsity": 0.999}, InvalidValue, "cannot be met"),
        ({"include": "nothing"}, InvalidValue, "0 of 3 layers matched"),
        ({"floor": -1}, InvalidValue, "floor must be 0 or more"),
    ],
)
def test_bad_settings(keywords, error, text):
    net = small_net()
    before = weights_of(net)
    with pytest.raises(error, match=text) as raised:
        sp.squeeze(net, batches(1), **{"sparsity": 0.9, **keywords})
    assert 20 <= len(str(raised.value)) <= 300
    assert same(net, before)


def test_bad_masks():
    with pytest.raises(UnknownName, match=r"no parameter named '4\.wieght'"):
        sp.squeeze(small_net(), batches(1), masks={"4.wieght": torch.ones(6, 4, 3, 3, dtype=torch.bool)})
    with pytest.raises(InvalidValue, match="has shape"):
        sp.squeeze(small_net(), batches(1), masks={"4.weight": torch.ones(6, 4, 3, dtype=torch.bool)})
    with pytest.raises(InvalidValue, match="only 0 and 1"):
        sp.squeeze(small_net(), batches(1), masks={"4.weight": torch.full((6, 4, 3, 3), 0.5)})


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ([], "data holds no batch"),
        ([torch.full((T, N, 2, SIZE, SIZE), float("nan"))], "nan or infinite"),
        ([torch.rand(T, N, 3, SIZE, SIZE)], "cannot run on an input of shape"),
        ([{"image": torch.rand(3)}], "got a batch of type dict"),
        ([("a", 1)], "got a batch of type tuple"),
    ],
)
def test_bad_data(data, text):
    net = small_net()
    before = weights_of(net)
    with pytest.raises(InvalidValue, match=text) as raised:
        sp.squeeze(net, data, 0.9)
    assert 20 <= len(str(raised.value)) <= 300
    assert same(net, before)


def test_a_broken_network_is_refused():
    net = small_net()
    net[4].weight.data[0, 0, 0, 0] = float("inf")
    with pytest.raises(InvalidValue, match="trained, finite network"):
        sp.squeeze(net, batches(1), 0.9)


class By(nn.Module):
    """Multiplies spikes with a number."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


@pytest.mark.filterwarnings("ignore:no spike on the calibration images")
@pytest.mark.parametrize(
    ("factor", "given", "text"),
    [
        (float("inf"), {"sparsity": 0.5}, "inputs of '3.weight' hold nan or infinite values on this data; check the"),
        (
            1e30,
            {"masks": {"3.weight": torch.eye(4, 8) == 0}},
            "'3.weight' have no finite solution.* scale down what it",
        ),
    ],
)
def test_inputs_that_no_square_can_be_taken_of_are_refused(factor, given, text):
    net = louder(nn.Sequential(nn.Linear(6, 8), lif(), By(factor), nn.Linear(8, 4), lif(), nn.Linear(4, 3)))
    before = weights_of(net)
    with pytest.raises(InvalidValue, match=text):
        sp.squeeze(net, [torch.rand(64, 6) * 9], **given)
    assert same(net, before)


@pytest.mark.parametrize("how", ["direct", "iterative"])
def test_a_solution_whose_squares_overflow_is_not_a_number(how):
    x, dense, mask = torch.eye(8).repeat(1, 4) * 1e30, torch.ones(2, 8), torch.arange(8) % 2 == torch.arange(2)[:, None]
    found = solve(LeastSquares(x, dense @ x, None), dense, mask, dense, Solver(how=how))
    assert not found[mask].isfinite().any()


def test_a_network_without_neurons():
    with pytest.raises(InvalidValue, match=r"no spiking neuron was found.* weighting='none'"):
        sp.squeeze(mlp(), [torch.rand(64, 5)], 0.5)
    net = mlp()
    out = sp.squeeze(net, [torch.rand(64, 5)], 0.5, weighting="none")
    assert out.masks.alive == 32
    assert out.agreement == {}


def test_one_image_and_too_few_rows():
    net = nn.Sequential(layer.Linear(40, 6), lif(), layer.Linear(6, 3))
    functional.set_step_mode(net, "m")
    with pytest.warns(UserWarning, match=r"has 2 rows for up to \d+ weights of a neuron.* pass images=\d+"):
        out = sp.squeeze(net, [torch.rand(2, 1, 40) * 9], 0.5, exclude="2")
    assert out.notes
    assert out.images == 1
    with pytest.warns(UserWarning, match=r"pass rows=\d+"):
        sp.squeeze(net, [torch.rand(2, 64, 40) * 9], 0.6, exclude="2", rows=3)
    norm = louder(nn.Sequential(layer.Linear(4, 6), layer.BatchNorm1d(6), lif()), 9).eval()
    before = weights_of(norm)
    x = torch.rand(1, 4)
    with pytest.raises(InvalidValue, match="one value per channel"):
        sp.squeeze(norm, [x], 0.5)
    assert same(norm, before)


def test_a_silent_layer_is_named_and_solved_plainly():
    net = small_net()
    with torch.no_grad():
        net[5].bias.sub_(100)
    with pytest.warns(UserWarning, match="no spike on the calibration images in '6'"):
        out = sp.squeeze(net, batches(), 0.8)
    assert {row.name: row.note for row in out.table()}["4.weight"] == "its neuron is silent"
    assert all(bool(torch.isfinite(p).all()) for p in net.parameters())
    assert out.masks.alive == int(TOTAL * 0.2 + 1e-6)
