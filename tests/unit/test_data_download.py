"""Downloading through the user's own torchvision, which stands in here as a module of the same shape."""

import gzip
import struct
import sys
import urllib.error
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from spikeprune.core.errors import MissingDependency, UserError
from spikeprune.data import load


def write_mnist(root: Path) -> None:
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for prefix, count in (("train", 20), ("t10k", 10)):
        images = struct.pack(">4B3I", 0, 0, 8, 3, count, 28, 28) + bytes(count * 28 * 28)
        labels = struct.pack(">4BI", 0, 0, 8, 1, count) + (np.arange(count, dtype=np.uint8) % 10).tobytes()
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))


def stand_in(monkeypatch: pytest.MonkeyPatch, action: Callable[[Path], None]) -> list[str]:
    """A torchvision whose MNIST does `action`; returns the roots it was called with."""
    calls: list[str] = []

    def mnist(root: str, download: bool) -> None:
        assert download
        calls.append(root)
        print("Downloading http://...")
        action(Path(root))

    package, datasets = ModuleType("torchvision"), ModuleType("torchvision.datasets")
    datasets.MNIST = mnist
    package.datasets = datasets
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)
    return calls


def test_what_is_missing_is_fetched_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = stand_in(monkeypatch, write_mnist)
    root = tmp_path / "new"
    assert load("mnist", root, download=True).counts["test"] == 10
    assert load("mnist", root, download=True).counts["test"] == 10
    assert calls == [str(root)]
    assert capsys.readouterr().out == ""


def fail(error: Exception) -> Callable[[Path], None]:
    def action(root: Path) -> None:
        raise error

    return action


@pytest.mark.parametrize(
    "error", [urllib.error.URLError("no route"), RuntimeError("Error downloading x"), TimeoutError("late")]
)
def test_without_a_network_the_missing_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    stand_in(monkeypatch, fail(error))
    with pytest.raises(UserError, match=r"download failed .*no train-images-idx3-ubyte") as caught:
        load("mnist", tmp_path, download=True)
    assert len(str(caught.value)) <= 300


def test_a_download_that_brings_too_little_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, lambda root: None)
    with pytest.raises(UserError, match="no train-images-idx3-ubyte"):
        load("mnist", tmp_path, download=True)


def test_an_absent_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(MissingDependency, match="needs torchvision, which does not import here") as caught:
        load("cifar10", tmp_path, download=True)
    assert len(str(caught.value)) <= 300


def test_a_torchvision_built_for_another_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "torchvision"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    with pytest.raises(MissingDependency, match=r"does not import here \(RuntimeError\)"):
        load("cifar100", tmp_path, download=True)


def test_data_without_a_downloader(tmp_path: Path) -> None:
    for name in ("nmnist", "tiny-imagenet", "image-folder"):
        with pytest.raises(UserError, match=f"{name} has no downloader") as caught:
            load(name, tmp_path, download=True)
        assert len(str(caught.value)) <= 300
