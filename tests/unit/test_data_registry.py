"""A dataset is one file: with it in a folder it is listed, found, checked and read; nothing else is edited."""

import gzip
import hashlib
import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

import spikeprune
import spikeprune as sp
from forked import Forked
from spikeprune.core.errors import InvalidValue, UserError
from spikeprune.data import Facts, Request, Source, Split, known_dataset, load, names, registry
from spikeprune.data.formats.files import all_published
from spikeprune.data.registry import KnownDataset, other_owner
from spikeprune.host.plugins import import_folders
from spikeprune.lab.recipe import load as load_recipe

SRC = Path(spikeprune.__file__).parent
TOY = """
import torch
from spikeprune.data import Facts, Source, Split, register

@register("toy", facts=Facts((1, 2, 2), 2, train=4, test=2), cite="ours", license="MIT", needs_files=False)
def read(request):
    labels = torch.tensor([0, 1, 0, 1])
    images = torch.arange(16, dtype=torch.uint8).reshape(4, 1, 2, 2)
    return Source(Split(images, labels), Split(images[:2], labels[:2]), request.facts.labels)
"""


def write_kmnist(folder: Path, side: int = 28) -> None:
    folder.mkdir(parents=True)
    for prefix, count in (("train", 20), ("t10k", 10)):
        pixels = np.random.default_rng(count).integers(0, 256, (count, side, side), dtype=np.uint8)
        images = struct.pack(">4B3I", 0, 0, 8, 3, count, side, side) + pixels.tobytes()
        labels = struct.pack(">4BI", 0, 0, 8, 1, count) + (np.arange(count, dtype=np.uint8) % 10).tobytes()
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))


def test_kmnist_is_read_from_its_own_layout(tmp_path: Path) -> None:
    write_kmnist(tmp_path / "KMNIST" / "raw")
    data = load("kmnist", tmp_path, validation=0.1)
    assert data.counts == {"train": 18, "validation": 2, "test": 10}
    assert data.classes == ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
    assert data.published is False
    assert data.notes[0] == "20 of 60,000 training samples present"
    expected = np.random.default_rng(10).integers(0, 256, (10, 28, 28), dtype=np.uint8)
    assert torch.equal(data.test.inputs[:, 0], torch.from_numpy(expected))


@pytest.mark.parametrize("name", [name for name in names() if name != "digits"])
def test_no_other_file_names_a_dataset(name: str) -> None:
    """The one exception is `digits`, the default of recipes."""
    own = name.replace("-", "_") + ".py"
    word = re.compile(rf"""["']{re.escape(name)}["']""")
    holders = [path for path in SRC.rglob("*.py") if word.search(path.read_text())]
    assert [path.name for path in holders] == [own]


def test_a_file_in_a_folder_of_the_user_s_is_listed_checked_and_trained_on(tmp_path: Path) -> None:
    (tmp_path / "toy_data.py").write_text(TOY)

    def use_it() -> None:
        registry._load_all.cache_clear()
        assert load_recipe("digits", ["--data.name", "toy"]).data.name == "toy"
        data = load("toy", validation=0.0)
        print(json.dumps([sp.datasets(), data.counts, data.classes, data.notes]))

    done = Forked(use_it, {"SPIKEPRUNE_DATASETS": str(tmp_path)}).wait()
    assert done.status == 0, done.stderr
    listed, counts, classes, notes = json.loads(done.stdout)
    assert listed == sorted([*names(), "toy"])
    assert counts == {"train": 4, "validation": 0, "test": 2}
    assert (classes, notes) == (["0", "1"], [])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (('cite="ours", ', ""), r"dataset file .*toy_data\.py cannot be imported: TypeError.*'cite'"),
        (("((1, 2, 2), 2,", '((1, 2, 2), 2, names=("a",),'), "1 class names for 2 classes"),
        (("(1, 2, 2), 2", "(1, 2, 2), 0"), "sizes of at least 1"),
        (('"toy"', '"Toy set"'), "its name takes a-z"),
        (('license="MIT"', 'license=""'), "needs cite and license"),
    ],
)
def test_what_is_forgotten_in_a_registration_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: tuple[str, str], text: str
) -> None:
    assert change[0] in TOY
    (tmp_path / "toy_data.py").write_text(TOY.replace(*change))
    monkeypatch.setenv("SPIKEPRUNE_DATASETS", str(tmp_path))
    with pytest.raises(UserError, match=text) as caught:
        import_folders("SPIKEPRUNE_DATASETS", "dataset")
    assert 20 <= len(str(caught.value)) <= 300 + len(str(tmp_path))
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize("second", ["toy_data.py", "other_data.py"])
def test_two_files_that_give_a_dataset_the_same_name_are_told(tmp_path: Path, monkeypatch, second: str) -> None:
    monkeypatch.setattr(registry, "_DATASETS", dict(registry._DATASETS))
    paths = [tmp_path / "a" / "toy_data.py", tmp_path / "b" / second]
    for path in paths:
        path.parent.mkdir()
        path.write_text(TOY)
    monkeypatch.setenv("SPIKEPRUNE_DATASETS", str(paths[0].parent))
    for _ in range(2):  # a file that is read again is the same dataset
        import_folders("SPIKEPRUNE_DATASETS", "dataset")
    monkeypatch.setenv("SPIKEPRUNE_DATASETS", str(paths[1].parent))
    with pytest.raises(InvalidValue, match=r"two datasets are named 'toy', in .*; rename one of them") as caught:
        import_folders("SPIKEPRUNE_DATASETS", "dataset")
    assert all(str(path) in str(caught.value) for path in paths)


