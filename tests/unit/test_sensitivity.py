"""`sp.sensitivity`: accuracy per layer and sparsity, the model left as it was."""

import pytest
import torch

import spikeprune as sp
from nets import assert_same, batch, conv_net
from spikeprune.core.errors import InvalidValue


def test_by_hand_on_a_linear_layer():
    # Two classes told apart by the large weights only: cutting the small half changes nothing, cutting 3 of 4 does.
    model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 0.1], [0.1, 2.0]]))
    x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1, 0, 1])
    table = sp.sensitivity(model, [(x, y)], sparsities=(0.5, 0.75))
    # At 3/4 only the 3 is left: class 1's images give logits (0, 0), and the first of equal ones is taken: class 0.
    assert table == {"": {0.0: 1.0}, "0.weight": {0.5: 1.0, 0.75: 0.5}}


def test_the_model_is_left_as_it_was():
    model = conv_net()
    before = {n: v.clone() for n, v in model.state_dict().items()}
    table = sp.sensitivity(model, [batch(1), batch(2)], sparsities=(0.5, 0.9))
    assert list(table) == ["", "0.weight", "4.weight", "8.weight"]
    assert all(0 <= a <= 1 for row in table.values() for a in row.values())
    assert model.training
    assert_same(dict(model.state_dict()), before)
    assert not isinstance(model[2].v, torch.Tensor)


def test_wrong_input():
    with pytest.raises(InvalidValue, match="for 80 % pass"):
        sp.sensitivity(conv_net(), [batch(1)], sparsities=(50,))
    with pytest.raises(InvalidValue, match="data holds no batch"):
        sp.sensitivity(conv_net(), [])
