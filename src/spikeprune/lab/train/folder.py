"""A run folder: what a run leaves behind, written so that a kill at any moment harms nothing.

Files appear whole or not at all (written beside, then renamed). A checkpoint carries its own checksum; the last one
that is whole counts. The metrics file is cut back to the length that the checkpoint knows before a run continues.
"""

import contextlib
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, cast, final, overload

import torch
import yaml
from torch import Tensor

from spikeprune.core.errors import UserError
from spikeprune.host.files import ordinary
from spikeprune.lab.recipe import Recipe, complete, deciding, load, settings_hash, shipped
from spikeprune.lab.recipe.document import read_yaml
from spikeprune.lab.recipe.hash import LATER
from spikeprune.lab.train.mask_counts import check_counts
from spikeprune.record.base import Json, whole
from spikeprune.record.checkpoint import BestCheckpoint, LastCheckpoint
from spikeprune.record.epoch import Epoch
from spikeprune.record.run import RunRecord
from spikeprune.record.spikes import SpikesRecord
from spikeprune.record.statistics import StatisticsRecord
from spikeprune.record.tensors import as_safetensors
from spikeprune.record.whole import write_whole

try:
    import fcntl
except ImportError:  # no such locks on Windows: there the user keeps two runs apart
    fcntl = None


class Busy(UserError):
    """Another process is working in the run folder."""


_MAGIC = b"spikeprune checkpoint 1\n"
Fits = Callable[[Mapping[str, Any]], bool]