def test_a_folder_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPIKEPRUNE_DATASETS", "nowhere")
    with pytest.raises(UserError, match="SPIKEPRUNE_DATASETS names nowhere, which is no folder"):
        import_folders("SPIKEPRUNE_DATASETS", "dataset")


def known(facts: Facts | None, read: object = None) -> KnownDataset:
    return KnownDataset("toy", read or (lambda request: None), facts, "ours", "MIT", "", None)  # type: ignore[arg-type]


def test_a_reader_is_held_against_its_facts() -> None:
    labels = torch.tensor([0, 1])
    source = Source(Split(torch.zeros(2, 1, 3, 3), labels), Split(torch.zeros(2, 1, 3, 3), labels), ("a", "b"))
    assert known(Facts((1, 3, 3), 2, 2, 2)).check(source) is source
    part = Split(torch.rand(4, 13), labels.repeat(2))
    features = Source(part, part, ("a", "b"))
    assert known(Facts((13,), 2, 4, 4)).check(features) is features
    with pytest.raises(InvalidValue, match="this reader needs images, and the facts say features of shape"):
        _ = Facts((13,), 2, 4, 4).image
    assert known(None).check(source) is source
    with pytest.raises(InvalidValue, match=r"registered with samples of shape \(1, 4, 4\).*gave \(1, 3, 3\)"):
        known(Facts((1, 4, 4), 2, 2, 2)).check(source)
    with pytest.raises(InvalidValue, match="over time, but its reader"):
        known(Facts((1, 3, 3), 2, 2, 2, time_first=True)).check(source)
    with pytest.raises(InvalidValue, match="must return a Source, got NoneType"):
        known(None).check(None)
    assert known(Facts((1, 3, 3), 3, 2, 2)).check(source) is source  # a folder may hold a part of the classes
    more = Source(source.train, source.test, ("a", "b", "c"))
    with pytest.raises(InvalidValue, match="toy is registered with 2 classes, but its reader named 3"):
        known(Facts((1, 3, 3), 2, 2, 2)).check(more)
    source.classes = 2  # after the constructor, whose types are checked in tests alone
    with pytest.raises(InvalidValue, match="names of its classes as a tuple of texts, got 2; tuple"):
        known(None).check(source)
    with pytest.raises(InvalidValue, match="registered without facts"):
        _ = Request(known(None), Path(), 1).facts


def test_images_of_another_size_are_not_called_damaged(tmp_path: Path) -> None:
    write_kmnist(tmp_path / "raw", side=32)
    with pytest.raises(InvalidValue, match=r"32x32, not 28x28 as kmnist is registered") as caught:
        load("kmnist", tmp_path)
    assert "damaged" not in str(caught.value)


def test_a_file_of_another_dataset_is_known_by_its_sum() -> None:
    fashion = known_dataset("fashion-mnist")
    md5 = fashion.checksums["train-labels-idx1-ubyte.gz"]
    assert other_owner(known_dataset("kmnist"), md5) == "fashion-mnist"
    assert other_owner(fashion, md5) is None
    assert other_owner(fashion, "0" * 32) is None


def test_a_file_of_another_dataset_is_refused_and_not_called_damaged(tmp_path: Path, monkeypatch) -> None:
    write_kmnist(tmp_path / "KMNIST" / "raw")
    name = "train-images-idx3-ubyte.gz"
    md5 = hashlib.md5((tmp_path / "KMNIST" / "raw" / name).read_bytes()).hexdigest()
    load("kmnist", tmp_path)
    toy = KnownDataset("toy", lambda request: None, None, "ours", "MIT", "", None, {name: md5})
    monkeypatch.setitem(registry._DATASETS, "toy", toy)
    with pytest.raises(InvalidValue, match=r"ubyte\.gz is a file of toy, not of kmnist; pass the folder") as caught:
        load("kmnist", tmp_path)
    assert "damaged" not in str(caught.value)


def test_a_sum_that_is_not_registered_is_unknown() -> None:
    request = Request(known_dataset("kmnist"), Path(), 1)
    assert request.published("train-images-idx3-ubyte", "0") is None
    assert request.published("train-images-idx3-ubyte.gz", "0") is False
    assert request.published("train-images-idx3-ubyte.gz", "bdb82020997e1d708af4cf47b453dcf7") is True
    assert [all_published(sums) for sums in ([True, True], [True, None], [None, False])] == [True, None, False]


def test_a_recipe_takes_the_new_name() -> None:
    assert load_recipe("fashion", ["--data.name", "kmnist"]).data.name == "kmnist"
