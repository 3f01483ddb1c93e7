"""The example of a user's own model and loop runs, and adds fewer than ten lines."""

import importlib.util
import re
from pathlib import Path

import torch

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_model.py"


def _load():
    spec = importlib.util.spec_from_file_location("own_model", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_own_loop_in_under_ten_added_lines():
    added = [line for line in EXAMPLE.read_text().splitlines() if line.endswith("# +")]
    assert len(added) < 10


def test_own_model_is_pruned_paired_and_regrown():
    from sklearn.datasets import load_digits

    example = _load()
    torch.manual_seed(0)
    digits = load_digits()
    x = torch.tensor(digits.images[:640], dtype=torch.float32).unsqueeze(1) / 16
    y = torch.tensor(digits.target[:640])
    model = example.build()
    keys = list(model.state_dict())
    pruner = example.train(model, x, y, epochs=10, T=2)
    assert list(model.state_dict()) == keys
    assert pruner.alive == int(pruner.prunable * (1 - 0.9) + 1e-6)
    feeds = {row.name: row.neuron for row in pruner.table()}
    assert feeds["stem.0.weight"] == "stem.2"
    assert feeds["block.conv2.weight"] == "block.fire2"  # a conv before an add feeds the neuron after it
    assert "head.2.weight" not in feeds  # the classifier stays dense
    assert any(r["regrown"] for r in pruner.rounds)
    assert all((p[~pruner.masks[n]] == 0).all() for n, p in model.named_parameters() if n in pruner.masks)
    # Learns, pruned to 90 %: chance is 0.1.
    assert example.accuracy(model, x, y, T=2) > 0.6


def test_the_example_as_it_is_run_shows_an_accuracy_and_weights_that_live(capsys, caplog):
    """The whole script, half a minute of one core: no warning that regrowth does nothing, and above 95 % at the end."""
    threads = torch.get_num_threads()
    try:
        _load().main()
    finally:
        torch.set_num_threads(threads)
    said = capsys.readouterr().out
    survived, regrown = map(int, re.search(r"(\d+) of (\d+) weights regrown at step", said).groups())
    assert 0.1 * regrown < survived < regrown
    assert float(re.search(r"accuracy ([\d.]+) at sparsity 0.9", said)[1]) > 0.95
    assert "hardly matters" not in caplog.text