@final
class RunFolder:
    """Paths of one run and how each is written and read; see the module's words on kills.

    Args:
        path: the folder; made by `open`.
    """

    def __init__(self, path: Path):
        self.path = path
        self.recipe = path / "recipe.yaml"
        self.record = path / "record.json"
        self.metrics = path / "metrics.jsonl"
        self.model = path / "model.safetensors"
        self.masks = path / "masks.safetensors"
        self.regrown = path / "regrown.safetensors"
        self.dense = path / "dense.safetensors"
        self.statistics = path / "statistics.json"
        self.spikes = path / "spikes.json"
        self.plan = path / "plan.json"
        self.small = path / "small.safetensors"
        self.bench = path / "bench.json"
        self.certificate = path / "certificate.safetensors"
        self.report = path / "report.html"
        self.checkpoints = path / "checkpoint"

    @classmethod
    def existing(cls, path: str | Path) -> "RunFolder":
        """The folder of a finished run.

        Raises: UserError if there is none, or it is not finished, or it is damaged.
        """
        folder = cls(Path(path))
        if not folder.path.is_dir():
            raise UserError(f"no run folder {path}; `spikeprune run RECIPE` makes one and prints its path")
        if not folder.recipe.is_file():
            raise UserError(
                f"{path} is not a run folder: it has no recipe.yaml; give a folder that `spikeprune run` made"
            )
        if not folder.record.is_file():
            raise UserError(f"the run in {path} is not finished; the same `spikeprune run` command continues it")
        folder.read_record()
        return folder

    def open(self, settings: Mapping[str, Json]) -> None:
        """Make the folder, or check that it holds this very run.

        Raises: UserError if it holds something else.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the run folder {self.path}: {error.strerror}; try another --out") from error
        text = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)
        if not self.recipe.is_file():
            foreign = [entry.name for entry in self.path.iterdir() if not entry.name.startswith(".")]
            if foreign:
                raise UserError(
                    f"{self.path} is no run folder (it holds {foreign[0]}); move it away or use another --out"
                )
            write_whole(self.recipe, text.encode())
            return
        try:
            there = read_yaml(ordinary(self.recipe).read_text(encoding="utf-8"), str(self.recipe))
            same = _stated(there) == _stated(settings)
        except (OSError, UnicodeDecodeError, UserError, AttributeError, TypeError) as error:
            raise UserError(f"{self.recipe} is damaged; move the folder away or use another --out") from error
        if not same:
            raise UserError(
                f"{self.path} holds a run of other settings ({_difference(there, settings)}); "
                "move it away or use another --out"
            )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Only one process at a time works in the folder; the lock falls with the process, however it ends.

        Raises: UserError if another process holds it.
        """
        lock = self.path / ".lock"
        try:
            opened = lock.open("w")
        except OSError as error:
            raise UserError(f"cannot open {lock}: {error.strerror}; remove it, or use another --out") from error
        with opened as file:
            if fcntl is not None:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    raise Busy(f"another process is working in {self.path}; wait for it, or use --out") from error
            yield

    def save_checkpoint(self, name: str, state: LastCheckpoint | BestCheckpoint) -> None:
        """Write `checkpoint/<name>.pt`; the one before it stays as `<name>-before.pt`."""
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        payload = buffer.getbuffer()
        content = b"".join((_MAGIC, hashlib.sha256(payload).digest(), payload))
        try:
            self.checkpoints.mkdir(exist_ok=True)
        except FileExistsError as error:
            raise UserError(f"{self.checkpoints} is a file; remove it, or use another --out") from error
        target = self.checkpoints / f"{name}.pt"
        if target.exists():
            os.replace(target, self.checkpoints / f"{name}-before.pt")
        write_whole(target, content)

    @overload
    def load_checkpoint(
        self, name: Literal["last"], fits: Fits | None = None, **wanted: str | int
    ) -> LastCheckpoint | None: ...

    @overload
    def load_checkpoint(
        self, name: Literal["best"], fits: Fits | None = None, **wanted: str | int
    ) -> BestCheckpoint | None: ...

    def load_checkpoint(
        self, name: str, fits: Fits | None = None, **wanted: str | int
    ) -> LastCheckpoint | BestCheckpoint | None:
        """The newest whole checkpoint of that name whose entries equal `wanted`, on the CPU; None if there is no file.

        Args: fits: says of the entries whether the rest of the folder fits to them.
        Raises: UserError if files are there but none of them will do.
        """
        paths = [self.checkpoints / f"{name}.pt", self.checkpoints / f"{name}-before.pt"]
        there = [path for path in paths if path.exists()]
        for path in there:
            content = path.read_bytes() if path.is_file() else b""
            payload = content[len(_MAGIC) + 32 :]
            digest = content[len(_MAGIC) : len(_MAGIC) + 32]
            # zip files, which torch.save writes, may open although bytes in the middle are wrong
            if content.startswith(_MAGIC) and hashlib.sha256(payload).digest() == digest:
                state = _loaded(payload)
                same = state is not None and all(key in state and state[key] == value for key, value in wanted.items())
                if state is not None and same and (fits is None or fits(state)):
                    return cast(Any, state)
        if there:
            raise UserError(
                f"the checkpoints in {self.checkpoints} are damaged or of another run; "
                "remove that folder to start the run anew"
            )
        return None

    def drop_older_checkpoints(self) -> None:
        """A finished run keeps the last and the best checkpoint only."""
        for older in self.checkpoints.glob("*-before.pt"):
            older.unlink()

    def cut_metrics(self, length: int) -> None:
        """Forget the lines that were written after the checkpoint that knows `length` bytes.

        Raises: UserError if the file is shorter than that, so that lines are lost.
        """
        if self.metrics_length < length:
            raise UserError(
                f"{self.metrics} has {self.metrics_length} bytes, but the checkpoint knows {length}: lines are lost; "
                f"bring the file back, or remove {self.checkpoints} to start the run anew"
            )
        if self.metrics.exists():
            with self.metrics.open("r+b") as file:
                file.truncate(length)

    @property
    def metrics_length(self) -> int:
        """Bytes of metrics.jsonl; 0 if there is none."""
        return self.metrics.stat().st_size if self.metrics.is_file() else 0

    def add_metrics(self, line: Epoch) -> int:
        """Append one line; returns the length of the file in bytes, which the next checkpoint keeps.

        The line is on the disk when this returns: a checkpoint that knows of it never comes before it.
        """
        with self.metrics.open("ab") as file:
            file.write(line.as_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
            return file.tell()

    def save_tensors(self, path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str] | None = None) -> None:
        """Write a safetensors file, with `facts` as its metadata; tensors that share memory are stored once each."""
        apart = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
        write_whole(path, as_safetensors(apart, facts))

    def save_certificate(self, content: bytes) -> None:
        """Write certificate.safetensors: what the network's files must hold and how it must fire."""
        write_whole(self.certificate, content)

    def save_plan(self, text: str) -> None:
        """Write plan.json: what makes the small network of model.safetensors out of the recipe's."""
        write_whole(self.plan, text.encode())

    def save_record(self, record: RunRecord) -> None:
        """Write record.json: the run is finished from here on."""
        write_whole(self.record, record.as_json(indent=2).encode() + b"\n")

    def save_statistics(self, statistics: StatisticsRecord) -> None:
        """Write statistics.json: what the layers do, for the report."""
        write_whole(self.statistics, statistics.as_json(indent=1).encode() + b"\n")

    def save_spikes(self, spikes: SpikesRecord) -> None:
        """Write spikes.json: one image's spikes, for the report."""
        write_whole(self.spikes, spikes.as_json().encode() + b"\n")

    def read_record(self) -> RunRecord:
        """Raises: UserError if record.json is damaged or not ours."""
        try:
            record = json.loads(ordinary(self.record).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{self.record} cannot be read; run the same command with another --out") from error
        if not isinstance(record, dict) or not {"schema", "settings", "pruned"} <= set(record):
            raise UserError(f"{self.record} is not a record of spikeprune; give a folder that `spikeprune run` made")
        with whole(self.record):
            return RunRecord.read(record)

    def read_masks(self, record: RunRecord) -> dict[str, Tensor]:
        """The masks of a finished run. Raises: UserError if they are missing, damaged, or not those of the record."""
        masks = read_safetensors(self.masks)
        number = next((name for name, mask in masks.items() if mask.dtype is not torch.bool), None)
        if number is not None:
            raise UserError(
                f"{self.masks} holds {number!r} as {masks[number].dtype}, which is no mask; restore it, or run again"
            )
        check_counts(masks, record, self.masks)
        return masks


def _loaded(payload: bytes) -> dict[str, Any] | None:
    """The entries of a checkpoint, None if it holds something else."""
    try:
        state: object = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception:  # torch raises nearly anything over contents that are no checkpoint
        return None
    return state if isinstance(state, dict) and all(isinstance(key, str) for key in state) else None


def folder_of(recipe: Recipe, digest: str | None = None) -> RunFolder:
    """The folder of a recipe's run, whether it exists or not: `<out>/<name>-<hash of the settings>`.

    A shipped recipe that runs on other data takes the name of the data, such as `mnist-...` for the digits recipe.
    Version 0.1 kept the recipe's name; a folder with that name is used if it exists.

    Args: digest: the hash, if it is known.
    """
    out, digest = Path(recipe.out), digest or settings_hash(recipe)
    as_before = out / f"{recipe.name}-{digest}"
    return RunFolder(as_before if as_before.exists() else out / f"{_label(recipe)}-{digest}")


class Work(Protocol):
    """A run whose input is checked and whose work is to come."""

    def work(self) -> None:
        """Does what is left of the run, the record last."""
        ...


def carry_out(recipe: Recipe, begin: Callable[[RunFolder], Work]) -> RunFolder:
    """The folder of a recipe's run, with its work done by one process; a finished run is left as it is.

    Args: begin: checks all input and writes nothing; it is asked before the folder is made.
    """
    folder = folder_of(recipe)
    if folder.record.is_file():
        folder.open(complete(recipe))
        folder.read_record()
        return folder
    begun = begin(folder)
    folder.open(complete(recipe))
    with folder.locked():
        if not folder.record.is_file():  # another process may have finished it meanwhile
            begun.work()
    return folder


def _label(recipe: Recipe) -> str:
    """The recipe's name; a shipped recipe that runs on other data than its own is called after that data."""
    if recipe.name not in shipped() or load(recipe.name).data.name == recipe.data.name:
        return recipe.name
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", recipe.data.name).strip("-.")[:100]


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises: UserError if it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(ordinary(path).read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; a finished run has this file") from error
    except (SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged or not a safetensors file; restore it or run again") from error


def _stated(settings: Mapping[str, Json]) -> dict[str, Json]:
    """The deciding settings without nulls, and without keys of a later version that change nothing."""
    return {key: value for key, value in deciding(settings).items() if value != LATER.get(key)}


def _difference(there: Any, here: Mapping[str, Json]) -> str:
    old, new = _stated(there), _stated(here)
    key = next(key for key in {**new, **old} if old.get(key) != new.get(key))
    return f"{key} is {old.get(key)!r} there and {new.get(key)!r} here"
