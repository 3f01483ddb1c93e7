"""Methods that take part in every step (Grad R, STDS, ADMM, RCMO), against their rules worked out by hand."""

import io

import pytest
import torch
from torch import nn

from spikeprune.core.schedule import Constant, Cubic, OneShot
from spikeprune.methods.admm import Admm
from spikeprune.methods.grad_r import GradR
from spikeprune.methods.rcmo import Rcmo
from spikeprune.methods.stds import Stds
from spikeprune.prune.once import prune
from spikeprune.prune.pruner import Pruner


def layers(*weights: list[list[float]]) -> nn.Module:
    model = nn.Module()
    for number, weight in enumerate(weights):
        layer = nn.Linear(len(weight[0]), len(weight), bias=False)
        layer.weight.data = torch.tensor(weight)
        model.add_module(f"l{number}", layer)
    return model


def step(model: nn.Module, optimizer: torch.optim.Optimizer, *grads: list[float]) -> None:
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        parameter.grad = torch.tensor([grad])
    optimizer.step()


def alive(pruner: Pruner) -> list[list[int]]:
    return [mask.int()[0].tolist() for mask in pruner.masks.values()]


def near(*values: float) -> object:
    return pytest.approx(list(values), abs=1e-6)


@pytest.mark.parametrize(
    ("optimizer", "rate", "decay", "decoupled"),
    [
        (None, 0.0, 0.0, False),
        (lambda p: torch.optim.Rprop(p, lr=0.25), 0.25, 0.0, False),  # it has no weight decay
        (lambda p: torch.optim.SGD(p, lr=0.25, weight_decay=0.5), 0.25, 0.5, False),
        (lambda p: torch.optim.Adam(p, lr=0.25, weight_decay=0.5), 0.25, 0.5, False),
        (lambda p: torch.optim.AdamW(p, lr=0.25, weight_decay=0.5), 0.25, 0.5, True),
    ],
)
def test_a_method_sees_the_settings_of_the_optimizer(optimizer, rate, decay, decoupled):
    model = layers([[0.5, -0.2]], [[1.0]])
    pruner = Pruner(model, Stds(), Cubic(0.5, end=4, every=2))
    if optimizer is not None:
        pruner.attach(optimizer(model.parameters()))
    seen = pruner._updater.training(3)
    assert seen.rates == {"l0.weight": rate, "l1.weight": rate}
    assert seen.decays == {"l0.weight": decay, "l1.weight": decay}
    assert (seen.decoupled, seen.progress, seen.sparsity) == (decoupled, 0.75, 0.5)
    assert pruner._updater.training(9).progress == 1.0


