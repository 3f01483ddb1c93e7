"""`package.module:loaders`: every form that a user's function may return becomes the same kind of dataset."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset, TensorDataset

from spikeprune.core.errors import InvalidValue, UnknownName
from spikeprune.data import Dataset, Split, load

X = torch.randint(0, 256, (30, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(30) % 3


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], str]:
    """Makes a function (or what it returns) reachable as `userland_data:loaders`."""
    module = ModuleType("userland_data")
    monkeypatch.setitem(sys.modules, "userland_data", module)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def place(result: Any) -> str:
        module.loaders = result if callable(result) else lambda: result
        return "userland_data:loaders"

    return place


class Squares(torch.utils.data.Dataset):
    """A map-style data set that yields (tensor, int), as torchvision's do."""

    classes = ("small", "middle", "large")

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return X[index].float() / 255, index % 3


def test_tensor_pairs(given: Callable[[Any], str]) -> None:
    data = load(given(((X[:20], Y[:20]), (X[20:], Y[20:]))), seed=0, validation=0.1)
    assert data.counts == {"train": 18, "validation": 2, "test": 10}
    assert data.scale == 255.0
    assert data.classes == ("0", "1", "2")
    assert data.published is None
    kept = torch.cat([data.train.inputs, data.validation.inputs])
    assert data.mean == pytest.approx([float(kept.float().mean()) / 255])
    assert torch.equal(data.test.inputs, X[20:])


def test_torch_datasets_are_read_as_they_are(given: Callable[[Any], str]) -> None:
    data = load(given((Squares(), Subset(Squares(), range(5)))), validation=0.0)
    assert torch.equal(data.train.inputs, X.float() / 255)
    assert torch.equal(data.train.labels, Y)
    assert (data.scale, data.mean, data.std) == (1.0, (0.0,), (1.0,))
    assert data.classes == Squares.classes
    assert data.counts == {"train": 30, "validation": 0, "test": 5}


def test_a_shuffling_loader_gives_the_same_data_each_time(given: Callable[[Any], str]) -> None:
    def loaders() -> tuple[DataLoader, DataLoader]:
        train = DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True)
        return train, DataLoader(TensorDataset(X[:5], Y[:5]))

    torch.manual_seed(1)
    one = load(given(loaders))
    torch.manual_seed(2)
    drawn = torch.rand(1)
    torch.manual_seed(2)
    two = load(given(loaders))
    assert torch.equal(torch.rand(1), drawn)  # the caller's random state is left alone
    assert one.checksum == two.checksum
    assert torch.equal(one.train.inputs, two.train.inputs)
    everything = torch.cat([two.train.inputs, two.validation.inputs]).flatten(1)
    assert sorted(everything.tolist()) == sorted(X.flatten(1).tolist())


def test_three_parts_bring_their_own_validation(given: Callable[[Any], str]) -> None:
    parts = ((X[:20], Y[:20]), (X[20:24], Y[20:24]), (X[24:], Y[24:]))
    data = load(given(parts), limit=10)
    assert data.counts == {"train": 10, "validation": 4, "test": 6}
    assert torch.equal(data.validation.inputs, X[20:24])


def test_recordings_become_time_first(given: Callable[[Any], str]) -> None:
    frames = torch.rand(6, 3, 2, 4, 4)  # [N, T, C, H, W]
    stored = DataLoader(TensorDataset(frames, torch.arange(6) % 2), batch_size=4)
    data = load(given((stored, (frames.transpose(0, 1), torch.arange(6) % 2))), validation=0.0)
    assert data.time_first
    assert data.shape == (2, 4, 4)
    assert torch.equal(data.train.inputs, frames.transpose(0, 1))
    assert torch.equal(data.test.inputs, data.train.inputs)


def test_a_dataset_keeps_its_statistics(given: Callable[[Any], str]) -> None:
    whole = Split(X, Y)
    own = Dataset("mine", whole, whole.take(torch.arange(0)), whole, ("a", "b", "c"), 255.0, (0.5,), (0.25,))
    data = load(given(lambda: own), validation=0.2)
    assert (data.mean, data.std, data.classes) == ((0.5,), (0.25,), ("a", "b", "c"))
    assert data.counts == {"train": 24, "validation": 6, "test": 30}
    assert data.name == "userland_data:loaders"


def test_the_function_gets_what_it_names(given: Callable[[Any], str], tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def loaders(root: Path, T: int, epochs: int = 3) -> Any:
        seen.update(root=root, T=T, epochs=epochs)
        return (X, Y), (X, Y)

    load(given(loaders), tmp_path, T=7, seed=4)
    assert seen == {"root": tmp_path, "T": 7, "epochs": 3}


def fails() -> None:
    raise FileNotFoundError("songs.npz")


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (lambda: 5, r"must return .*; got int"),
        (lambda: ((X, Y),), r"got tuple of 1 \(tuple\)"),
        (lambda: ((X, Y), "test"), "one part is str"),
        (lambda: ((X, Y), (X, Y.float())), "labels must be class numbers"),
        (lambda: ((X, Y), (X, torch.nn.functional.one_hot(Y))), r"got shape \[30, 3\]"),
        (lambda: ((X, Y), (X[:5], Y)), "do not fit 30 labels"),
        (lambda: ((X, Y), (X, Y - 1)), "label -1 is outside"),
        (lambda: ((X / 0, Y), (X / 0, Y)), "inputs hold nan or inf"),
        (lambda: ((X, Y), (X[:0], Y[:0])), "test split holds no sample"),
        (lambda: ((X, Y), (X[..., :2], Y)), r"shape and type \[1, 4, 2\]"),
        (lambda: ((X, Y), (X.float(), Y)), r"type .*float32, the train split of .*uint8"),
        (lambda: ((X, Y), DataLoader(TensorDataset(X))), "each batch must be a pair of tensors"),
        (fails, "userland_data:loaders failed: FileNotFoundError: songs.npz"),
        (lambda path: path, "failed: TypeError: .*missing 1 required positional argument"),
    ],
)
def test_what_does_not_fit_is_told(given: Callable[[Any], str], result: Any, text: str) -> None:
    with pytest.raises(InvalidValue, match=text) as caught:
        load(given(result))
    assert 20 <= len(str(caught.value)) <= 300


def test_an_error_of_ours_in_the_user_s_function_stays_what_it_is(given: Callable[[Any], str]) -> None:
    with pytest.raises(UnknownName, match=r"^no dataset named 'cifar1O'; did you mean 'cifar10'"):
        load(given(lambda: load("cifar1O")))


def test_a_name_that_is_no_function(given: Callable[[Any], str]) -> None:
    given(None)
    sys.modules["userland_data"].loaders = 3
    with pytest.raises(InvalidValue, match="must be a function that returns"):
        load("userland_data:loaders")
