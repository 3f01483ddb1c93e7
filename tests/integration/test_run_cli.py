"""The command line on real, tiny runs: what is printed, what stays on disk, and how wrong input ends."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from spikeprune.cli.main import main
from spikeprune.methods.magnitude import Magnitude

TINY = ["--model", "mlp", "--epochs", "1", "--data.limit", "80", "--batch", "32", "--precision", "fp32"]
DENSE = ["--method", "dense", "--sparsity", "0"]
MODULE = """
import torch
from spikingjelly.activation_based import layer, neuron, surrogate
from torch import nn


def multi_step(classes):
    net = nn.Sequential(
        layer.Flatten(), layer.Linear(64, 32), neuron.LIFNode(surrogate_function=surrogate.ATan()),
        layer.Linear(32, classes),
    )
    for module in net:
        if hasattr(module, "step_mode"):
            module.step_mode = "m"
    return net


def single_step(classes):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), neuron.LIFNode(surrogate_function=surrogate.ATan()), nn.Linear(32, classes)
    )


class OwnLoop(nn.Module):
    def __init__(self, classes, T):
        super().__init__()
        self.T = T
        self.net = single_step(classes)

    def forward(self, x):
        return sum(self.net(x) for _ in range(self.T)) / self.T


def own_loop(classes, T):
    return OwnLoop(classes, T)


def no_neuron(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))


def nothing_to_prune(classes):
    return nn.Sequential(nn.Flatten(), neuron.LIFNode(), nn.Linear(64, classes).requires_grad_(False))


def not_a_module():
    return 3


def broken():
    raise ZeroDivisionError("in my own code")


def loaders(seed):
    draw = torch.Generator().manual_seed(seed)
    x, y = torch.rand(64, 1, 8, 8, generator=draw), torch.arange(64) % 4
    return (x, y), (x[:16], y[:16])
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("user")
    (folder / "my_nets_for_cli.py").write_text(MODULE)
    return folder


@pytest.fixture(autouse=True)
def _there(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))


def ends(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[str], str]:
    """Exit status, lines of stdout, and stderr."""
    status = main(words)
    captured = capsys.readouterr()
    return status, captured.out.splitlines(), captured.err


