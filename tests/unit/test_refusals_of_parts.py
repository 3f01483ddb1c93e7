"""Refusals that no other test reached, each called at the part that makes it: what came, what is allowed."""

import codecs
import json
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import spikeprune as sp
from nets import conv_net, sgd, train
from spikeprune.cli import bench, export, report, sweep
from spikeprune.core.errors import InvalidValue, MissingDependency, RunFailed, UserError
from spikeprune.core.mask import pack
from spikeprune.core.pattern import nm_pattern
from spikeprune.data.formats import idx
from spikeprune.data.formats.aedat import read_aedat3
from spikeprune.data.formats.cifar import load_plain_pickle
from spikeprune.data.user import _read_batches
from spikeprune.host.objects import resolve_object
from spikeprune.lab.recipe import load
from spikeprune.lab.recipe.squeeze_settings import SqueezeOptions
from spikeprune.lab.study.compare import from_dict
from spikeprune.lab.sweep.sweep import read_sweep
from spikeprune.lab.train import hub, network
from spikeprune.lab.train.by_class import Tally
from spikeprune.lab.train.folder import RunFolder
from spikeprune.lab.train.run import run
from spikeprune.lab.train.squeeze_run import read_masks
from spikeprune.lab.train.together import Together
from spikeprune.methods.deep_r import DeepR
from spikeprune.model.site import ProbeSite
from spikeprune.model.weights import Use
from spikeprune.record.base import Impossible
from spikeprune.record.bench import TimedThreads
from spikeprune.record.checkpoint import check_kinds
from spikeprune.record.packed import FORMAT, read_packed
from spikeprune.record.round import Round
from spikeprune.record.run import ChannelsRecord, DataRecord
from spikeprune.record.tensors import as_safetensors
from spikeprune.shrink.plan import ChannelPlan
from spikeprune.zoo.registry import build

FINISHED = next(iter(sorted((Path(__file__).parents[1] / "fixtures" / "0.1.0" / "finished").iterdir())))
TIMED = {"threads": 1, "clock": "cpu", "rows": []}
ROUND = {"step": 4, "target": 0.5, "kept": 3, "regrown": 1, "rescued": 0, "survived": None}
DATA = {"name": "digits", "counts": {"train": 3, "validation": 0}, "checksum": "c0", "notes": [], "counted": 3}


class _OfAnotherCodec:
    def __reduce__(self):
        return codecs.encode, ("x", "utf8")


def _site(layer, inner):
    use = Use("0.weight", 0, -1, True) if inner else None
    return ProbeSite("0.weight", layer.weight, layer, nn.Tanh(), None, use, inner)