def test_grad_r_prunes_a_connection_that_changes_sign_and_revives_it_by_its_gradient():
    # Sparsity 1/2: mu = ln(1) / alpha = 0. lr 0.1, alpha 1: the prior takes 0.1 from a positive strength, adds 0.1 to a
    # negative one. Strengths .5 .2 .15 .4, signs + - + +.
    model = layers([[0.5, -0.2, 0.15, 0.4]])
    pruner = Pruner(model, GradR(alpha=1.0), OneShot(0.5, every=3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner.attach(optimizer)
    # Updates -.2, +.15, 0, 0: strengths .5 - .2 - .1 = .2; .2 - .15 - .1 = -.05 (dead); .15 - .1 = .05; .4 - .1 = .3.
    step(model, optimizer, [2.0, -1.5, 0.0, 0.0])
    assert model.l0.weight[0].tolist() == near(0.2, 0.0, 0.05, 0.3)
    assert alive(pruner) == [[1, 0, 1, 1]]
    # The dead one's gradient still counts: update -.3 with sign -, and the prior lifts it: -.05 + .3 + .1 = .35.
    step(model, optimizer, [0.0, 3.0, 0.0, 0.0])
    assert model.l0.weight[0].tolist() == near(0.1, -0.35, 0.0, 0.2)
    # .05 - .1 = -.05: the third is dead. The last event keeps the two strongest; .1 - .1 = 0, .25, -.05 + .1, .1.
    step(model, optimizer, [0.0, 0.0, 0.0, 0.0])
    assert alive(pruner) == [[0, 1, 0, 1]]
    assert model.l0.weight[0].tolist() == near(0.0, -0.25, 0.0, 0.1)
    # Then the kept weights train as ordinary ones, and the dead do not move.
    step(model, optimizer, [1.0, 1.0, 1.0, 1.0])
    assert model.l0.weight[0].tolist() == near(0.0, -0.35, 0.0, 0.0)


def test_grad_r_keeps_the_strongest_of_the_dormant_where_too_few_are_active():
    # mu = ln(2 * 0.5) / 1 = 0 again. All but one strength fall below 0, by -1 - .1: the last event keeps two.
    model = layers([[0.5, 0.2, 0.1, 0.3]])
    pruner = Pruner(model, GradR(alpha=1.0), OneShot(0.5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner.attach(optimizer)
    step(model, optimizer, [0.0, 10.0, 10.0, 10.0])
    assert alive(pruner) == [[1, 0, 0, 1]]
    assert model.l0.weight[0].tolist() == near(0.4, 0.0, 0.0, 0.0)


def test_grad_r_refuses_a_sparsity_that_its_prior_does_not_know():
    model = layers([[0.5, 0.2, 0.1, 0.3]])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Pruner(model, GradR(), OneShot(0.25)).attach(optimizer)
    with pytest.raises(ValueError, match=r"needs a sparsity of at least 0\.5, got 0\.25"):
        step(model, optimizer, [0.0, 0.0, 0.0, 0.0])


def test_stds_passes_gradients_through_the_dead_zone():
    model = layers([[1.0, -0.8, 0.5, 0.2]])
    pruner = Pruner(model, Stds(), Constant(0.5, begin=0, end=2, every=1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    pruner.attach(optimizer)
    # Event 1 keeps 2 of 4: d = .5, the largest |theta| that goes. w = 1 - .5, -(.8 - .5), 0, 0.
    step(model, optimizer, [0.0, 0.0, 0.0, 0.0])
    assert model.l0.weight[0].tolist() == near(0.5, -0.3, 0.0, 0.0)
    # theta of the third: .5 + .4 = .9, though its weight was 0. Event 2: 1 and .9 stay, d = .8.
    step(model, optimizer, [0.0, 0.0, -0.4, 0.0])
    assert alive(pruner) == [[1, 0, 1, 0]]
    assert model.l0.weight[0].tolist() == near(0.2, 0.0, 0.1, 0.0)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_weight_decay_of_stds_shrinks_theta(optimizer):
    # d = .5 after the first mask update. No gradient: in a step each theta loses lr * decay = a tenth of itself, so the
    # third, inside the dead zone at .5, shrinks to .45; were it w that decays, it would stay.
    model = layers([[1.0, -0.8, 0.5, 0.2]])
    pruner = Pruner(model, Stds(), Constant(0.5, begin=0, end=3, every=1))
    made = optimizer(model.parameters(), lr=0.1, weight_decay=0.0)
    pruner.attach(made)
    step(model, made, [0.0] * 4)
    made.param_groups[0]["weight_decay"] = 1.0
    step(model, made, [0.0] * 4)
    theta = pruner._updater.memory["theta"]["l0.weight"][0]
    assert theta.tolist() == near(0.9, -0.72, 0.45, 0.18)


@pytest.mark.parametrize(("ramp", "d"), [("linear", [0.25, 0.5]), ("sine", [0.146447, 0.5])])
def test_stds_with_the_authors_ramp(ramp, d):
    # depth 1 over 4 steps: progress 1/4 and 1/2; (1 + sin(-pi/4)) / 2 and 1/2.
    model = layers([[2.0, -1.5, 0.4, 0.2]])
    pruner = Pruner(model, Stds(depth=1.0, ramp=ramp), Constant(0.25, begin=0, end=4, every=2))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    pruner.attach(optimizer)
    for threshold in d:
        step(model, optimizer, [0.0, 0.0, 0.0, 0.0])
        third, fourth = max(0.4 - threshold, 0.0), max(0.2 - threshold, 0.0)
        assert model.l0.weight[0].tolist() == near(2 - threshold, threshold - 1.5, third, fourth)
    # An event in between leaves the masks to the threshold: 2 alive at d > .4, though the schedule says 3.
    assert pruner.rounds[0]["kept"] == 2
    for _ in range(2):
        step(model, optimizer, [0.0, 0.0, 0.0, 0.0])
    assert alive(pruner) == [[1, 1, 1, 0]]  # the last event is exact; the third is inside the dead zone, with weight 0
    assert model.l0.weight[0].tolist() == near(1.0, -0.5, 0.0, 0.0)


def test_admm_pulls_to_its_projection_and_cuts_at_the_last_event():
    # lr .1, rho 1, no loss gradient. Z = 3, 0, 0, 4: the others lose a tenth of themselves in each step: 2, 1.8, 1.62.
    model = layers([[3.0, 2.0, 1.0, 4.0]])
    pruner = Pruner(model, Admm(rho=1.0), Constant(0.5, begin=0, end=4, every=2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner.attach(optimizer)
    step(model, optimizer, [0.0] * 4)
    step(model, optimizer, [0.0] * 4)
    assert model.l0.weight[0].tolist() == near(3.0, 1.62, 0.81, 4.0)
    assert pruner.sparsity == 0
    # The event: Z as before, U = W - Z = 0, 1.62, .81, 0. The pull is now W + U: 3.24 and 1.62, then 2.916 and 1.458.
    step(model, optimizer, [0.0] * 4)
    assert model.l0.weight[0].tolist() == near(3.0, 1.296, 0.648, 4.0)
    step(model, optimizer, [0.0] * 4)
    assert alive(pruner) == [[1, 0, 0, 1]]
    assert model.l0.weight[0].tolist() == near(3.0, 0.0, 0.0, 4.0)


def test_admm_needs_to_see_the_gradients_before_the_update():
    model = layers([[3.0, 2.0, 1.0, 4.0]])
    pruner = Pruner(model, Admm(), Constant(0.5, begin=0, end=4, every=2))
    model.l0.weight.grad = torch.zeros(1, 4)
    with pytest.raises(ValueError, match="call mask_grads"):
        pruner.step()  # after an update whose gradients it has not seen


def test_rcmo_learns_which_layer_gives_way():
    # 4 weights, 2 to be kept. pull 1, dual 1, lr .5: cut weights are divided by 1 + 2 * .5 * y.
    model = layers([[2.0, 1.0]], [[1.0, 0.5]])
    pruner = Pruner(model, Rcmo(pull=1.0, dual=1.0), Constant(0.5, begin=0, end=3, every=3), floor=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    pruner.attach(optimizer)
    # y w^2 = 4, 1 | 1, .25: the tie goes to the first layer, so the second is halved. y[1] = 1 + .25 + .0625.
    step(model, optimizer, [0.0, 0.0], [0.0, 0.0])
    assert model.l0.weight[0].tolist() == near(2.0, 1.0)
    assert model.l1.weight[0].tolist() == near(0.5, 0.25)
    # The loss lifts its first weight by .45 to .95: w^2 = .9025 < 1, but y w^2 = 1.3125 * .9025 = 1.1845 > 1: it stays,
    # and the first layer's second weight is halved.
    step(model, optimizer, [0.0, 0.0], [-0.9, 0.0])
    assert model.l0.weight[0].tolist() == near(2.0, 0.5)
    assert model.l1.weight[0].tolist() == near(0.95, 0.25 / 2.3125)
    assert pruner.sparsity == 0
    step(model, optimizer, [0.0, 0.0], [0.0, 0.0])
    assert alive(pruner) == [[1, 0], [1, 0]]


@pytest.mark.parametrize("method", [GradR(alpha=0.5), Stds(), Stds(depth=0.5), Admm(), Rcmo()])
@pytest.mark.parametrize("allocate", ["global", "erk"])
def test_the_last_event_is_exact_and_a_saved_run_goes_on_bit_for_bit(method, allocate):
    def fresh() -> tuple[nn.Module, Pruner, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(13, 9), nn.ReLU(), nn.Linear(9, 7))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        pruner = Pruner(model, method, Cubic(0.9, begin=0, end=12, every=3), allocate=allocate)
        return model, pruner.attach(optimizer), optimizer

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, pruner: Pruner, first: int, last: int) -> None:
        for number in range(first, last):
            torch.manual_seed(number)
            optimizer.zero_grad()
            model(torch.randn(8, 13)).square().mean().backward()
            optimizer.step()
            assert all((p[~pruner.masks[n]] == 0).all() for n, p in model.named_parameters() if n in pruner.masks)

    model, pruner, optimizer = fresh()
    train(model, optimizer, pruner, 0, 7)
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), pruner.state_dict()], file)
    train(model, optimizer, pruner, 7, 16)
    assert pruner.alive == 18  # floor((13 * 9 + 9 * 7) * 0.1)
    assert [r["step"] for r in pruner.rounds] == [3, 6, 9, 12]
    state = optimizer.state[model[0].weight]
    assert all((state[k][~pruner.masks["0.weight"]] == 0).all() for k in ("exp_avg", "exp_avg_sq"))

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again, pruner2, optimizer2 = fresh()
    for thing, state in zip((again, optimizer2, pruner2), saved, strict=True):
        thing.load_state_dict(state)
    train(again, optimizer2, pruner2, 7, 16)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert all(torch.equal(pruner.masks[n], pruner2.masks[n]) for n in pruner.masks)


@pytest.mark.parametrize("method", [GradR(), Stds(), Admm(), Rcmo()])
def test_without_training_they_prune_by_magnitude(method):
    masks = prune(layers([[0.3, -0.4, 0.1, 0.2]]), method, 0.5)
    assert masks["l0.weight"].int().tolist() == [[1, 1, 0, 0]]


def test_bad_settings_are_refused():
    for make, words in (
        (lambda: GradR(alpha=0.0), "alpha must be above 0"),
        (lambda: Stds(depth=-1.0), "depth must be None"),
        (lambda: Stds(ramp="cubic"), "ramp must be one of 'sine', 'linear'"),
        (lambda: Admm(rho=0.0), "rho must be above 0"),
        (lambda: Rcmo(pull=0.0), "pull must be above 0"),
    ):
        with pytest.raises(ValueError, match=words):
            make()
