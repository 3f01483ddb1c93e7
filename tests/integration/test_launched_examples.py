"""The examples of accelerate and Lightning run, and both leave an ordinary network with exact zeros."""

import importlib.util
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def digits(count=256):
    from sklearn.datasets import load_digits

    held = load_digits()
    images = torch.tensor(held.images[:count], dtype=torch.float32).unsqueeze(1) / 16
    return images, torch.tensor(held.target[:count])


def check(model, pruner):
    assert pruner.alive == int(pruner.prunable * (1 - 0.9) + 1e-6)
    parameters = dict(model.named_parameters())
    assert all((parameters[name][~mask] == 0).all() for name, mask in pruner.masks.items())
    assert any(update["regrown"] for update in pruner.rounds)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_accelerate(monkeypatch):
    pytest.importorskip("accelerate")
    torch.manual_seed(0)
    check(*example("with_accelerate", monkeypatch).train(*digits(), epochs=2))


@pytest.mark.filterwarnings("ignore")
def test_lightning_trains_saves_and_goes_on(monkeypatch, tmp_path):
    lightning = pytest.importorskip("lightning")
    torch.manual_seed(0)
    run = example("with_lightning", monkeypatch)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": tmp_path}
    quiet |= {"accelerator": "cpu", "enable_checkpointing": False}
    module, pruner = run.train(*digits(), epochs=2, **quiet)
    check(module.net, pruner)

    def trainer(epochs):
        schedule = run.sp.Cubic(to=0.9, begin=0, end=7, every=1)
        prune = run.Prune(run.sp.Criticality(regrow=0.2), schedule)
        return lightning.Trainer(max_epochs=epochs, callbacks=[prune], logger=False, **quiet), prune

    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*digits()), batch_size=64)
    states = []
    for stop in (2, 1):
        torch.manual_seed(0)
        module = run.Digits()
        first, prune = trainer(stop)
        first.fit(module, loader)
        if stop == 1:  # go on from the file, with all objects made anew
            first.save_checkpoint(tmp_path / "one.ckpt")
            module = run.Digits()
            second, prune = trainer(2)
            second.fit(module, loader, ckpt_path=tmp_path / "one.ckpt")
        states.append((module.state_dict(), prune.pruner.masks))
    (whole, masks), (resumed, again) = states
    assert all(torch.equal(again[name], mask) for name, mask in masks.items())
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
