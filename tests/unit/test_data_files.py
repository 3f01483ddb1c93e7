"""Readers of files: every layout gives the same tensors, and what is missing or damaged is named.

The files are made here in the formats of the published ones, with few images.
"""

import gzip
import io
import os
import pickle
import shutil
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spikeprune.core.errors import InvalidValue, MissingDependency, UserError
from spikeprune.data import load
from spikeprune.data.formats import files
from spikeprune.data.formats import idx as formats_idx
from spikeprune.data.formats.files import MissingFile, open_tree


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def told(error: BaseException) -> str:
    """The message, which has to be short enough to read."""
    assert isinstance(error, UserError)
    assert 20 <= len(str(error)) <= 300, str(error)
    return str(error)


# ---------------------------------------------------------------------------------------------- idx: (fashion-)mnist


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(folder: Path, packed: bool = True, train: int = 40, test: int = 10) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, count in (("train", train), ("t10k", test)):
        for kind, array in (
            ("images-idx3-ubyte", pixels(count, 28, 28, seed=count)),
            ("labels-idx1-ubyte", np.arange(count, dtype=np.uint8) % 10),
        ):
            content = idx(array)
            path = folder / f"{prefix}-{kind}{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(content) if packed else content)


@pytest.mark.parametrize(
    ("inside", "root"),
    [
        ("FashionMNIST/raw", ""),
        ("FashionMNIST/raw", "FashionMNIST"),
        ("FashionMNIST/raw", "FashionMNIST/raw"),
        ("fashion-mnist", ""),
        ("raw", ""),
        ("", ""),
    ],
)
@pytest.mark.parametrize("packed", [True, False])
def test_idx_is_found_wherever_the_root_points(tmp_path: Path, inside: str, root: str, packed: bool) -> None:
    base = tmp_path / "data"
    write_idx(base / inside, packed)
    data = load("fashion-mnist", base / root, validation=0.1)
    assert data.counts == {"train": 36, "validation": 4, "test": 10}
    assert data.shape == (1, 28, 28)
    assert torch.equal(data.test.inputs[:, 0], torch.from_numpy(pixels(10, 28, 28, seed=10)))
    assert torch.equal(data.test.labels, torch.arange(10))
    assert data.notes == ("40 of 60,000 training samples present", "10 of 10,000 test samples present")
    assert data.published is False
    assert data.classes[0] == "T-shirt/top"


def test_packing_does_not_change_the_checksum_and_two_sets_share_a_root(tmp_path: Path) -> None:
    write_idx(tmp_path / "FashionMNIST" / "raw")
    write_idx(tmp_path / "MNIST" / "raw", packed=False, train=20)
    fashion, mnist = load("fashion-mnist", tmp_path), load("mnist", tmp_path)
    assert (len(fashion.train), len(mnist.train)) == (36, 18)
    write_idx(tmp_path / "unpacked", packed=False)
    assert load("fashion-mnist", tmp_path / "unpacked").checksum == fashion.checksum != mnist.checksum


def test_the_root_may_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx(tmp_path / "MNIST" / "raw")
    monkeypatch.setenv("SPIKEPRUNE_DATA", str(tmp_path))
    assert load("mnist").counts["test"] == 10
    monkeypatch.delenv("SPIKEPRUNE_DATA")
    with pytest.raises(UserError, match="set SPIKEPRUNE_DATA") as caught:
        load("mnist")
    told(caught.value)


@pytest.mark.parametrize("depth", [0, 12])
def test_a_missing_file_says_what_where_and_how(tmp_path: Path, depth: int) -> None:
    root = tmp_path.joinpath(*["a_rather_long_folder_name"] * depth)
    write_idx(root / "MNIST" / "raw")
    (root / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(MissingFile, match="t10k-labels-idx1-ubyte") as caught:
        load("mnist", root)
    message = told(caught.value)
    assert str(root)[-60:] in message
    assert "MNIST/raw" in message
    assert "--data.root" in message
    assert "--data.download" in message


def test_a_root_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "absent", tmp_path / "file"):
        with pytest.raises(UserError, match="is not a folder") as caught:
            load("mnist", root)
        told(caught.value)
    assert not (tmp_path / "absent").exists()


