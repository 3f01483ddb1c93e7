"""Readers of event data on small files in the published layout, against numbers worked by hand and SpikingJelly."""

import gzip
import importlib
import io
import struct
import sys
import tarfile
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from spikeprune.core.errors import InvalidValue, MissingDependency
from spikeprune.data import load
from spikeprune.data.formats import files
from spikeprune.data.formats.aedat import read_aedat2, read_aedat3
from spikeprune.data.formats.files import MissingFile


@pytest.fixture(scope="module")
def jelly():
    """SpikingJelly's own readers. They import torchvision for downloads alone, which is not needed here."""

    class Anything(types.ModuleType):
        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {})

    before = set(sys.modules)
    for name in ("torchvision", "torchvision.datasets", "torchvision.datasets.utils", "torchvision.transforms"):
        sys.modules.setdefault(name, Anything(name))
    package = types.ModuleType("spikingjelly.datasets")  # its own __init__ wants torchaudio as well
    package.__path__ = [str(Path(importlib.import_module("spikingjelly").__path__[0]) / "datasets")]
    sys.modules["spikingjelly.datasets"] = package
    cifar = importlib.import_module("spikingjelly.datasets.cifar10_dvs")
    utils = importlib.import_module("spikingjelly.datasets.utils")
    yield types.SimpleNamespace(
        aedat2=cifar._load_origin_data,
        aedat3=utils.load_aedat_v3,
        frames=utils.integrate_events_by_fixed_frames_number,
    )
    for name in set(sys.modules) - before:
        if name.startswith(("torchvision", "spikingjelly.datasets")):
            del sys.modules[name]


def drawn(count, seed, side=128):
    """(t, x, y, p) of random events in order of time."""
    rng = np.random.default_rng(seed)
    t = np.sort(rng.integers(0, 1000, count))
    return t, rng.integers(0, side, count), rng.integers(0, side, count), rng.integers(0, 2, count)


def aedat3(t, x, y, p, overflow=0, size=8):
    """Two packets of polarity events and one of another kind between them."""
    events = zip(t, x, y, p, strict=True)
    words = [struct.pack("<II", int(c) << 17 | int(r) << 2 | int(q) << 1 | 1, int(s)) for s, c, r, q in events]
    half = len(words) // 2

    def packet(kind, events, lost=overflow):
        head = struct.pack("<HHIIIIII", kind, 0, size, 4, lost, len(events), len(events), len(events))
        return head + b"".join(event.ljust(size, b"\0") for event in events)

    body = packet(1, words[:half]) + packet(0, [b"\0" * 8]) + packet(1, words[half:])
    return b"#!AER-DAT3.1\r\n#Format: RAW\r\n#!END-HEADER\r\n" + body


def aedat2(t, x, y, p):
    """As CIFAR10-DVS has it: both axes and the polarity are turned round."""
    words = [
        struct.pack(">II", (127 - int(c)) << 8 | (127 - int(r)) << 1 | (1 - int(q)), int(s))
        for s, c, r, q in zip(t, x, y, p, strict=True)
    ]
    return b"#!AER-DAT2.0\r\n# made by hand\r\n" + b"".join(words)


@pytest.mark.parametrize("overflow", [0, 1])
def test_aedat3_is_read_as_spikingjelly_reads_it(jelly, tmp_path, overflow):
    path = tmp_path / "one.aedat"
    path.write_bytes(aedat3(*drawn(41, 0), overflow))
    ours, theirs = read_aedat3(path.read_bytes(), path), jelly.aedat3(path)
    assert len(ours.t) == 41
    for name in "txyp":
        assert np.array_equal(getattr(ours, name), theirs[name]), name


def test_aedat2_is_read_as_spikingjelly_reads_it(jelly, tmp_path):
    path = tmp_path / "one.aedat"
    path.write_bytes(aedat2(*drawn(30, 1)))
    ours, theirs = read_aedat2(path.read_bytes(), path), jelly.aedat2(path)
    for name, wanted in zip("txyp", drawn(30, 1), strict=True):
        assert np.array_equal(getattr(ours, name), theirs[name]), name
        assert np.array_equal(getattr(ours, name), wanted), name


def write_gestures(folder):
    folder.mkdir(parents=True)
    for number, user in enumerate(("user01_led", "user02_lab")):
        (folder / f"{user}.aedat").write_bytes(aedat3(*drawn(200, number)))
        (folder / f"{user}_labels.csv").write_text("class,startTime_usec,endTime_usec\n3,0,400\n11,500,900\n")
    (folder / "trials_to_train.txt").write_text("user01_led.aedat\n")
    (folder / "trials_to_test.txt").write_text("user02_lab.aedat\n\n")


