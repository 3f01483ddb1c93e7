"""Drop-and-grow methods against their authors' rules, on cases small enough to work out by hand."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from spikeprune.core.schedule import Constant, Cosine, Cubic, Linear, OneShot
from spikeprune.methods.granet import GraNet
from spikeprune.methods.ndsnn import Ndsnn
from spikeprune.methods.random_prune import RandomPrune
from spikeprune.methods.rigl import RigL
from spikeprune.methods.set import Set
from spikeprune.methods.snfs import Snfs
from spikeprune.methods.snip import Snip
from spikeprune.prune.once import prune
from spikeprune.prune.pruner import Pruner


def layers(*weights: list[list[float]]) -> nn.Module:
    """Linear layers side by side, with these weights; gradients are given by hand, so nothing is ever fed."""
    model = nn.Module()
    for number, weight in enumerate(weights):
        layer = nn.Linear(len(weight[0]), len(weight), bias=False)
        layer.weight.data = torch.tensor(weight)
        model.add_module(f"l{number}", layer)
    return model


def step(model: nn.Module, optimizer: torch.optim.Optimizer, *grads: list[list[float]]) -> None:
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        parameter.grad = torch.tensor(grad)
    optimizer.step()


def alive(pruner: Pruner) -> list[list[list[int]]]:
    return [mask.int().tolist() for mask in pruner.masks.values()]


def cut(pruner: Pruner, *masks: list[list[int]]) -> None:
    """Puts masks in place, as if the run had come that far."""
    pruner._space.parts.upkeep.set({n: torch.tensor(m).bool() for n, m in zip(pruner.masks, masks, strict=True)})
    pruner._space.parts.upkeep.hold()


def test_rigl_drops_the_smallest_and_grows_the_largest_gradient_in_the_same_layer():
    # Two layers of 4 alive weights each. share 0.5: int(0.5 * 4) = 2 smallest |w| go in each layer.
    # l0 keeps 5 and -4; the candidates are the two just dropped (gradients 9, 1) and the dead (2, 8): 9 and 8 win.
    # l1 keeps .5 and -.4, smaller than anything dropped in l0: layers do not compete. Candidates 1, 2 | 3, 0: 3 and 2.
    model = layers([[5.0, -4.0, 3.0, 2.0, 7.0, 7.0]], [[0.5, -0.4, 0.3, 0.2, 7.0, 7.0]])
    pruner = Pruner(model, RigL(regrow=Constant(0.5)), Constant(1 / 3, begin=0, end=1, every=1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    pruner.attach(optimizer)
    cut(pruner, [[1, 1, 1, 1, 0, 0]], [[1, 1, 1, 1, 0, 0]])
    step(model, optimizer, [[0.0, 0.0, 9.0, 1.0, 2.0, -8.0]], [[0.0, 0.0, 1.0, -2.0, 3.0, 0.0]])
    assert alive(pruner) == [[[1, 1, 1, 0, 0, 1]], [[1, 1, 0, 1, 1, 0]]]
    # 3 (l0) and .2 (l1) were dropped and grown at once: they go on as they were, momentum too. New ones start at 0.
    assert model.l0.weight.tolist() == [[5.0, -4.0, 3.0, 0.0, 0.0, 0.0]]
    assert model.l1.weight[0].tolist() == pytest.approx([0.5, -0.4, 0.0, 0.2, 0.0, 0.0])
    assert optimizer.state[model.l0.weight]["momentum_buffer"].tolist() == [[0.0, 0.0, 9.0, 0.0, 0.0, 0.0]]


def test_start_value_zero_restarts_what_was_dropped_and_grown():
    model = layers([[5.0, -4.0, 3.0, 2.0, 7.0, 7.0]])
    pruner = Pruner(model, RigL(Constant(0.5), start_value="zero"), Constant(1 / 3, begin=0, end=1, every=1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    pruner.attach(optimizer)
    cut(pruner, [[1, 1, 1, 1, 0, 0]])
    step(model, optimizer, [[0.0, 0.0, 9.0, 1.0, 2.0, -8.0]])
    assert model.l0.weight.tolist() == [[5.0, -4.0, 0.0, 0.0, 0.0, 0.0]]
    assert optimizer.state[model.l0.weight]["momentum_buffer"].tolist() == [[0.0] * 6]


def test_start_value_last_brings_back_the_value_at_which_a_weight_was_cut_also_over_a_save():
    # Event 1 (keep 2 of 4, no regrowth) cuts 2 and 1. Event 2 replaces one of the two: the dead one with the largest
    # gradient returns with the 1.0 that it had, not 0, though a state was saved and loaded in between.
    share = Linear(to=0.5, initial=0.0, begin=1, end=2)
    schedule = Constant(0.5, begin=0, end=2, every=1)

    def fresh(weight: list[list[float]]) -> tuple[nn.Module, Pruner, torch.optim.Optimizer]:
        model = layers(weight)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        return model, Pruner(model, RigL(share, start_value="last"), schedule).attach(optimizer), optimizer

    model, pruner, optimizer = fresh([[4.0, 3.0, 2.0, 1.0]])
    step(model, optimizer, [[0.0, 0.0, 0.0, 0.0]])
    assert alive(pruner) == [[[1, 1, 0, 0]]]
    model2, pruner2, optimizer2 = fresh(model.l0.weight.tolist())
    pruner2.load_state_dict(pruner.state_dict())
    for m, o, p in ((model, optimizer, pruner), (model2, optimizer2, pruner2)):
        step(m, o, [[0.0, 0.0, 0.5, 0.7]])
        assert alive(p) == [[[1, 0, 0, 1]]]
        assert m.l0.weight.tolist() == [[4.0, 0.0, 0.0, 1.0]]


def test_set_replaces_a_constant_share_at_random_within_each_layer():
    torch.manual_seed(0)
    model = layers(torch.randn(10, 20).tolist(), (0.01 * torch.randn(10, 20)).tolist())
    schedule = Constant(0.5, begin=0, end=3, every=1)
    pruner = Pruner(model, Set(), schedule, start="random", allocate="uniform")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner.attach(optimizer)
    for _ in range(3):
        before = {n: m.clone() for n, m in pruner.masks.items()}
        weights = {n: p.detach().abs().clone() for n, p in model.named_parameters()}
        step(model, optimizer, *[torch.zeros(10, 20).tolist()] * 2)
        for name, mask in pruner.masks.items():
            kept = weights[name].masked_fill(~before[name], -1).flatten().topk(70).indices  # 100 - int(0.3 * 100)
            assert mask.flatten()[kept].all()
            assert int(mask.sum()) == 100
            assert 20 < int((mask & ~before[name]).sum()) <= 30  # of 130 candidates, 30 of them just dropped
    assert [r["regrown"] for r in pruner.rounds] == [60, 60, 60]  # the share does not decay
    # At lr 0 they are still 0 at the next event, so the 30 smallest that each layer drops are just these.
    assert [r["survived"] for r in pruner.rounds] == [0, 0, None]


def test_granet_sizes_layers_by_one_ranking_and_regrows_within_them():
    # 8 weights, sparsity 0.25 keeps 6: globally the two smallest, .2 and .1, both in l1, go: sizes 4 and 2.
    # share 0.5 then drops 2 of l0 (2 and 1) and 1 of l1 (.3) and grows as many there by gradient:
    # l0 candidates 2 and 1: both back. l1 candidates .3, .2, .1 with gradients 1, 5, 2: the .2.
    model = layers([[4.0, 3.0, 2.0, 1.0]], [[0.4, 0.3, 0.2, 0.1]])
    pruner = Pruner(model, GraNet(regrow=Constant(0.5)), Cubic(0.25, begin=0, end=1, every=1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner.attach(optimizer)
    step(model, optimizer, [[9.0, 9.0, 9.0, 9.0]], [[9.0, 1.0, 5.0, 2.0]])
    assert alive(pruner) == [[[1, 1, 1, 1]], [[1, 0, 1, 0]]]


def test_granet_starts_half_dense_with_erk_layers_and_ends_at_the_target():
    torch.manual_seed(0)
    model = layers(torch.randn(4, 6).tolist(), torch.randn(30, 40).tolist())
    pruner = Pruner(model, GraNet(), Cubic(0.9, begin=0, end=4, every=1, initial=0.5), start="erk")
    # ERK at density 1/2: 612 of 1,224; in proportion to 4 + 6 and 30 + 40 l0 would get 76.5 of its 24, so it is full.
    assert [int(m.sum()) for m in pruner.masks.values()] == [24, 588]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner.attach(optimizer)
    for event in pruner.preview():
        step(model, optimizer, torch.randn(4, 6).tolist(), torch.randn(30, 40).tolist())
        assert pruner.alive == event.kept
    assert pruner.alive == 122  # floor(1,224 * 0.1)


def test_ndsnn_drops_a_share_of_the_alive_and_grows_less():
    # 10 weights, 8 alive before, 6 after (sparsity 0.4); share 0.5 drops int(0.5 * 8) = 4: 4 survive, 2 grow.
    # A share of the kept 6 would drop 3: so the rule shows.
    model = layers([[8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 9.0, 9.0]])
    pruner = Pruner(model, Ndsnn(Constant(0.5)), Constant(0.4, begin=0, end=1, every=1), allocate="erk")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner.attach(optimizer)
    cut(pruner, [[1, 1, 1, 1, 1, 1, 1, 1, 0, 0]])
    step(model, optimizer, [[0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 0.0]])
    assert alive(pruner) == [[[1, 1, 1, 1, 0, 0, 0, 1, 1, 0]]]
    assert pruner.rounds[0]["regrown"] == 2


def test_ndsnn_grows_nothing_where_the_drop_is_too_small():
    assert Ndsnn().survivors(kept=6, alive=8, share=0.1) == 6
    assert Ndsnn().survivors(kept=6, alive=8, share=0.5) == 4


def test_snfs_grows_by_momentum_where_layers_have_most_of_it():
    # SGD momentum 0.5, two steps: m = 0.5 * g1 + g2. Sparsity 1/3 of 12 keeps 8 of 12; each layer has 4 alive.
    # share 0.5 drops 2 in each: 4 to grow. Mean |m| of the 4 alive: l0 3, l1 1, so l0 gets 3, l1 gets 1.
    # l0 (drops 3, 2): |m| of candidates 3, 3 | 7, 8 -> 8, 7, 3 (tie of the dropped: lower index).
    # l1 (drops 3, 2): |m| 1, 1 | 0, 6 -> 6.
    model = layers([[5.0, 4.0, 3.0, 2.0, 9.0, 9.0]], [[5.0, 4.0, 3.0, 2.0, 9.0, 9.0]])
    pruner = Pruner(model, Snfs(Constant(0.5)), Constant(1 / 3, begin=1, end=2, every=1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.5)
    pruner.attach(optimizer)
    cut(pruner, [[1, 1, 1, 1, 0, 0]], [[1, 1, 1, 1, 0, 0]])
    step(model, optimizer, [[2.0, 2.0, 2.0, 2.0, 14.0, 0.0]], [[0.0, 0.0, 0.0, 0.0, 0.0, 12.0]])
    # Dead weights gather momentum: 14 and 12 count half in the next step. The weights themselves stay 0.
    assert model.l0.weight[0, 4] == 0
    step(model, optimizer, [[2.0, 2.0, 2.0, 2.0, 0.0, 8.0]], [[1.0, 1.0, 1.0, 1.0, 0.0, 0.0]])
    assert alive(pruner) == [[[1, 1, 1, 0, 1, 1]], [[1, 1, 0, 0, 0, 1]]]
    assert pruner.alive == 8


def test_snfs_gives_what_a_full_layer_cannot_take_to_the_others():
    # l0 has 2 weights, 1 alive, 1 dropped: room for 2. Its momentum would earn it all 3 that are to be grown.
    model = layers([[1.0, 9.0]], [[5.0, 4.0, 3.0, 2.0, 9.0]])
    pruner = Pruner(model, Snfs(Constant(0.5)), Constant(2 / 7, begin=0, end=1, every=1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    pruner.attach(optimizer)
    cut(pruner, [[1, 0]], [[1, 1, 1, 1, 0]])
    step(model, optimizer, [[100.0, 100.0]], [[1e-6, 1e-6, 1e-6, 2e-6, 3e-6]])
    # int(0.5 * 1) = 0 dropped in l0, 2 in l1; l0 takes its 1 free place, the other goes to l1's largest momentum.
    assert alive(pruner) == [[[1, 1]], [[1, 1, 0, 0, 1]]]


def test_snfs_reads_adam_as_the_ratio_of_its_moments():
    model = layers([[4.0, 3.0, 2.0, 9.0]])
    pruner = Pruner(model, Snfs(Constant(0.5)), Constant(0.25, begin=1, end=2, every=1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0, betas=(0.5, 0.5))
    pruner.attach(optimizer)
    cut(pruner, [[1, 1, 1, 0]])
    step(model, optimizer, [[1.0, 1.0, 4.0, 1.0]])
    step(model, optimizer, [[1.0, 1.0, -1.5, 1.0]])
    # int(0.5 * 3) = 1 dropped: the 2. It and the dead one compete. Moments, with betas of 1/2:
    # first of the dropped -1.5/2 + 4/4 = 0.25, second 2.25/2 + 16/4 ~ 5.1, ratio 0.11; of the dead 0.75 / 0.87 = 0.87.
    assert alive(pruner) == [[[1, 1, 0, 1]]]


def test_random_prune_holds_one_random_mask():
    model = layers(torch.ones(20, 20).tolist())
    pruner = Pruner(model, RandomPrune(), Constant(0.9, begin=0, end=2, every=1), start="random", allocate="erk")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner.attach(optimizer)
    first = pruner.masks["l0.weight"].clone()
    assert int(first.sum()) == 40
    for _ in range(2):
        step(model, optimizer, torch.zeros(20, 20).tolist())
    assert torch.equal(first, pruner.masks["l0.weight"])
    other = Pruner(layers(torch.ones(20, 20).tolist()), RandomPrune(), pruner.schedule, start="random", seed=1)
    assert not torch.equal(first, other.masks["l0.weight"])


def test_snip_scores_the_untrained_network():
    # |w * g| = 4, 3, 10, 4 (tie, lower index first): keep 2 of 4. The step's own update, -lr * g, would turn the
    # order round: after it w = 0, -2, -8, -7 and |w * g| = 0, 6, 80, 28.
    model = layers([[4.0, 1.0, 2.0, 1.0]])
    pruner = Pruner(model, Snip(), OneShot(0.5))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    pruner.attach(optimizer)
    step(model, optimizer, [[1.0, 3.0, 5.0, 4.0]])
    assert alive(pruner) == [[[1, 0, 1, 0]]]


def test_snip_before_training():
    # loss = sum(y): dL/dw = x, so |w * x| = 3, 4, 6, 4.
    model = layers([[3.0, 2.0, 2.0, -1.0]])

    def forward(x: Tensor) -> Tensor:
        return model.l0(x)

    model.forward = forward
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    masks = prune(model, Snip(), 0.5, data=[(x, torch.zeros(1))], loss=lambda y, _: y.sum())
    assert masks["l0.weight"].int().tolist() == [[0, 1, 1, 0]]


@pytest.mark.parametrize("method", [Set(), RigL(), GraNet(), Ndsnn(), Snfs()])
def test_exact_counts_at_every_event_and_nothing_dead_moves(method):
    torch.manual_seed(1)
    model = layers(torch.randn(13, 7).tolist(), torch.randn(5, 17).tolist(), torch.randn(3, 3).tolist())
    rising = isinstance(method, GraNet | Ndsnn)
    schedule = Cubic(0.9, 0, 12, 2, initial=0.6) if rising else Constant(0.9, 0, 12, 2)
    pruner = Pruner(model, method, schedule, start="random", allocate="global" if isinstance(method, Snfs) else "erk")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    pruner.attach(optimizer)
    kept = {e.step: e.kept for e in pruner.preview()}
    for number in range(1, 16):
        step(model, optimizer, *[torch.randn(p.shape).tolist() for p in model.parameters()])
        assert all((p[~pruner.masks[n]] == 0).all() for n, p in model.named_parameters())
        if number in kept:
            assert pruner.alive == kept[number]
    assert pruner.alive == kept[12] == 18  # floor(185 * 0.1)


def test_growth_within_layers_leaves_their_sizes_alone():
    torch.manual_seed(2)
    model = layers(torch.randn(9, 9).tolist(), (100 * torch.randn(9, 9)).tolist())
    schedule = Constant(0.5, begin=0, end=3, every=1)
    pruner = Pruner(model, RigL(Cosine(to=0.0, initial=0.3)), schedule, start="random", allocate="uniform")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner.attach(optimizer)
    sizes = [int(m.sum()) for m in pruner.masks.values()]
    for _ in range(3):
        step(model, optimizer, torch.randn(9, 9).tolist(), (1e-3 * torch.randn(9, 9)).tolist())
        assert [int(m.sum()) for m in pruner.masks.values()] == sizes


def test_settings_are_fields_and_bad_ones_are_refused():
    assert [f.name for f in dataclasses.fields(RigL)] == ["regrow", "start_value"]
    with pytest.raises(ValueError, match="start_value must be one of 'zero', 'kept', 'last'"):
        RigL(start_value="random")
    with pytest.raises(ValueError, match="share of the weights kept"):
        Set(regrow=1.5)
