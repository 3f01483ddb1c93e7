"""Forked children that are killed at a given moment of their life, as by a machine that stops or a user.

A moment is a training step, a line of metrics, or either side of a file's renaming; or a time in seconds, for work that
has few such moments. Forking spares a child the imports.
"""

import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from spikeprune.lab.train.folder import RunFolder
from spikeprune.lab.train.loop import Phase


def child(work: Callable[[], int], kill_at: int | float | None, by: int = signal.SIGKILL) -> int:
    """The exit status of `work` in a child, or -SIGKILL if the child came to moment `kill_at`.

    Args:
        kill_at: a moment, or with a point the seconds after which the child gets the signal.
        by: the signal that the child gets at its moment.
    """
    pid = os.fork()
    if pid == 0:
        try:
            if isinstance(kill_at, int):
                _arm(kill_at, by)
            os._exit(work())
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
    if isinstance(kill_at, float):
        until = time.monotonic() + kill_at
        while time.monotonic() < until:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        os.kill(pid, by)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _arm(kill_at: int, by: int) -> None:
    moments = itertools.count(1)

    def moment() -> None:
        if next(moments) == kill_at:
            os.kill(os.getpid(), by)

    rename, add_metrics, train_epoch = os.replace, RunFolder.add_metrics, Phase.train_epoch

    def replace(*paths: Any) -> None:
        moment()
        rename(*paths)
        moment()

    def add(self: RunFolder, line: Any) -> int:
        length = add_metrics(self, line)
        moment()
        return length

    def train(self: Phase) -> Iterator[float]:
        for loss in train_epoch(self):
            moment()
            yield loss

    os.replace, RunFolder.add_metrics, Phase.train_epoch = replace, add, train