def test_gestures_are_cut_out_of_their_recordings(jelly, tmp_path):
    write_gestures(tmp_path / "DvsGesture")
    data = load("dvs128-gesture", tmp_path, T=4, validation=0.0)
    assert data.train.inputs.shape == (4, 2, 2, 128, 128)
    assert data.train.labels.tolist() == data.test.labels.tolist() == [2, 10]
    assert data.classes[2] == "left hand wave"
    t, x, y, p = drawn(200, 0)
    inside = (t >= 500) & (t < 900)
    part = {"t": t[inside], "x": x[inside], "y": y[inside], "p": p[inside]}
    wanted = jelly.frames(part, "number", 4, 128, 128)
    assert np.array_equal(data.train.inputs[:, 1].numpy(), wanted)
    assert "2 of 1,176 training samples present" in data.notes
    (tmp_path / "packed").mkdir()
    with tarfile.open(tmp_path / "packed" / "DvsGesture.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "DvsGesture", "DvsGesture")
    assert load("dvs128-gesture", tmp_path / "packed", T=4, validation=0.0).checksum == data.checksum


@pytest.mark.parametrize(
    ("file", "content", "text"),
    [
        ("user01_led.aedat", aedat3(*drawn(20, 0))[:-3], "packet of 10 events of 8 bytes is cut"),
        ("user01_led.aedat", b"#!AER-DAT3.1\r\n#!END-HEADER\r\n", "fewer than T = 4 events"),
        ("user01_led_labels.csv", b"class,start,end\n12,0,400\n", "class 12, not 1 to 11"),
        ("user01_led_labels.csv", b"class,start,end\nthree,0\n", "user01_led_labels.csv cannot be read"),
        ("user01_led.aedat", aedat3(*drawn(20, 0), size=12), "polarity events of 12 bytes in place of 8"),
        ("trials_to_train.txt", b"", "names no recording"),
    ],
)
def test_damaged_gestures_are_named(tmp_path, file, content, text):
    write_gestures(tmp_path / "DvsGesture")
    (tmp_path / "DvsGesture" / file).write_bytes(content)
    with pytest.raises(InvalidValue, match=text):
        load("dvs128-gesture", tmp_path, T=4)
    (tmp_path / "DvsGesture" / "user01_led.aedat").unlink()
    (tmp_path / "DvsGesture" / "trials_to_train.txt").write_text("user01_led.aedat")
    with pytest.raises(MissingFile, match=r"no user01_led\.aedat"):
        load("dvs128-gesture", tmp_path, T=4)


def test_gestures_that_are_not_there_are_told(tmp_path):
    with pytest.raises(MissingFile, match=r"no DvsGesture/trials_to_train\.txt or DvsGesture\.tar\.gz in .*--data"):
        load("dvs128-gesture", tmp_path, T=4)
    write_gestures(tmp_path / "DvsGesture")
    (tmp_path / "DvsGesture" / "trials_to_test.txt").unlink()
    with pytest.raises(MissingFile, match=r"no trials_to_test\.txt in .*DvsGesture; unpack the published"):
        load("dvs128-gesture", tmp_path, T=4)


@pytest.mark.parametrize(("number", "absent"), [(899, "numbers from 900 on"), (900, "numbers below 900")])
def test_a_split_of_cifar10_dvs_without_recordings_is_told(tmp_path, number, absent):
    path = tmp_path / "CIFAR10DVS" / "truck" / f"cifar10_truck_{number}.aedat"
    path.parent.mkdir(parents=True)
    path.write_bytes(aedat2(*drawn(50, 5)))
    with pytest.raises(MissingFile, match=rf"no cifar10_<class>_<number>\.aedat with {absent} in .*--data\.root"):
        load("cifar10-dvs", tmp_path, T=5)


def test_cifar10_dvs_is_split_by_number(jelly, tmp_path):
    folder = tmp_path / "CIFAR10DVS"
    for name, number in (("airplane", 3), ("airplane", 899), ("airplane", 900), ("truck", 5), ("truck", 999)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / f"cifar10_{name}_{number}.aedat").write_bytes(aedat2(*drawn(50, number)))
    data = load("cifar10-dvs", tmp_path, T=5, validation=0.0)
    assert data.counts == {"train": 3, "validation": 0, "test": 2}
    assert sorted(data.test.labels.tolist()) == [0, 9]
    t, x, y, p = drawn(50, 999)
    wanted = jelly.frames({"t": t, "x": x, "y": y, "p": p}, "number", 5, 128, 128)
    assert np.array_equal(data.test.inputs[:, data.test.labels.tolist().index(9)].numpy(), wanted)
    zipped = tmp_path / "zipped"
    zipped.mkdir()
    for name in ("airplane", "truck"):
        with zipfile.ZipFile(zipped / f"{name}.zip", "w") as archive:
            for path in (folder / name).iterdir():
                archive.write(path, f"{name}/{path.name}")
    assert load("cifar10-dvs", zipped, T=5, validation=0.0).checksum == data.checksum
    (folder / "truck" / "cifar10_truck_5.aedat").write_bytes(aedat2(*drawn(50, 5))[:-1])
    with pytest.raises(InvalidValue, match=r"cifar10_truck_5\.aedat.*not a whole number of 8-byte events"):
        load("cifar10-dvs", tmp_path, T=5)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(MissingFile, match="no CIFAR10DVS/<class>"):
        load("cifar10-dvs", tmp_path / "nothing", T=5)


def write_cochlea(path, recordings, labels, packed=False):
    h5py = pytest.importorskip("h5py")
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        spikes = file.create_group("spikes")
        for name, kind in (("times", np.float16), ("units", np.int64)):
            held = spikes.create_dataset(name, (len(recordings),), dtype=h5py.vlen_dtype(kind))
            for n, recording in enumerate(recordings):
                held[n] = np.array([spike[name == "units"] for spike in recording], kind)
        file["labels"] = np.array(labels)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(buffer.getvalue()) if packed else buffer.getvalue())


