"""`torchrun -m spikeprune run`: two processes train one network, and it equals the one that a single process trains."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from forked import ranks
from spikeprune.cli.main import main
from spikeprune.core.errors import InvalidValue, RunFailed
from spikeprune.lab.train.together import Together

NETS = """
import torch
from spikingjelly.activation_based import layer, neuron, surrogate
from torch import nn


class Double(nn.Module):
    '''In float64, with or without BatchNorm.'''

    def __init__(self, norm):
        super().__init__()
        spikes = lambda: neuron.LIFNode(surrogate_function=surrogate.ATan())
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4) if norm else nn.Identity(), spikes(), nn.AvgPool2d(2),
            nn.Flatten(), nn.Linear(64, 12), spikes(), nn.Linear(12, 10),
        ).double()

    def forward(self, x):
        return self.body(x.double())


def plain():
    torch.manual_seed(0)
    return Double(False)


def normed():
    torch.manual_seed(0)
    return Double(True)
"""
RANKED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK")
WORDS = ["run", "digits", "--data.limit", "96", "--batch", "16", "--epochs", "2", "--T", "3", "--precision", "fp32"]
WORDS += [
    "--fuse",
    "false",
    "--baseline",
    "false",
    "--prune.begin",
    "0ep",
    "--prune.end",
    "1ep",
    "--prune.every",
    "2it",
]
WORDS += ["--method", "criticality", "--sparsity", "0.8", "--lr", "0.5"]


def two_processes(words, folder):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "spikeprune",
    ]
    environment = {name: value for name, value in os.environ.items() if name not in RANKED}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    return subprocess.run([*command, *words], env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture
def nets(tmp_path, monkeypatch):
    (tmp_path / "nets_for_two.py").write_text(NETS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_two_processes_train_the_network_that_one_trains(nets, capsys):
    words = [*WORDS, "--model", "nets_for_two:plain"]
    assert main([*words, "--out", str(nets / "one")]) == 0
    alone = Path(capsys.readouterr().out.splitlines()[-1])
    done = two_processes([*words, "--out", str(nets / "two")], nets)
    assert done.returncode == 0, done.stderr[-2000:]
    shared = Path(done.stdout.splitlines()[-1])
    assert [p.name for p in (nets / "two").iterdir()] == [shared.name]  # process 1 wrote nothing there
    assert done.stdout.count("epoch 2/2") == 1
    masks, wanted = load_file(shared / "masks.safetensors"), load_file(alone / "masks.safetensors")
    assert all(torch.equal(masks[name], mask) for name, mask in wanted.items())
    assert 0.79 < 1 - sum(m.sum().item() for m in masks.values()) / sum(m.numel() for m in masks.values()) < 0.81
    weights, expected = load_file(shared / "model.safetensors"), load_file(alone / "model.safetensors")
    start = plain_weights()
    for name, value in expected.items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-9)
        assert name.endswith("bias") or not torch.allclose(value, start[name], atol=1e-3)  # it was trained


def plain_weights():
    from nets_for_two import plain  # pyright: ignore[reportMissingImports]

    return plain().state_dict()


def agreed(rank, steps):
    together = Together(rank, 2)
    with together.joined():
        together.check_agreed(3)
        try:
            together.check_agreed(steps[rank])
        except RunFailed as error:
            print(error)
    return 0


def test_processes_that_go_on_from_other_steps_are_told():
    """The last checkpoint of a folder that only one of two machines reads."""
    for ended in ranks(lambda rank: agreed(rank, (4, 0))):
        assert ended.status == 0, ended.stderr[-2000:]
        assert (
            "the processes go on from different steps (4, 0); --out must be a folder that all of them" in ended.stdout
        )


def test_shares_of_a_batch_are_all_of_it():
    x, y = torch.rand(3, 5, 2), torch.arange(5)
    parts = [Together(number, 2).share(x, y, time_first=True) for number in (0, 1)]
    assert [len(target) for _, target in parts] == [3, 2]
    assert torch.equal(torch.cat([part for part, _ in parts], 1), x)
    with pytest.raises(InvalidValue, match=r"a batch of 1 samples.*has none for some of 2 processes"):
        Together(1, 2).share(x[:, :1], y[:1], time_first=True)


@pytest.mark.skipif("SPIKEPRUNE_HEAVY" not in os.environ, reason="make test-heavy runs it")
def test_batchnorm_statistics_are_per_process_and_masks_agree(nets):
    words = [*WORDS, "--model", "nets_for_two:normed", "--out", str(nets / "two")]
    done = two_processes(words, nets)
    assert done.returncode == 0, done.stderr[-2000:]
    again = two_processes(words, nets)  # a finished run is left as it is
    assert again.returncode == 0
    assert again.stdout.splitlines()[-1] == done.stdout.splitlines()[-1]