@pytest.fixture(scope="module")
def finished(place, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out")
    assert main(["run", "digits", *TINY, "--baseline", "false", "--out", str(out)]) == 0
    (folder,) = out.iterdir()
    return folder


def test_a_finished_run_is_printed_and_left_alone(finished, capsys):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    words = ["run", "digits", *TINY, "--baseline", "false", "--out", str(finished.parent)]
    status, out, err = ends(capsys, *words)
    assert (status, out[-1], err) == (0, str(finished), "")
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_eval_repeats_the_accuracy_and_changes_nothing(finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    status, out, _ = ends(capsys, "eval", str(finished), "--json")
    assert status == 0
    record = json.loads((finished / "record.json").read_text())
    assert json.loads("\n".join(out))["accuracy"] == record["pruned"]["accuracy"]
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_the_report_is_written_anew(finished, capsys):
    status, out, _ = ends(capsys, "report", str(finished))
    assert (status, out) == (0, [str(finished / "report.html")])
    assert "<html" in (finished / "report.html").read_text()


def test_the_masks_fit_the_saved_weights(finished):
    from spikeprune.lab.train.folder import read_safetensors

    weights, masks = read_safetensors(finished / "model.safetensors"), read_safetensors(finished / "masks.safetensors")
    for name, mask in masks.items():
        assert mask.dtype == torch.bool
        assert mask.shape == weights[name].shape
        assert not weights[name][~mask].any()
    record = json.loads((finished / "record.json").read_text())
    assert sum(int(mask.sum()) for mask in masks.values()) == record["pruned"]["alive"]


@pytest.mark.parametrize("model", ["multi_step", "single_step", "own_loop"])
def test_a_model_of_the_users_own(model, tmp_path, capsys):
    words = [*TINY, "--model", f"my_nets_for_cli:{model}", "--baseline", "false", "--out", str(tmp_path)]
    status, out, err = ends(capsys, "run", "digits", *words)
    assert status == 0, err
    record = json.loads((Path(out[-1]) / "record.json").read_text())
    # 95 % of 64 * 32 + 32 * 10 = 2368 weights: floor(2368 * 0.05) = 118 stay.
    assert (record["pruned"]["alive"], record["dense"]["alive"]) == (118, 2368)
    # Every time step multiplies with every weight once: 4 * 2368, however the model is called.
    assert record["dense"]["macs"] == 4 * 2368
    assert ends(capsys, "eval", out[-1], "--json")[0] == 2  # a run folder names code, which nobody vouches for
    assert ends(capsys, "eval", out[-1], "--json", "--model", f"my_nets_for_cli:{model}")[0] == 0


def test_excluded_layers_stay_dense(tmp_path, capsys):
    words = ["run", "digits", *TINY, "--baseline", "false", "--sparsity", "0.9", "--out", str(tmp_path)]
    assert main([*words, "--exclude", "head"]) == 0
    folder = Path(capsys.readouterr().out.splitlines()[-1])
    masks = load_file(folder / "masks.safetensors")
    record = json.loads((folder / "record.json").read_text())
    assert masks
    assert not any(name.startswith("head") for name in masks)
    total, alive = sum(m.numel() for m in masks.values()), sum(int(m.sum()) for m in masks.values())
    assert alive == record["pruned"]["alive"] == int(total * 0.1 + 1e-6)
    assert int((load_file(folder / "model.safetensors")["head.weight"] == 0).sum()) == 0
    assert main([*words, "--exclude", "haed"]) == 2
    assert "exclude='haed'" in capsys.readouterr().err


def test_data_of_the_users_own_and_weights_to_start_from(tmp_path, capsys):
    from my_nets_for_cli import multi_step  # a fixture has written it

    torch.manual_seed(5)
    start = multi_step(4)
    torch.save({"state_dict": {f"module.{k}": v for k, v in start.state_dict().items()}}, tmp_path / "start.pt")
    words = ["--model", "my_nets_for_cli:multi_step", "--data.name", "my_nets_for_cli:loaders", "--lr", "1e-30"]
    words += ["--weights", str(tmp_path / "start.pt"), "--epochs", "1", "--batch", "8", "--method", "magnitude"]
    status, out, err = ends(capsys, "run", "digits", *words, "--baseline", "false", "--out", str(tmp_path / "runs"))
    assert status == 0, err
    from spikeprune.lab.train.folder import read_safetensors

    weights = read_safetensors(Path(out[-1]) / "model.safetensors")
    masks = read_safetensors(Path(out[-1]) / "masks.safetensors")
    for name, mask in masks.items():
        assert torch.equal(weights[name], start.state_dict()[name] * mask)


@pytest.fixture
def sparse_start(tmp_path):
    """A state_dict of which half of the prunable weights is 0, and the words of a run from there."""
    from my_nets_for_cli import multi_step  # a fixture has written it

    import spikeprune as sp

    torch.manual_seed(5)
    start = multi_step(10)
    masks = sp.prune(start, "magnitude", 0.5)
    torch.save(start.state_dict(), tmp_path / "start.pt")
    words = ["--model", "my_nets_for_cli:multi_step", "--epochs", "2", "--data.limit", "80", "--batch", "8"]
    words += ["--weights", str(tmp_path / "start.pt"), "--baseline", "false", "--precision", "fp32"]
    return masks, words


@pytest.mark.parametrize("method", ["magnitude", "criticality"])
def test_a_run_from_sparse_weights_goes_on_from_their_sparsity(method, sparse_start, tmp_path, capsys):
    """2,368 weights, half of them 0: no mask update has a target below 0.5, and none keeps more than 1,184."""
    masks, words = sparse_start
    run = ["run", "digits", *words, "--method", method, "--sparsity", "0.8", "--out", str(tmp_path / "runs")]
    status, out, err = ends(capsys, *run)
    assert status == 0, err
    record = json.loads((Path(out[-1]) / "record.json").read_text())
    assert len(record["rounds"]) >= 2
    assert 0.5 < record["rounds"][0]["target"] < record["rounds"][-1]["target"] == 0.8
    assert all(entry["kept"] < 1184 for entry in record["rounds"])
    if method == "magnitude":  # nothing is revived
        found = load_file(Path(out[-1]) / "masks.safetensors")
        assert all(not bool((found[name] & ~mask).any()) for name, mask in masks.items())
    status, out, err = ends(capsys, *run, "--dry-run")
    events = [line for line in out if line.startswith("event ")]
    assert float(events[0].split(" target ")[1].split()[0]) > 0.5


def test_a_run_from_weights_that_are_sparser_than_its_target_is_refused(sparse_start, tmp_path, capsys):
    _, words = sparse_start
    status, out, err = ends(capsys, "run", "digits", *words, "--sparsity", "0.3", "--out", str(tmp_path / "runs"))
    assert (status, out) == (2, [])
    assert "the given masks keep 1184 of 2368" in err


def test_settings_that_take_up_no_zeros_say_so(sparse_start, tmp_path, capsys):
    _, words = sparse_start
    words = [*words, "--start", "random", "--out", str(tmp_path / "runs"), "--dry-run"]
    status, _, err = ends(capsys, "run", "digits", *words)
    assert status == 0
    assert "the weights are sparse (0.500), but budget=weights, start=random" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "my_nets_for_cli:no_neuron"], "no spiking neuron"),
        (["--model", "my_nets_for_cli:nothing_to_prune"], "no prunable layer"),
        (["--model", "my_nets_for_cli:not_a_module"], "must return a torch.nn.Module, got int"),
        (["--model", "my_nets_for_cli:broken"], "ZeroDivisionError: in my own code"),
        (["--model", "my_nets_for_cli:singel_step"], "did you mean 'single_step'"),
        (["--model", "no_such_module:build"], "no module 'no_such_module'"),
        (["--data.name", "fashion-mnist", "--data.root", "empty"], "fashion-mnist"),
        (["--data.limit", "5000"], "data.limit must be 1 to 1442"),
        (["--weights", "garbage.pt"], "no checkpoint that can be read weights-only"),
        (["--weights", "other.pt"], "is of another network"),
        (["--weights", "empty"], "empty': Is a directory"),
        (["--weights", "pipe"], "no ordinary file"),
        (["--weights", "/dev/zero"], "no ordinary file"),
        (["--pattern", "3:2"], "pattern"),
        (["--device", "gpu"], "device 'gpu' is not usable here"),
    ],
)
def test_wrong_input_ends_with_status_2_and_writes_nothing(words, message, place, tmp_path, capsys):
    (place / "garbage.pt").write_bytes(b"\x80not a pickle")
    torch.save({"weight": torch.zeros(2)}, place / "other.pt")
    (place / "empty").mkdir(exist_ok=True)
    if not (place / "pipe").exists():
        os.mkfifo(place / "pipe")  # to read it would never end
    status, out, err = ends(capsys, "run", "digits", *TINY, *words, "--out", str(tmp_path / "runs"))
    assert (status, out) == (2, [])
    assert message in err
    assert err.startswith("spikeprune: ")
    assert len(err.strip().splitlines()) <= 2
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "the weights of stem.1.weight are not numbers after step 1, pruned run; a lower --lr than 1e+38 may help"),
        (
            DENSE,
            "the loss is not a number at step 3 (epoch 1), pruned run; a lower --lr than 1e+38 or --precision fp32",
        ),
        (
            [*DENSE, "--batch", "80"],
            "the loss of the validation is not a number at step 1 (epoch 1), pruned run; a low",
        ),
    ],
)
def test_a_loss_that_is_not_a_number_ends_with_status_1(words, said, tmp_path, capsys):
    """The loss of step 1 is a number still, the weights after it are not: who looks first depends on the run."""
    words = ["run", "digits", *TINY, "--lr", "1e38", "--baseline", "false", "--out", str(tmp_path), *words]
    for _ in range(2):  # trying again meets the same fate and harms nothing
        status, out, err = ends(capsys, *words)
        assert (status, out) == (1, [])
        assert said in err
        assert len(err.strip().splitlines()) == 1
    (folder,) = tmp_path.iterdir()
    assert not (folder / "record.json").exists()