def damage_idx(name: str, change: str, folder: Path) -> None:
    path = folder / name
    content = path.read_bytes()
    plain = gzip.decompress(content)
    changed = {
        "cut": content[: len(content) // 2],
        "empty": b"",
        "flipped": content[:-6] + bytes([content[-6] ^ 255]) + content[-5:],  # within the CRC
        "no gz": plain,
        "short": gzip.compress(plain[:-1]),
        "long": gzip.compress(plain + b"x"),
        "magic": gzip.compress(b"\x00\x00\x0d" + plain[3:]),
        "header only": gzip.compress(plain[:6]),
        "label": gzip.compress(plain[:-1] + b"\x0a"),
        "fewer": gzip.compress(idx(np.zeros(7, np.uint8))),
        "size": gzip.compress(idx(pixels(40, 32, 32))),
    }[change]
    path.write_bytes(changed)


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        ("train-images-idx3-ubyte.gz", "cut", "EOFError"),
        ("train-images-idx3-ubyte.gz", "empty", "header"),
        ("t10k-images-idx3-ubyte.gz", "flipped", "CRC"),
        ("t10k-images-idx3-ubyte.gz", "no gz", "BadGzipFile"),
        ("t10k-images-idx3-ubyte.gz", "short", "7,855 bytes where its header promises 7,856"),
        ("t10k-images-idx3-ubyte.gz", "long", "7,857 bytes where its header promises 7,856"),
        ("train-labels-idx1-ubyte.gz", "magic", "header"),
        ("train-labels-idx1-ubyte.gz", "header only", "header"),
        ("train-labels-idx1-ubyte.gz", "label", r"label 10 is outside 0\.\.9"),
        ("train-labels-idx1-ubyte.gz", "fewer", "7 labels for the 40 images of train-images-idx3-ubyte.gz"),
        ("train-images-idx3-ubyte.gz", "size", "32x32, not 28x28"),
    ],
)
def test_a_damaged_idx_file_is_named(tmp_path: Path, name: str, change: str, text: str) -> None:
    write_idx(tmp_path / "raw")
    damage_idx(name, change, tmp_path / "raw")
    with pytest.raises(InvalidValue, match=text) as caught:
        load("mnist", tmp_path)
    assert name in told(caught.value)


def test_a_packed_idx_file_that_grows_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    """4 kB that hold 4 MB: the header promises one image, and no more than that and a byte is unpacked."""
    write_idx(tmp_path / "raw")
    bomb = gzip.compress(idx(np.zeros((1, 28, 28), np.uint8)) + bytes(4 << 20))
    (tmp_path / "raw" / "train-images-idx3-ubyte.gz").write_bytes(bomb)
    unpacked = []
    monkeypatch.setattr(formats_idx, "ungzipped", lambda *a: unpacked.append(files.ungzipped(*a)) or unpacked[-1])
    with pytest.raises(InvalidValue, match="801 bytes where its header promises 800"):
        load("mnist", tmp_path)
    assert max(map(len, unpacked)) == 801


def test_an_idx_header_of_gigabytes_is_refused(tmp_path):
    write_idx(tmp_path / "raw")
    huge = b"\x00\x00\x08\x03" + (2**31 - 1).to_bytes(4, "big") + (28).to_bytes(4, "big") * 2
    (tmp_path / "raw" / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(huge + bytes(100)))
    with pytest.raises(InvalidValue, match="its header promises 1,683,627,179,264 bytes"):
        load("mnist", tmp_path)


