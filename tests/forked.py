"""Work in forked children of the tests' process, which spares each of them the imports of a new Python (4 CPU seconds).

A child is as a new process in what matters here: it has its own memory, environment, output and exit status. The parent
has no running threads of torch (one thread, `conftest.py`), so that nothing is lost in the fork.
"""

import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit status, negative for a signal, and all that it and its children printed."""

    status: int
    stdout: str
    stderr: str


class Forked:
    """A child that is at work; `pid` is for signals."""

    def __init__(self, work: Callable[[], Any], environment: Mapping[str, str] | None = None) -> None:
        """Starts `work`; what it returns is the exit status, as of a command.

        Args:
            environment: variables that are set in the child.
        """
        if not hasattr(os, "fork"):
            pytest.skip("needs os.fork")
        self._folder = tempfile.TemporaryDirectory()
        files = [Path(self._folder.name) / name for name in ("out", "err")]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on: the reader of xdist is a thread
            self.pid = os.fork()
        if self.pid == 0:
            _be_a_child(work, environment or {}, *files)
        self._files = files

    def wait(self) -> Ended:
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        said = [path.read_text() for path in self._files]
        self._folder.cleanup()
        return Ended(status, *said)


def _be_a_child(work: Callable[[], Any], environment: Mapping[str, str], out: Path, err: Path) -> None:
    status = 70
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
        warnings.resetwarnings()
        os.environ.update(environment)
        status = int(work() or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def ranks(work: Callable[[int], Any]) -> list[Ended]:
    """`work(rank)` in two processes, with the variables that torchrun sets and the store where its processes meet."""
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    where = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(store.port), "WORLD_SIZE": "2"}
    where |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "OMP_NUM_THREADS": "1"}

    def start(rank: int) -> Forked:
        return Forked(lambda: work(rank), {**where, "RANK": str(rank), "LOCAL_RANK": str(rank)})

    return [one.wait() for one in [start(0), start(1)]]
