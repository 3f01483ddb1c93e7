"""The MACs of training with credit for zeros: where a method needs the gradients of dead weights, they are not free."""

import json

import pytest
import torch

import spikeprune as sp
from nets import conv_net, train
from spikeprune.lab.recipe import load
from spikeprune.lab.train.folder import read_safetensors
from spikeprune.lab.train.run import run

SPARSE = {"start": "random", "allocate": "erk"}


@pytest.mark.parametrize(
    ("method", "needed"),  # events are at steps 2, 4 and 6 of 8
    [
        (sp.Magnitude(), [0, 0, 0, 0, 0, 0, 0, 0]),
        (sp.Criticality(regrow=0.3), [0, 0, 0, 0, 0, 0, 0, 0]),  # reads potentials alone
        (sp.Criticality(regrow=0.3, unit="synapse"), [0, 1, 0, 1, 0, 1, 0, 0]),
        (sp.Criticality(regrow=0.3, unit="synapse", batches=2), [0, 2, 0, 2, 0, 2, 0, 0]),
        (sp.Gradient(regrow=0.3), [0, 1, 0, 1, 0, 1, 0, 0]),
        ("snfs", [1, 1, 1, 1, 1, 1, 0, 0]),  # keeps the momentum of dead weights in every step
        ("stds", [1, 1, 1, 1, 1, 1, 0, 0]),  # dead weights go on learning
    ],
)
def test_in_which_steps_a_method_needs_the_gradients_of_dead_weights(method, needed):
    model = conv_net()
    start = {} if method == "stds" else SPARSE
    pruner = sp.Pruner(model, method, sp.Constant(0.5, begin=0, end=6, every=2), **start)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pruner.attach(optimizer)
    found: list[int] = []
    train(model, optimizer, 8, after=lambda _: found.append(pruner.full_gradients))
    assert found == needed


def test_the_cost_of_rigl_worked_by_hand(tmp_path):
    words = ["--method", "rigl", "--sparsity", "0.9", "--model", "mlp", "--data.limit", "80", "--data.validation", "0"]
    words += ["--epochs", "2", "--batch", "16", "--precision", "fp32", "--baseline", "false", "--out", str(tmp_path)]
    words += ["--prune.end", "6it", "--prune.every", "3it", "--prune.begin", "0it", "--prune.events", "1"]
    folder = run(load("digits", words))
    record = json.loads(folder.record.read_text())
    assert [event["step"] for event in record["rounds"]] == [3, 6]
    layers = json.loads((folder.path / "statistics.json").read_text())["pruned"]["layers"]
    by_hand = 0.0
    for name, mask in read_safetensors(folder.path / "masks.safetensors").items():
        density = float(mask.double().mean())  # ERK at constant sparsity: every layer keeps its size
        dense = layers[name.removesuffix(".weight")]["macs"] / density
        by_hand += dense * (3 * 2 * 80 * density + 2 * 16 * (1 - density))  # two events of 16 images
    assert record["cost"]["train_macs_effective"] == pytest.approx(by_hand)