def test_a_refusal_at_a_mask_update_of_a_run_stays_what_it_is(tmp_path, monkeypatch, capsys):
    """Scores that are not numbers, of weights that are: the method is at fault, not the training."""
    score = Magnitude.score
    monkeypatch.setattr(
        Magnitude, "score", lambda self, evidence: {n: s * float("nan") for n, s in score(self, evidence).items()}
    )
    words = ["run", "digits", *TINY, "--method", "magnitude", "--baseline", "false", "--out", str(tmp_path)]
    status, _, err = ends(capsys, *words)
    assert status == 2
    assert "a magnitude score of 'stem.1.weight' is not a number (nan) at the mask update of step 1" in err


def test_mask_updates_that_fp16_skipped_are_told(tmp_path, capsys):
    """Gradients of a learning rate so large overflow in fp16, and such a step is not taken."""
    words = ["run", "digits", *TINY, "--precision", "fp16", "--lr", "1000", "--data.validation", "0"]
    status, _, err = ends(capsys, *words, "--baseline", "false", "--out", str(tmp_path))
    assert status == 1
    assert re.search(
        r"\d of 3 mask updates did not happen, since fp16 skipped as many steps; let prune\.end come ear", err
    )
    (folder,) = tmp_path.iterdir()
    assert not (folder / "record.json").exists()


def test_a_damaged_run_is_refused(finished, tmp_path, capsys):
    import shutil

    copy = tmp_path / finished.name
    shutil.copytree(finished, copy)
    content = bytearray((copy / "model.safetensors").read_bytes())
    (copy / "model.safetensors").write_bytes(content[: len(content) // 2])
    status, _, err = ends(capsys, "eval", str(copy))
    assert status == 2
    assert "model.safetensors is damaged" in err
    (copy / "recipe.yaml").write_text((copy / "recipe.yaml").read_text().replace("seed: 0", "seed: 1"))
    status, _, err = ends(capsys, "run", "digits", *TINY, "--baseline", "false", "--out", str(tmp_path))
    assert status == 2
    assert "other settings (seed is 1 there and 0 here)" in err
