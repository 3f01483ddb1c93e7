"""Any model goes to ONNX by its own forward; the file is run in onnxruntime and compared with the model."""

import importlib.util
import json
import logging

import pytest
import torch
from torch import nn

import spikeprune as sp
from gallery.loops import Rect
from gallery.nets import ENTRIES
from gallery.run import answer
from spikeprune.core.errors import InvalidValue, MissingDependency

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("norse")


def run(path, x):
    session = onnxruntime.InferenceSession(str(path))
    return torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


@pytest.mark.parametrize("name", ["inline", "single step", "spectral_norm", "snntorch recurrent", "norse cells"])
def test_the_file_computes_what_the_model_computes_for_any_batch(name, tmp_path):
    entry = ENTRIES[name]
    net, x = entry.network(), entry.example()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    path = sp.export_onnx(net, tmp_path / "net.onnx", x)
    assert net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    more = torch.cat([x, x.flip(0)], 1)
    wanted = answer(net.eval(), more)
    assert wanted.abs().max() > 0.1
    torch.testing.assert_close(run(path, more), wanted, rtol=1e-3, atol=1e-4)
    facts = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert json.loads(facts["spikeprune.axes"]) == {"example": list(x.shape), "free": {"x": 1, "y": 0}}


class Moved(nn.Module):
    """Time last, moved to the front by its place from the end."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x):
        v, out = 0, []
        for step in x.movedim(-1, 0):
            v = 0.5 * v + self.a(step)
            spikes = Rect.apply(v - 0.5)
            v = v - spikes
            out.append(self.b(spikes))
        return torch.stack(out).movedim(0, -1)


def test_dimensions_that_are_counted_from_the_end_are_moved(tmp_path):
    net, x = Moved(), torch.rand(3, 6, 5) * 3
    path = sp.export_onnx(net, tmp_path / "net.onnx", x * 0.1)
    with torch.no_grad():
        torch.testing.assert_close(run(path, x), net(x), rtol=1e-3, atol=1e-4)


def test_a_batch_size_that_the_forward_fixes_is_told(tmp_path, caplog):
    entry = ENTRIES["psn"]
    with caplog.at_level(logging.WARNING, "spikeprune"):
        path = sp.export_onnx(entry.network(), tmp_path / "net.onnx", entry.example())
    assert "[4, 3, 2, 8, 8] alone" in caplog.text
    facts = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert json.loads(facts["spikeprune.axes"])["free"] == {}


class Branching(nn.Module):
    """Decides by its input which of two layers runs; a trace holds one of them."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x):
        layer = self.a if float(x.mean()) < 0.5 else self.b
        return sum((torch.relu(layer(step)) > 0.2).float() for step in x)


class Pair(Branching):
    def forward(self, x):
        return Rect.apply(self.a(x[0])), x


@pytest.mark.parametrize(("kind", "words"), [(Branching, "decides by values"), (Pair, "returns tuple")])
def test_what_a_file_cannot_say_is_refused(kind, words, tmp_path):
    torch.manual_seed(0)
    with pytest.raises(InvalidValue, match=words) as raised:
        sp.export_onnx(kind(), tmp_path / "net.onnx", torch.rand(3, 4, 6))
    assert len(str(raised.value)) < 300
    assert not any(word in str(raised.value).lower() for word in ("spikingjelly", "snntorch", "norse"))
    assert not (tmp_path / "net.onnx").exists()


class Transforms(Moved):
    """Calls a function that the exporter knows no ONNX operator for."""

    def forward(self, x):
        return torch.special.i0(super().forward(x))


def test_a_function_that_the_exporter_does_not_know_is_named(tmp_path):
    with pytest.raises(InvalidValue, match=r"export Transforms to ONNX: PyTorch's exporter says .*i0.*; replace what"):
        sp.export_onnx(Transforms(), tmp_path / "net.onnx", torch.rand(3, 6, 5))
    assert list(tmp_path.iterdir()) == []


def test_without_onnxruntime_what_nothing_can_compare_is_not_written(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    with pytest.raises(MissingDependency, match="only where onnxruntime can compare; pip install onnxruntime"):
        sp.export_onnx(Moved(), tmp_path / "net.onnx", torch.rand(3, 6, 5))
    assert list(tmp_path.iterdir()) == []


class WritesThroughAView(nn.Module):
    """PyTorch's exporter drops a write in place through `narrow`."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x):
        v, record = 0, torch.zeros(len(x), x.shape[1], 8)
        for t in range(len(x)):
            v = 0.5 * v + self.a(x[t])
            spikes = Rect.apply(v - 1)
            v = v - spikes
            record.narrow(0, t, 1).add_(spikes)
        return self.b(record).mean(0)


@pytest.mark.parametrize("scale", [0.01, 1.0])
def test_a_quiet_example_is_no_proof(scale, tmp_path):
    net, x = WritesThroughAView(), torch.rand(4, 3, 6) * 3
    assert not torch.allclose(answer(net, x), net.b.bias.expand(3, 4))
    with pytest.raises(InvalidValue, match=r"cannot export WritesThroughAView to ONNX.* never reads its input"):
        sp.export_onnx(net, tmp_path / "net.onnx", x * scale)