# (seconds, unit); a frame of 0.7 s: the first two in frame 0, the others in frame 1, the last beyond the end
SPIKES = [(0.0, 3), (0.5, 3), (0.75, 699), (1.25, 0), (1.5, 0)]


def test_spoken_digits_become_counts_worked_by_hand(tmp_path: Path):
    write_cochlea(tmp_path / "SHD" / "shd_train.h5", [SPIKES, SPIKES[:1]], [4, 19], packed=False)
    write_cochlea(tmp_path / "SHD" / "shd_test.h5.gz", [SPIKES[2:]], [0], packed=True)
    data = load("shd", tmp_path, T=2, validation=0.0)
    assert data.train.inputs.shape == (2, 2, 700, 1, 1)
    wanted = torch.zeros(2, 700, dtype=torch.uint8)
    wanted[0, 3], wanted[1, 699], wanted[1, 0] = 2, 1, 2
    assert torch.equal(data.train.inputs[:, 0, :, 0, 0], wanted)
    assert (data.train.labels.tolist(), data.test.labels.tolist()) == ([4, 19], [0])
    assert data.classes[19] == "neun"
    write_cochlea(tmp_path / "SHD" / "shd_train.h5", [[(0.1, 700)]], [0])
    with pytest.raises(InvalidValue, match="other channels than 0 to 699"):
        load("shd", tmp_path, T=2)
    (tmp_path / "SHD" / "shd_train.h5").write_bytes(b"no file of HDF5")
    with pytest.raises(InvalidValue, match=r"shd_train\.h5 cannot be read"):
        load("shd", tmp_path, T=2)
    (tmp_path / "SHD" / "shd_train.h5").unlink()
    with pytest.raises(MissingFile, match=r"no shd_train\.h5 or shd_train\.h5\.gz"):
        load("shd", tmp_path, T=2)


def test_without_h5py_the_install_line_is_told(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingDependency, match=r"shd needs h5py; try: pip install 'spikeprune\[events\]'"):
        load("shd", tmp_path, T=2)


def test_a_packed_recording_that_grows_is_refused(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(files, "_SMALL", 1 << 20)
    write_cochlea(tmp_path / "SHD" / "shd_train.h5.gz", [SPIKES], [4], packed=True)
    path = tmp_path / "SHD" / "shd_train.h5.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + bytes(2 << 20)))
    with pytest.raises(InvalidValue, match="bytes that unpack to more than 1,048,576"):
        load("shd", tmp_path, T=2)


def test_spoken_words_bring_a_validation_split_of_their_own(tmp_path: Path):
    for part, label in (("train", 34), ("valid", 1), ("test", 2)):
        write_cochlea(tmp_path / f"ssc_{part}.h5", [SPIKES, SPIKES], [label, 0])
    data = load("ssc", tmp_path, T=3)
    assert data.counts == {"train": 2, "validation": 2, "test": 2}
    assert data.validation.labels.tolist() == [1, 0]
