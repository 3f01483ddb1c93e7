"""Carries out the runs of a sweep: in this process, in several, or on a Ray cluster.

A run that fails does not stop the others.
"""

import dataclasses
import functools
import importlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.queues
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import torch

from spikeprune.core.errors import MissingDependency, RunFailed, UserError
from spikeprune.lab.recipe import Recipe
from spikeprune.lab.sweep.sweep import Task
from spikeprune.lab.train.folder import Busy
from spikeprune.lab.train.progress import epoch_line
from spikeprune.lab.train.run import run
from spikeprune.record.epoch import Epoch

# How long to leave a run alone that another process is working on.
_PATIENCE = 2.0
# Seconds between two looks for lines of the workers.
_LISTEN = 0.5
Launcher = Literal["local", "ray"]
Lines = multiprocessing.queues.SimpleQueue[tuple[int, str]]


@final
@dataclass(frozen=True)
class RunEnd:
    """How a run ended; `message` says why it failed."""

    task: Task
    state: Literal["finished", "failed"]
    message: str = ""


def work(
    tasks: Sequence[Task],
    workers: int,
    threads: int,
    report: Callable[[RunEnd], None],
    launcher: Launcher = "local",
    progress: Callable[[Task, str], None] | None = None,
) -> list[RunEnd]:
    """Carry out what is not finished; `report` hears of each run as it ends.

    A run that another process is working on, a second sweep or a worker of a killed one, is waited for.

    Args:
        workers: processes; 1 works in this one.
        threads: of each process.
        launcher: "ray" hands the runs to a Ray cluster, which decides how many there are at a time.
        progress: hears a line for each epoch and stage of the runs that local workers make.
    Returns: the runs that failed.
    Raises: RunFailed if a worker process died, for example for want of memory; MissingDependency without Ray.
    """
    left = [task for task in tasks if not task.finished]
    if launcher == "ray":
        ends = _on_ray(left, threads)
    else:
        make = _alone if workers == 1 else functools.partial(_together, workers=min(workers, len(left)))
        ends = make(left, threads=threads, progress=progress)
    failed: list[RunEnd] = []
    for done in ends:
        report(done)
        if done.state == "failed":
            failed.append(done)
    return failed


def _alone(tasks: Sequence[Task], threads: int, progress: Callable[[Task, str], None] | None) -> Iterator[RunEnd]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    left = list(tasks)
    try:
        while left:
            task = left.pop(0)
            outcome = _carry_out(task.recipe, None if progress is None else functools.partial(progress, task))
            if outcome is _BUSY:
                left.append(task)
                time.sleep(_PATIENCE)
            else:
                yield _done(task, outcome)
    finally:
        torch.set_num_threads(before)


def _together(
    tasks: Sequence[Task], threads: int, progress: Callable[[Task, str], None] | None, workers: int
) -> Iterator[RunEnd]:
    if not tasks:
        return
    # Not forked: threads of torch do not survive a fork.
    context = multiprocessing.get_context("spawn")
    lines = None if progress is None else context.SimpleQueue()
    with ProcessPoolExecutor(workers, context, initializer=_begin_worker, initargs=(threads, lines)) as pool:
        numbers = {id(task): number for number, task in enumerate(tasks)}

        def submit(task: Task) -> Future[str]:
            return pool.submit(_carry_out_heard, numbers[id(task)], task.recipe)

        running = {submit(task): task for task in tasks}
        try:
            while running:
                ended = wait(running, None if lines is None else _LISTEN, FIRST_COMPLETED).done
                while progress is not None and lines is not None and not lines.empty():
                    number, line = lines.get()
                    progress(tasks[number], line)
                for future in ended:
                    task = running.pop(future)
                    if future.result() == _BUSY:
                        time.sleep(_PATIENCE)
                        running[submit(task)] = task
                    else:
                        yield _done(task, future.result())
        except BrokenProcessPool as error:
            raise RunFailed(
                "a worker process of the sweep died (out of memory?); the same command goes on, with fewer --workers "
                "if need be"
            ) from error
        finally:
            for future in running:
                future.cancel()


def _on_ray(tasks: Sequence[Task], threads: int) -> Iterator[RunEnd]:
    """Each run a Ray task of so many CPUs, and of one GPU where the cluster has any and the recipe lets it.

    The cluster is that of RAY_ADDRESS, else one on this machine; `out` must lie where all of its machines see it.
    Ray starts a run again, up to three times, whose process died; it continues at its checkpoint.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise MissingDependency(
            "--launcher ray needs Ray: pip install 'spikeprune[ray]'; without it --workers N and --array share the runs"
        ) from error
    ray.init(ignore_reinit_error=True, log_to_driver=False)
    there = ray.cluster_resources().get("GPU", 0) > 0
    remote = ray.remote(_carry_out_there)
    ours = {name: value for name, value in os.environ.items() if name.startswith("SPIKEPRUNE_")}

    def start(task: Task) -> Any:
        recipe = dataclasses.replace(task.recipe, out=str(Path(task.recipe.out).resolve()))
        gpu = recipe.device.startswith("cuda") or (there and recipe.device == "auto")
        wanted = remote.options(num_cpus=threads, num_gpus=int(gpu))
        return wanted.remote(recipe, threads, os.getcwd(), ours)

    running = {start(task): task for task in tasks}
    while running:
        (ended,), _ = ray.wait(list(running), num_returns=1)
        task = running.pop(ended)
        try:
            outcome = str(ray.get(ended))
        except Exception as error:  # the run's process died, or its machine
            outcome = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if outcome == _BUSY:
            time.sleep(_PATIENCE)
            running[start(task)] = task
        else:
            yield _done(task, outcome)


def _carry_out_there(recipe: Recipe, threads: int, folder: str, environment: Mapping[str, str]) -> str:
    """Runs `_carry_out` in a worker process that first takes the folder and environment of the main process.

    So the user's modules and data are found.
    """
    os.environ.update(environment)
    os.chdir(folder)
    torch.set_num_threads(threads)
    return _carry_out(recipe)


_BUSY = "busy"


def _carry_out(recipe: Recipe, progress: Callable[[str], None] | None = None) -> str:
    """Carries out one run. Returns "" if it is finished, `_BUSY` if another process runs it, else why it failed."""

    def hear(line: Epoch, epochs: int) -> None:
        if progress is not None:
            progress(epoch_line(line, epochs, recipe.method))

    try:
        run(recipe, hear, progress)
    except Busy:
        return _BUSY
    except (UserError, RunFailed) as error:
        return " ".join(str(error).split())
    except Exception as error:  # a fault in a model of the user's must not take the other runs with it
        return (
            f"{type(error).__name__}: {' '.join(str(error).split())[:300]}; `spikeprune run` with --debug shows where"
        )
    return ""


def _done(task: Task, message: str) -> RunEnd:
    return RunEnd(task, "failed" if message else "finished", message)


# In a worker process: where its lines go, as (number of the task, line); empty where nobody hears them.
_LINES: list[Lines] = []


def _carry_out_heard(number: int, recipe: Recipe) -> str:
    def tell(line: str) -> None:
        for lines in _LINES:
            lines.put((number, line))

    return _carry_out(recipe, tell if _LINES else None)


def _begin_worker(threads: int, lines: Lines | None) -> None:
    torch.set_num_threads(threads)
    if lines is not None:
        _LINES.append(lines)
    # Bars and warnings of several processes on one terminal say nothing.
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    parent = multiprocessing.parent_process()
    assert parent is not None

    def leave_with_parent() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()
