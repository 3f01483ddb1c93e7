"""The controls: regrowth by a weight's own past, and by criticality upside down."""

import torch
from torch import nn

from spikeprune.core.evidence import Evidence
from spikeprune.core.schedule import Constant, Linear
from spikeprune.methods.anti_criticality import AntiCriticality
from spikeprune.methods.criticality import Criticality
from spikeprune.methods.last_magnitude import LastMagnitude
from spikeprune.prune.pruner import Pruner


def test_last_magnitude_brings_back_what_was_largest_when_it_was_cut():
    # Event 1 keeps 3 of 5 without regrowth: 2 and 1 go. Event 2 keeps 3 and replaces int(.5 * 3) = 1 of them: the 3,
    # which has meanwhile fallen to 1.5, goes, and the 2 that was cut as 2 returns.
    model = nn.Linear(5, 1, bias=False)
    model.weight.data = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0]])
    share = Linear(to=0.5, initial=0.0, begin=1, end=2)
    pruner = Pruner(model, LastMagnitude(share, start_value="last"), Constant(0.4, begin=0, end=2, every=1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    pruner.attach(optimizer)
    model.weight.grad = torch.zeros(1, 5)
    optimizer.step()
    assert pruner.masks["weight"].int().tolist() == [[1, 1, 1, 0, 0]]
    model.weight.grad = torch.tensor([[0.0, 0.0, 1.5, 0.0, 0.0]])
    optimizer.step()
    assert pruner.masks["weight"].int().tolist() == [[1, 1, 0, 1, 0]]
    assert model.weight.tolist() == [[5.0, 4.0, 0.0, 2.0, 0.0]]


def test_anti_criticality_is_criticality_upside_down():
    evidence = Evidence(
        weights={"w": torch.ones(3, 2)},
        masks={"w": torch.ones(3, 2, dtype=torch.bool)},
        statistics={"w": torch.tensor([0.5, 0.1, 0.9])},
    )
    up, down = Criticality().regrow_score(evidence)["w"], AntiCriticality().regrow_score(evidence)["w"]
    assert torch.equal(up, -down)
    assert down[:, 0].argmax() == 1