REFUSED = {
    "batches": (lambda: bench.main(["run", "--batch", "two"]), "--batch takes whole numbers such as 1,32, got 'two'"),
    "format": (lambda: export.main(["run", "--to", "word"]), r"'word'.*--to takes nir"),
    "watch": (lambda: report._watch(["run"], 0.1), "--every takes 0.5 to 3600 seconds, got 0.1"),
    "watch long": (lambda: report._watch(["run"], 3601), "--every takes 0.5 to 3600 seconds, got 3601"),
    "share": (lambda: sweep._share("5/3"), "--array must be `print` or K/M with 1 <= K <= M, got '5/3'"),
    "share of none": (lambda: sweep._share("0/3"), "--array must be"),
    "share of words": (lambda: sweep._share("a/b"), "--array must be"),
    "pattern": (lambda: nm_pattern("blocks"), "'blocks'.*or n:m such as '2:4'"),
    "begin": (lambda: sp.Cubic(to=0.5, begin=-1, end=4, every=1), "begin must be >= 0 and every >= 1 step.*begin=-1"),
    "every": (lambda: sp.Cubic(to=0.5, begin=0, end=4, every=0), "begin must be >= 0 and every >= 1 step.*every=0"),
    "packet": (lambda: read_aedat3(b"\x01" * 10, Path("a.aedat")), "a packet's header is cut"),
    "comment": (lambda: read_aedat3(b"#!AER-DAT3", Path("a.aedat")), "its header has no end"),
    "codec": (
        lambda: load_plain_pickle(pickle.dumps({"a": _OfAnotherCodec()}, 2)),
        "encoded as 'utf8', not latin1",
    ),
    "idx": (lambda: idx._parse(Path("a"), bytes((0, 0, 9, 3)) + bytes(16), 3), "no idx header of 3 dimensions"),
    "no batch": (lambda: _read_batches("mine:loaders", []), "mine:loaders returned a split without a single batch"),
    "object": (lambda: resolve_object("json:dumsp"), r"'dumsp'.*'dump'.*in json"),
    "tune": (lambda: SqueezeOptions(tune="3 weeks"), "squeeze.tune: "),
    "comparison": (lambda: from_dict({"schema": 99}), "its schema is 99, not"),
    "torchrun": (
        lambda: run(load("digits", ["--method", "squeeze"]), together=Together(0, 2)),
        "squeeze trains no network, so it runs in one process",
    ),
    "deep-r": (lambda: DeepR(l1=-1.0), "deep-r takes an l1 and a noise of 0 or more, got -1"),
    "image": (
        lambda: build("mlp", size=8)(torch.zeros(2, 3, 8, 8)),
        r"this network takes \[N, 1, 8, 8\].*got \[2, 3, 8, 8\]",
    ),
    "model": (
        lambda: network.build("json:loads", 10, 2, (1, 8, 8), 0),
        "--model json:loads failed: TypeError: .*; see --debug",
    ),
    "no module": (
        lambda: network.build("argparse:Namespace", 10, 2, (1, 8, 8), 0),
        "--model argparse:Namespace must return a torch.nn.Module, got Namespace",
    ),
    "no function": (
        lambda: network.build("string:digits", 10, 2, (1, 8, 8), 0),
        "--model string:digits must be a function that returns a network, got str",
    ),
    "no owner": (lambda: hub.pull("mine", Path("out")), "expected owner/name or a folder that .* made, got 'mine'"),
    "owner of a folder": (lambda: hub.pull("a/b/c", Path("out")), "expected owner/name or a folder .*, got 'a/b/c'"),
    "batch of two processes": (
        lambda: Together(1, 2).recipe_of(load("digits", ["--batch", "1"])).__enter__(),
        "a batch of 1 samples has none for some of 2 processes; raise --batch",
    ),
    "no signature": (
        lambda: network.build("builtins:dict", 10, 2, (1, 8, 8), 0),
        "--model builtins:dict failed: ValueError: no signature found for builtin type .*; see --debug",
    ),
    "gate": (
        lambda: ChannelPlan((), {"front": (0,)}).apply(nn.Linear(2, 2)),
        "the plan sets the gate 'front', which this model lacks; build the original model",
    ),
    "synapse of another layer": (
        lambda: _site(nn.Bilinear(2, 2, 2), inner=False).per_synapse(torch.relu),
        r"the synapse unit knows Conv and Linear layers, not Bilinear \('0.weight'\); pass exclude",
    ),
    "synapse inside": (
        lambda: _site(nn.Bilinear(2, 2, 2), inner=True).per_synapse(torch.relu),
        "'0.weight' is multiplied with inside of Tanh, where its single synapses cannot be watched",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_one_line(name):
    call, words = REFUSED[name]
    with pytest.raises(UserError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert 20 <= len(str(caught.value)) <= 300


@pytest.mark.parametrize(
    ("read", "words"),
    [
        (lambda: Round.read({**ROUND, "regrown": 4}, "rounds[0]"), r"rounds\[0\]\.regrown is 4, of 3 kept"),
        (lambda: Round.read({**ROUND, "survived": 2}, "rounds[0]"), r"rounds\[0\]\.survived is 2, of 1 regrown"),
        (
            lambda: TimedThreads.read({**TIMED, "clock": "sun"}, "timings[0]"),
            r"gs\[0\]\.clock is 'sun', must be cpu or wall",
        ),
        (lambda: DataRecord.read(DATA, "data"), r"data\.counts\.test is missing"),
        (lambda: DataRecord.read({"name": "digits"}, "data"), r"data\.counts is missing"),
        (
            lambda: ChannelsRecord.read({"before": 9, "after": 3, "groups": {"a": [9, 3, 1]}, "layers": {}}, "small"),
            r"small\.groups\.a has 3 entries, must have 2",
        ),
    ],
)
def test_an_impossible_record_is_named(read, words):
    with pytest.raises(Impossible, match=words):
        read()


def test_their_honest_neighbours_are_read():
    assert Round.read(ROUND, "rounds[0]").regrown == 1
    assert TimedThreads.read({**TIMED, "clock": "wall"}).clock == "wall"
    assert DataRecord.read({**DATA, "counts": {**DATA["counts"], "test": 0}}, "data").counted == 3
    assert DeepR(l1=0.0, noise=0.0).l1 == 0
    assert sweep._share("3/3") == (3, 3)


def test_a_score_of_no_batch_is_none():
    tally = Tally()
    with pytest.raises(ValueError, match="no batch was counted; give at least one"):
        tally.scores()
    tally.add(torch.tensor([1, 0, 1]), torch.tensor([1, 1, 1]), classes=2)
    assert (tally.scores().right, tally.scores().images) == ((0, 2), (0, 3))


def test_an_error_of_ours_in_the_user_s_function_stays_what_it_is(monkeypatch):
    def build(size):
        raise InvalidValue(f"size must be a multiple of 3, got {size}")

    monkeypatch.setitem(sys.modules, "nets_of_the_user", SimpleNamespace(build=build))
    with pytest.raises(InvalidValue, match=r"^size must be a multiple of 3, got 8$"):
        network.build("nets_of_the_user:build", 10, 2, (1, 8, 8), 0)


@pytest.mark.parametrize("content", [[torch.ones(2)], {"model": [1]}, {"a": torch.ones(2), "epoch": 3}, torch.ones(3)])
def test_a_checkpoint_that_is_no_state_dict_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"weights\.pt holds no state_dict .*; save model\.state_dict\(\)"):
        network.load_weights(nn.Linear(2, 2), str(tmp_path / "weights.pt"))


@pytest.mark.parametrize("tensors", [{}, {"a": torch.ones(2)}, {"a": torch.ones(2).bool(), "b": torch.ones(2).int()}])
def test_a_file_without_masks_is_not_squeezed_by(tensors, tmp_path):
    file = tmp_path / "masks.safetensors"
    file.write_bytes(bytes(as_safetensors({"a": torch.ones(2).bool()})))
    assert read_masks(file)["a"].tolist() == [True, True]
    file.write_bytes(bytes(as_safetensors(tensors)))
    with pytest.raises(UserError, match=r"holds no masks \(true or false for each weight\); give a masks\.safetensors"):
        read_masks(file)


def test_without_tensorboard_the_install_line_is_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingDependency, match=r"try: pip install 'spikeprune\[tensorboard\]'"):
        run(load("digits", ["--tensorboard", "true", "--out", str(tmp_path / "runs")]))
    assert not list(tmp_path.iterdir())


def test_a_module_that_fails_while_it_is_imported_is_told(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "fails_at_import.py").write_text("1 / 0")
    (tmp_path / "lacks_a_module.py").write_text("import no_such_module_anywhere")
    with pytest.raises(UserError, match="importing 'fails_at_import' failed: ZeroDivisionError"):
        resolve_object("fails_at_import:net")
    with pytest.raises(UserError, match=r"importing 'lacks_a_module' failed: .*no_such_module_anywhere"):
        resolve_object("lacks_a_module:net")


def test_a_pruner_state_of_another_version_or_kind_is_refused():
    model = conv_net()
    optimizer = sgd(model)
    schedule = sp.Cubic(to=0.5, end=4, every=2)
    pruner = sp.Pruner(model, "magnitude", schedule).attach(optimizer)
    train(model, optimizer, 2)
    state = pruner.state_dict()
    check_kinds(state)
    check_kinds({**state, "step": 2**53 - 1, "joined": 2**53 - 1, "began": 1})  # what a float holds exactly
    for change, words in (
        ({"joined": 3}, "joined is 3"), ({"joined": 1.0}, "joined is 1.0"), ({"step": 2**53}, "step is 90071992547409"),
        ({"began": 1.01}, "began is 1.01"), ({"masks": [1]}, "masks is no mapping of names but list"),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=words):
            check_kinds({**state, **change})
    with pytest.raises(UserError, match="pruner state has version 99, this library reads"):
        sp.Pruner(conv_net(), "magnitude", schedule).load_state_dict({**state, "version": 99})


@pytest.mark.parametrize("spoilt", [{"shapes": '{"a": [-3]}'}, {"values": torch.ones(1)}, {"values": torch.ones(1, 2)}])
def test_a_packed_network_that_contradicts_itself_is_damaged(spoilt, tmp_path):
    mask = torch.tensor([True, False, True])

    def write(values=None, shapes='{"a": [3]}'):
        values = torch.tensor([4.0, 5.0]) if values is None else values
        content = as_safetensors({"a.mask": pack(mask), "a.values": values}, {"format": FORMAT, "shapes": shapes})
        (tmp_path / "net").write_bytes(bytes(content))
        return read_packed(tmp_path / "net")

    assert write()[0]["a"].tolist() == [4.0, 0.0, 5.0]
    with pytest.raises(UserError, match="is damaged; `spikeprune export RUN --to safetensors` writes it anew"):
        write(**spoilt)


@pytest.mark.parametrize("shape", ["-1", "0.0", "false"])
def test_sizes_of_a_packed_network_are_whole_numbers_from_0_on(shape, tmp_path):
    """Each of them multiplies to a tensor of nothing, which no bit and no value would contradict."""
    nothing = {"a.mask": torch.zeros(0, dtype=torch.uint8), "a.values": torch.zeros(0)}
    for size in ("0", shape):
        facts = {"format": FORMAT, "shapes": f'{{"a": [{size}]}}'}
        (tmp_path / size).write_bytes(bytes(as_safetensors(nothing, facts)))
    assert read_packed(tmp_path / "0")[0]["a"].shape == (0,)
    with pytest.raises(UserError, match="is damaged"):
        read_packed(tmp_path / shape)


def test_folders_and_files_in_the_way_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "s.yaml").write_text("model: mlp\ndata: {name: digits}\nmethods: [magnitude]\nseeds: [0]\n")
    found = read_sweep(str(tmp_path / "s.yaml"), ["--out", str(tmp_path / "file" / "runs")])
    with pytest.raises(UserError, match=r"cannot make the folder .*: Not a directory; try another --out"):
        found.save()
    with pytest.raises(UserError, match=r"cannot make the run folder .*: Not a directory; try another --out"):
        RunFolder(tmp_path / "file" / "run").open({})
    folder = RunFolder(tmp_path)
    folder.checkpoints.write_text("")
    with pytest.raises(UserError, match="is a file; remove it, or use another --out"):
        folder.save_checkpoint("last", {})


def test_what_the_hub_answers_and_what_is_there_already_are_told(tmp_path, monkeypatch):
    finished = RunFolder(FINISHED)
    hub.stage(finished, tmp_path / "staged")
    assert json.loads(hub.pull(str(tmp_path / "staged"), tmp_path / "out").record.read_text())["schema"]
    with pytest.raises(UserError, match="exists already; move it away, or use another --out"):
        hub.pull(str(tmp_path / "staged"), tmp_path / "out")

    def fail(*_, **__):
        raise OSError("no route\nto the host")

    monkeypatch.setattr(hub, "_hub", lambda: SimpleNamespace(HfApi=fail, snapshot_download=fail))
    with pytest.raises(RunFailed, match="mine/net was not pushed: no route to the host"):
        hub.push(finished, "mine/net", True, tmp_path / "again")
    with pytest.raises(RunFailed, match="mine/net was not pulled: no route to the host"):
        hub.pull("mine/net", tmp_path / "other")