@pytest.mark.parametrize("kind", ["tar.gz", "tar.gz behind its end", "zip"])
def test_an_archive_that_grows_is_refused(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_SMALL", 1 << 20)
    path = tmp_path / f"bomb.{kind.split()[0]}"
    zeros = bytes(2 << 20)
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.bin", zeros)
    else:
        plain = io.BytesIO()
        with tarfile.open(fileobj=plain, mode="w") as tar:
            entry = tarfile.TarInfo("a.bin")
            entry.size = 10 if "end" in kind else len(zeros)
            tar.addfile(entry, io.BytesIO(zeros))
        path.write_bytes(gzip.compress(plain.getvalue() + (zeros if "end" in kind else b"")))
    with pytest.raises(InvalidValue, match="bytes that unpack to more than 1,048,576"):
        files.open_tree(path)


# ------------------------------------------------------------------------------------------------------ cifar10, 100

PER_BATCH = 4


def cifar_arrays(classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Images [24, 3, 32, 32] and labels of five training batches and one test batch."""
    return pixels(6 * PER_BATCH, 3, 32, 32), (np.arange(6 * PER_BATCH) * 3 % classes).astype(np.uint8)


def write_cifar10_batches(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    x, y = cifar_arrays(10)
    for k, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        part = slice(PER_BATCH * k, PER_BATCH * (k + 1))
        held = {"labels": y[part].tolist(), "data": x[part].reshape(PER_BATCH, -1)}
        (folder / name).write_bytes(pickle.dumps(held, protocol=2))
    # as Python 2 wrote it: short strings without a mark of their encoding
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    words = b"".join(b"U" + bytes([len(name)]) + name.encode() for name in names)
    (folder / "batches.meta").write_bytes(b"\x80\x02}(U\x0blabel_names](" + words + b"eu.")


def write_cifar100_batches(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    x, y = cifar_arrays(100)
    cut = 5 * PER_BATCH
    for name, part in (("train", slice(None, cut)), ("test", slice(cut, None))):
        held = {b"fine_labels": y[part].tolist(), b"data": x[part].reshape(-1, 3072), b"coarse_labels": []}
        (folder / name).write_bytes(pickle.dumps(held, protocol=2))
    names = {b"fine_label_names": [f"class {k}".encode() for k in range(100)]}
    (folder / "meta").write_bytes(pickle.dumps(names, protocol=2))


def write_sheets(folder: Path, classes: int, **more: np.ndarray) -> None:
    """2 x 2 tiles a sheet."""
    folder.mkdir(parents=True, exist_ok=True)
    x, y = cifar_arrays(classes)
    sheets = [*(f"data_batch_{i}" if classes == 10 else f"train_{i}" for i in range(1, 6))]
    for k, name in enumerate([*sheets, "test_batch" if classes == 10 else "test"]):
        tiles = x[PER_BATCH * k : PER_BATCH * (k + 1)].reshape(2, 2, 3, 32, 32).transpose(0, 3, 1, 4, 2)
        Image.fromarray(tiles.reshape(64, 64, 3)).save(folder / f"{name}.webp", lossless=True)
    np.savez(folder / "labels.npz", **{"labels" if classes == 10 else "fine": y}, **more)


def pack(folder: Path, archive: Path, level: int = 9) -> None:
    with tarfile.open(archive, "w:gz", compresslevel=level) as tar:
        tar.add(folder, folder.name)
    shutil.rmtree(folder)


@pytest.fixture
def layouts10(tmp_path: Path) -> list[Path]:
    """CIFAR-10 as a folder of batches, the same from inside, packed, and as sheets, from outside and inside."""
    write_cifar10_batches(tmp_path / "one" / "cifar-10-batches-py")
    write_cifar10_batches(tmp_path / "two" / "cifar-10-batches-py")
    pack(tmp_path / "two" / "cifar-10-batches-py", tmp_path / "two" / "cifar-10-python.tar.gz")
    write_sheets(tmp_path / "three" / "cifar10", 10)
    one, three = tmp_path / "one", tmp_path / "three"
    return [one, one / "cifar-10-batches-py", tmp_path / "two", three, three / "cifar10"]


def test_every_layout_of_cifar10_holds_the_same(layouts10: list[Path]) -> None:
    x, y = cifar_arrays(10)
    for root in layouts10:
        data = load("cifar10", root, validation=0.0)
        assert data.counts == {"train": 20, "validation": 0, "test": 4}
        assert torch.equal(data.train.inputs, torch.from_numpy(x[:20]))
        assert torch.equal(data.test.labels, torch.from_numpy(y[20:].astype(np.int64)))
        assert data.classes[:2] == ("airplane", "automobile")
        assert data.notes == ("20 of 50,000 training samples present", "4 of 10,000 test samples present")
    assert len({load("cifar10", root).checksum for root in layouts10}) == 1


def test_every_layout_of_cifar100_holds_the_same(tmp_path: Path) -> None:
    write_cifar100_batches(tmp_path / "one" / "cifar-100-python")
    write_cifar100_batches(tmp_path / "two" / "cifar-100-python")
    pack(tmp_path / "two" / "cifar-100-python", tmp_path / "two" / "cifar-100-python.tar.gz")
    named = np.array([f"class {k}" for k in range(100)])
    write_sheets(tmp_path / "three" / "cifar100", 100, fine_names=named)
    found = [load("cifar100", tmp_path / root, validation=0.0) for root in ("one", "two", "three")]
    found.append(load("cifar100", tmp_path / "one" / "cifar-100-python", validation=0.0))
    for data in found:
        assert torch.equal(data.train.inputs, torch.from_numpy(cifar_arrays(100)[0][:20]))
        assert data.classes[99] == "class 99"
        assert data.checksum == found[0].checksum


def test_absent_images_of_a_sheet_are_dropped_and_stated(tmp_path: Path) -> None:
    present = np.ones(24, bool)
    present[[0, 7, 22]] = False
    write_sheets(tmp_path / "cifar10", 10, present=present)
    data = load("cifar10", tmp_path, validation=0.0)
    x, y = cifar_arrays(10)
    keep = [n for n in range(20) if n not in (0, 7)]
    assert torch.equal(data.train.inputs, torch.from_numpy(x[keep]))
    assert torch.equal(data.train.labels, torch.from_numpy(y[keep].astype(np.int64)))
    assert data.notes == ("18 of 50,000 training samples present", "3 of 10,000 test samples present")


def test_old_numpy_addresses_in_a_batch_are_read(tmp_path: Path) -> None:
    """The published files name numpy.core.multiarray, which newer NumPy calls numpy._core.multiarray."""
    write_cifar10_batches(tmp_path)
    for path in tmp_path.glob("*batch_*"):
        content = path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
        path.write_bytes(content)
    assert torch.equal(
        load("cifar10", tmp_path, validation=0.0).train.inputs, torch.from_numpy(cifar_arrays(10)[0][:20])
    )


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_a_hostile_batch_runs_nothing(tmp_path: Path) -> None:
    write_cifar10_batches(tmp_path / "data")
    trap = tmp_path / "trapped"
    hostile = pickle.dumps({"data": Hostile(trap)}, protocol=2)
    (tmp_path / "data" / "data_batch_3").write_bytes(hostile)
    with pytest.raises(InvalidValue, match=r"asks to load posix\.mkdir|nt\.mkdir") as caught:
        load("cifar10", tmp_path / "data")
    told(caught.value)
    assert not trap.exists()
    pickle.loads(hostile)
    assert trap.exists()  # the trap is a real one


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("data_batch_2", b"", "EOFError"),
        ("data_batch_2", b"\x80\x02}", "EOFError|Unpickling"),
        ("test_batch", pickle.dumps([1, 2], protocol=2), "dict of arrays"),
        ("test_batch", pickle.dumps({"labels": [1]}, protocol=2), "KeyError"),
        ("test_batch", pickle.dumps({"labels": [1], "data": np.zeros((1, 9), np.uint8)}, 2), r"not bytes \[n, 3072\]"),
        ("test_batch", pickle.dumps({"labels": [1, 2], "data": np.zeros((1, 3072), np.uint8)}, 2), "for 1 images"),
        ("test_batch", pickle.dumps({"labels": [10], "data": np.zeros((1, 3072), np.uint8)}, 2), "label 10 is outside"),
        ("batches.meta", pickle.dumps({b"label_names": [b"cat"]}, 2), "1 class names, not 10"),
    ],
)
def test_a_damaged_batch_is_named(tmp_path: Path, name: str, content: bytes, text: str) -> None:
    write_cifar10_batches(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidValue, match=text) as caught:
        load("cifar10", tmp_path)
    if "dict of arrays" not in text:
        assert name in told(caught.value)


def test_a_cut_archive_and_a_missing_batch_are_named(tmp_path: Path) -> None:
    write_cifar10_batches(tmp_path / "one" / "cifar-10-batches-py")
    (tmp_path / "one" / "cifar-10-batches-py" / "data_batch_4").unlink()
    with pytest.raises(MissingFile, match="no data_batch_4 in"):
        load("cifar10", tmp_path / "one")
    write_cifar10_batches(tmp_path / "cifar-10-batches-py")
    archive = tmp_path / "cifar-10-python.tar.gz"
    pack(tmp_path / "cifar-10-batches-py", archive)
    archive.write_bytes(archive.read_bytes()[:-3000])
    with pytest.raises(InvalidValue, match=r"cifar-10-python\.tar\.gz cannot be read") as caught:
        load("cifar10", tmp_path)
    told(caught.value)
    write_cifar10_batches(tmp_path / "cifar-10-batches-py")
    pixels = (tmp_path / "cifar-10-batches-py" / "data_batch_3").read_bytes()[-2000:-1900]
    pack(tmp_path / "cifar-10-batches-py", archive, level=0)
    content = bytearray(archive.read_bytes())
    content[content.index(pixels)] ^= 1  # a pixel of some image, where only the sum at the end can tell
    archive.write_bytes(bytes(content))
    with pytest.raises(InvalidValue, match=r"cifar-10-python\.tar\.gz cannot be read.*CRC"):
        load("cifar10", tmp_path)
    with pytest.raises(MissingFile, match=r"cifar100: no cifar-100-python/, .* or test\.webp in") as caught:
        load("cifar100", tmp_path)
    told(caught.value)


def test_damaged_sheets_and_labels_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "cifar10"
    write_sheets(folder, 10)
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}

    def message(name: str, content: bytes | None) -> str:
        for file, original in whole.items():
            (folder / file).write_bytes(original)
        (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
        with pytest.raises(UserError) as caught:
            load("cifar10", tmp_path)
        assert name in told(caught.value)
        return str(caught.value)

    def npz(**arrays: np.ndarray) -> bytes:
        file = io.BytesIO()
        np.savez(file, **arrays)
        return file.getvalue()

    def webp(width: int, height: int) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (width, height)).save(file, "webp")
        return file.getvalue()

    labels = cifar_arrays(10)[1]
    assert "no data_batch_2.webp in" in message("data_batch_2.webp", None)
    assert "damaged or cut" in message("data_batch_2.webp", whole["data_batch_2.webp"][:200])
    assert "do not hold 4 tiles" in message("test_batch.webp", webp(64, 32))
    assert "do not hold 4 tiles" in message("test_batch.webp", webp(65, 64))
    assert "no labels.npz in" in message("labels.npz", None)
    assert "damaged or cut" in message("labels.npz", whole["labels.npz"][:100])
    assert "it holds fine, but not labels" in message("labels.npz", npz(fine=labels))
    assert "23 labels" in message("labels.npz", npz(labels=labels[:23]))
    assert "label 255 is outside" in message("labels.npz", npz(labels=labels + np.uint8(255 - labels[0])))


def test_without_pillow_the_install_line_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sheets(tmp_path / "cifar10", 10)
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(MissingDependency, match=r"pip install 'spikeprune\[images\]'"):
        load("cifar10", tmp_path)


# ------------------------------------------------------------------------------------------- folders of image files


def write_image(path: Path, width: int = 64, height: int = 64, mode: str = "RGB", value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (width, height), value if mode == "L" else (value,) * 3).save(path, "png")


def write_tiny(folder: Path, *, refoldered: bool) -> None:
    """Three classes, whose order in wnids.txt is not alphabetical; two training images and one test image each."""
    lines = []
    for k, wnid in enumerate(("n03", "n01", "n02")):
        for image in range(2):
            inside = f"{wnid}_{image}.JPEG" if refoldered else f"images/{wnid}_{image}.JPEG"
            write_image(folder / "train" / wnid / inside, mode="L" if k == 0 else "RGB", value=10 * k + image)
        where = f"val/{wnid}" if refoldered else "val/images"
        write_image(folder / where / f"val_{k}.JPEG", value=100 + k)
        lines.append(f"val_{k}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    lines.append("val_9999.JPEG\tn01\t0\t0\t62\t62\n")  # a part of the images is accepted
    if not refoldered:
        (folder / "val" / "val_annotations.txt").write_text("".join(lines))
        (folder / "wnids.txt").write_text("n03\nn01\nn02\nn04\n")


def test_tiny_imagenet_in_both_layouts(tmp_path: Path) -> None:
    write_tiny(tmp_path / "one" / "tiny-imagenet-200", refoldered=False)
    write_tiny(tmp_path / "two", refoldered=True)
    with zipfile.ZipFile(tmp_path / "tiny-imagenet-200.zip", "w") as archive:
        for path in sorted((tmp_path / "one").rglob("*")):
            archive.write(path, path.relative_to(tmp_path / "one"))
    original, refoldered = (load("tiny-imagenet", tmp_path / root, validation=0.0) for root in ("one", "two"))
    packed = load("tiny-imagenet", tmp_path, validation=0.0)
    for data in (original, refoldered, packed):
        assert data.shape == (3, 64, 64)
        assert data.counts == {"train": 6, "validation": 0, "test": 3}
        # alphabetical: n01, n02, n03 were written as k = 1, 2, 0
        assert data.train.inputs[:, 0, 0, 0].tolist() == [10, 11, 20, 21, 0, 1]
        assert data.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
        assert sorted(zip(data.test.inputs[:, 2, 5, 5].tolist(), data.test.labels.tolist(), strict=True)) == [
            (100, 2),
            (101, 0),
            (102, 1),
        ]
        assert "6 of 100,000 training samples present" in data.notes
    assert original.checksum == packed.checksum
    assert original.classes == ("n01", "n02", "n03", "n04")
    assert "4 of 200 classes present" in original.notes
    assert "3 of 200 classes present" in refoldered.notes


def test_tiny_imagenet_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match=r"no tiny-imagenet-200/train or .*\.zip in"):
        load("tiny-imagenet", tmp_path)
    folder = tmp_path / "tiny-imagenet-200"
    write_tiny(folder, refoldered=False)
    bad = folder / "train" / "n01" / "images" / "n01_1.JPEG"
    for content in (b"", b"no image", bad.read_bytes()[:60]):
        bad.write_bytes(content)
        with pytest.raises(InvalidValue, match=r"n01_1\.JPEG cannot be read") as caught:
            load("tiny-imagenet", tmp_path)
        told(caught.value)
    write_image(bad, 32, 64)
    with pytest.raises(InvalidValue, match=r"n01_1\.JPEG .*32x64 pixels, not 64x64"):
        load("tiny-imagenet", tmp_path)
    write_image(bad)
    (folder / "train").rename(folder / "elsewhere")
    (folder / "train").mkdir()
    with pytest.raises(MissingFile, match=r"no train/<class>/images in .*-200; pass --data\.root") as caught:
        load("tiny-imagenet", tmp_path)
    told(caught.value)
    (folder / "train").rmdir()
    (folder / "elsewhere").rename(folder / "train")
    (folder / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn77\t0\t0\t62\t62\n")
    with pytest.raises(InvalidValue, match="images of class 'n77'") as caught:
        load("tiny-imagenet", tmp_path)
    told(caught.value)
    wnids = (folder / "wnids.txt").read_bytes()
    (folder / "wnids.txt").write_bytes(wnids[:9])
    with pytest.raises(InvalidValue, match=r"class 'n02', which .*wnids\.txt lacks") as caught:
        load("tiny-imagenet", tmp_path)
    told(caught.value)
    (folder / "wnids.txt").write_bytes(wnids)
    (folder / "val" / "val_annotations.txt").write_text("val_0.JPEG\n")
    with pytest.raises(InvalidValue, match="line 1 names no class"):
        load("tiny-imagenet", tmp_path)
    shutil.rmtree(folder / "val")
    with pytest.raises(MissingFile, match=r"no val/<class>/ or val/val_annotations\.txt"):
        load("tiny-imagenet", tmp_path)


def test_an_image_folder_of_one_size(tmp_path: Path) -> None:
    for part, count in (("train", 3), ("val", 1)):
        for k, name in enumerate(("cats", "dogs")):
            for image in range(count):
                write_image(tmp_path / part / name / f"{image}.png", 6, 4, value=20 * k + image)
    (tmp_path / "train" / "cats" / ".DS_Store").write_text("")
    (tmp_path / "train" / "cats" / "notes.txt").write_text("not an image")
    data = load("image-folder", tmp_path, validation=0.0)
    assert data.shape == (3, 4, 6)
    assert data.classes == ("cats", "dogs")
    assert data.train.inputs[:, 0, 0, 0].tolist() == [0, 1, 2, 20, 21, 22]
    assert data.test.labels.tolist() == [0, 1]
    assert data.notes == ()


def test_an_image_folder_of_several_sizes_is_resized_and_says_so(tmp_path: Path) -> None:
    write_image(tmp_path / "train" / "a" / "big.png", 9, 6, "L", 7)
    write_image(tmp_path / "train" / "b" / "small.png", 4, 5, "L", 9)
    write_image(tmp_path / "test" / "b" / "deep" / "wide.png", 8, 5, "L", 11)
    write_image(tmp_path / "val" / "a" / "other.png", 4, 4, "L", 13)
    wide = np.zeros((5, 8), np.uint8)
    wide[:, :4] = 200  # left half bright; the centred square of 5x5 covers columns 1..5
    Image.fromarray(wide).save(tmp_path / "test" / "b" / "deep" / "wide.png")
    data = load("image-folder", tmp_path, validation=0.1)
    assert data.shape == (1, 4, 4)  # all grey; the smallest side of any image is 4
    assert data.notes == ("images of 4 sizes: centred square, bilinear to 4x4",)
    assert data.counts == {"train": 2, "validation": 1, "test": 1}
    assert data.train.inputs.flatten(1).unique(dim=1).tolist() == [[7], [9]]
    row = data.test.inputs[0, 0, 0]
    assert row[0] == 200  # columns 1..3 of the square are bright, 4 and 5 are dark
    assert row[3] == 0


def test_an_image_folder_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="no train/<class>/<image> in") as caught:
        load("image-folder", tmp_path)
    told(caught.value)
    write_image(tmp_path / "train" / "a" / "1.png")
    with pytest.raises(MissingFile, match=r"no test/<class>/<image> or val/") as caught:
        load("image-folder", tmp_path)
    told(caught.value)
    write_image(tmp_path / "test" / "z" / "1.png")
    with pytest.raises(InvalidValue, match=r"images of class 'z'.*every class needs training images") as caught:
        load("image-folder", tmp_path)
    told(caught.value)
    (tmp_path / "test" / "z").rename(tmp_path / "test" / "a")
    Image.new("I;16", (64, 64)).save(tmp_path / "train" / "a" / "1.png")
    with pytest.raises(InvalidValue, match=r"1\.png .*pixels of mode I;16"):
        load("image-folder", tmp_path)


# ------------------------------------------------------------------------------------------------------------ nmnist


def events(entries: list[tuple[int, int, int, int]]) -> bytes:
    """(x, y, polarity, time in microseconds) -> five bytes each."""
    return b"".join(
        bytes((x, y, polarity << 7 | time >> 16, time >> 8 & 255, time & 255)) for x, y, polarity, time in entries
    )


SEVEN = [(0, 0, 0, 10), (0, 0, 0, 20), (33, 1, 1, 30), (2, 33, 0, 40), (5, 5, 1, 50), (5, 5, 1, 60), (5, 5, 0, 70000)]


def write_nmnist(folder: Path) -> None:
    for part, digit, name in (("Train", 3, "00001"), ("Train", 0, "00002"), ("Test", 7, "00001")):
        path = folder / part / str(digit) / f"{name}.bin"
        path.parent.mkdir(parents=True)
        path.write_bytes(events([*SEVEN[:3], (9, 240, 0, 35), *SEVEN[3:]]))  # row 240 marks a clock overflow


def test_events_become_frames_worked_by_hand(tmp_path: Path) -> None:
    write_nmnist(tmp_path / "NMNIST")
    data = load("nmnist", tmp_path, T=3, validation=0.0)
    assert data.time_first
    assert data.train.inputs.shape == (3, 2, 2, 34, 34)
    assert data.train.labels.tolist() == [0, 3]
    assert data.counts == {"train": 2, "validation": 0, "test": 1}
    # 7 events in 3 frames: 7 // 3 = 2 in each, the remainder in the last: events 0 1 | 2 3 | 4 5 6
    expected = torch.zeros(3, 2, 34, 34, dtype=torch.uint8)
    expected[0, 0, 0, 0] = 2
    expected[1, 1, 1, 33] = 1  # [frame, polarity, y, x]
    expected[1, 0, 33, 2] = 1
    expected[2, 1, 5, 5] = 2
    expected[2, 0, 5, 5] = 1
    assert torch.equal(data.train.inputs[:, 0], expected)
    assert "2 of 60,000 training samples present" in data.notes
    assert (data.scale, data.mean, data.std) == (1.0, (0.0,), (1.0,))


def test_recordings_packed_and_unpacked_are_the_same(tmp_path: Path) -> None:
    write_nmnist(tmp_path / "one" / "NMNIST")
    (tmp_path / "two" / "events").mkdir(parents=True)
    with tarfile.open(tmp_path / "two" / "events" / "NMNIST-small.tar.xz", "w:xz") as tar:
        tar.add(tmp_path / "one" / "NMNIST", "NMNIST")
    (tmp_path / "three").mkdir()
    for part in ("Train", "Test"):
        with zipfile.ZipFile(tmp_path / "three" / f"{part}.zip", "w") as archive:
            for path in (tmp_path / "one" / "NMNIST" / part).rglob("*.bin"):
                archive.write(path, path.relative_to(tmp_path / "one" / "NMNIST"))
    roots = ("one", "one/NMNIST", "two", "two/events", "three")
    assert len({load("nmnist", tmp_path / root, T=2).checksum for root in roots}) == 1
    assert load("nmnist", tmp_path / "one", T=3).checksum != load("nmnist", tmp_path / "one", T=2).checksum


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (events(SEVEN)[:-2], "33 bytes, not a whole number of 5-byte events"),
        (b"", "0 bytes"),
        (events([(40, 0, 0, 1)] * 7), "outside 34x34"),
        (events(SEVEN[:2]), "fewer than T = 3 events"),
        (events([(1, 240, 0, 1)] * 7), "fewer than T = 3 events"),
        (events([(1, 1, 0, 1)] * 900), "300 events in one pixel"),
    ],
)
def test_a_damaged_recording_is_named(tmp_path: Path, content: bytes, text: str) -> None:
    write_nmnist(tmp_path / "NMNIST")
    (tmp_path / "NMNIST" / "Train" / "0" / "00002.bin").write_bytes(content)
    with pytest.raises(InvalidValue, match=text) as caught:
        load("nmnist", tmp_path, T=3)
    assert "00002.bin" in told(caught.value)


def test_missing_recordings_are_told(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match=r"no NMNIST/Train or NMNIST\*\.tar\.xz in") as caught:
        load("nmnist", tmp_path)
    told(caught.value)
    write_nmnist(tmp_path / "NMNIST")
    shutil.rmtree(tmp_path / "NMNIST" / "Test")
    with pytest.raises(MissingFile, match="no NMNIST/Test/<digit>") as caught:
        load("nmnist", tmp_path)
    told(caught.value)


def test_archives_are_never_unpacked_to_disk(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "trap.tar", "w") as tar:
        entry = tarfile.TarInfo("../outside.txt")
        entry.size = 3
        tar.addfile(entry, io.BytesIO(b"abc"))
        tar.addfile(tarfile.TarInfo("empty.txt"), io.BytesIO())
    assert list(open_tree(tmp_path / "trap.tar").files) == ["empty.txt"]
    assert sorted(path.name for path in tmp_path.parent.iterdir() if path.name == "outside.txt") == []
