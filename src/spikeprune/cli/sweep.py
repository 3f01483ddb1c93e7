"""Make many runs from one file: methods x sparsities x seeds x whatever else holds a list."""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from spikeprune.cli._arguments import take
from spikeprune.cli._terminal import show, terminal_width
from spikeprune.core.errors import InvalidValue, MissingDependency, RunFailed
from spikeprune.record.text import duration

if TYPE_CHECKING:
    from spikeprune.lab.study.ranks import Rank
    from spikeprune.lab.sweep.sweep import Sweep, Task
    from spikeprune.lab.sweep.workers import Launcher, RunEnd

_HELP = """usage: spikeprune sweep RECIPE [--key value[,value...] ...] [--workers N]
                        [--threads N] [--dry-run]

Makes a run for each combination of the lists in RECIPE, a YAML file or the name
of a shipped recipe, and on the command line: --methods magnitude,criticality
--sparsities 0.9,0.95 --seeds 0,1,2 --datasets ... --models ... --ANY.KEY a,b
A dense run of each seed is made once for all methods, for as many epochs
(--baseline false: none). Finished runs are never made again: the same command
continues a sweep that was stopped. Prints a table; the last line of the output
is the sweep's file, which `spikeprune compare` takes.

  --workers N       runs made at a time, each in its own process (default 1)
  --threads N       threads of each (default 1)
  --dry-run         list the runs with an estimate of their time; make none
  --array print     print a Slurm script whose tasks share the runs; with it
                    --time 02:00:00, --memory 8G, --gpus 1, --at-once N (tasks
                    that run at a time), --setup '. env/bin/activate' (a line
                    before the command)
  --array K/M       make the K-th of M shares of the runs, as such a task does
  --launcher ray    hand the runs to a Ray cluster (RAY_ADDRESS, else this
                    machine); needs spikeprune[ray]
  --reference ARM   what the table compares with (default: dense where there is
                    one)

Under `torchrun --nproc-per-node N -m spikeprune sweep ...` each process makes
its share, each on its own GPU.

examples:
  spikeprune sweep digits --methods magnitude,criticality --seeds 0,1,2
  spikeprune sweep mine.yaml --workers 2 --dry-run
  spikeprune sweep mine.yaml --array print --time 02:00:00 > sweep.sbatch
"""


def main(arguments: Sequence[str]) -> int:
    words = list(arguments)
    if not words or words[0] in ("--help", "-h") or "--help" in words[1:]:
        print(_HELP)
        if words:
            return 0
        raise InvalidValue("sweep needs a recipe: `spikeprune sweep digits --seeds 0,1,2`, or a YAML file with lists")
    dry = "--dry-run" in words
    trust = "--trust" in words
    words = [word for word in words if word not in ("--dry-run", "--trust")]
    workers, threads = (
        _count(take(words, "--workers", "sweep"), "--workers"),
        _count(take(words, "--threads", "sweep"), "--threads"),
    )
    array = take(words, "--array", "sweep")
    slurm = {option: value for option in _SLURM if (value := take(words, option, "sweep")) is not None}
    if slurm and array != "print":
        raise InvalidValue(f"{next(iter(slurm))} is for the script that `--array print` prints; leave it out here")
    launcher = _launcher(take(words, "--launcher", "sweep"))

    if array == "print":
        from spikeprune.lab.sweep.glance import count_runs

        if runs := count_runs(words[0], words[1:]):  # without torch, whose import takes seconds
            _print_array(words[0], runs, words, threads, slurm)
            return 0

    from spikeprune.lab.study.ranks import this_rank
    from spikeprune.lab.sweep.sweep import read_sweep
    from spikeprune.lab.train.code import vouch_for_recipe

    vouch_for_recipe(words[0], words[1:], trust)
    sweep = read_sweep(words[0], words[1:])
    if array == "print":
        _print_array(sweep.name, len(sweep.tasks), words, threads, slurm)
        return 0
    mine = sweep if array is None else sweep.share(*_share(array))
    if dry:
        _dry_run(mine, workers, threads)
        return 0
    rank = this_rank()
    if rank is None:
        sweep.save()
        return _make(sweep, mine, workers, threads, launcher, None)
    if rank.number == 0:
        sweep.save()
    rank.meet()
    return _make(sweep, mine.share(rank.number + 1, rank.of), workers, threads, launcher, rank)


def _make(sweep: "Sweep", mine: "Sweep", workers: int, threads: int, launcher: "Launcher", rank: "Rank | None") -> int:
    from spikeprune.lab.page import write_report
    from spikeprune.lab.sweep.workers import work

    total, ended = len(mine.tasks), sum(task.finished for task in mine.tasks)
    print(f"{total} runs, {ended} of them finished before", flush=True)

    def report(done: "RunEnd") -> None:
        nonlocal ended
        ended += 1
        folder = done.task.folder
        print(f"{ended}/{total} {_name(done.task)}: {done.message or folder.path}", flush=True)
        if done.state == "finished" and not folder.report.is_file():
            write_report(folder)

    def progress(task: "Task", line: str) -> None:
        print(f"{_name(task)}: {line}", flush=True)

    # On a terminal there is a bar; a log, such as that of a Slurm task, gets the lines that `run` prints.
    failed = work(mine.tasks, workers, threads, report, launcher, None if sys.stderr.isatty() else progress)
    if rank is not None:
        rank.meet()
    if (rank is None or rank.number == 0) and any(task.finished for task in sweep.tasks):
        _print_table(sweep)
    if rank is not None:  # a rank that fails now stops no other at its work
        rank.meet()
        rank.leave()
    if failed:
        raise RunFailed(
            f"{len(failed)} of {total} runs failed, first {_name(failed[0].task)}: {failed[0].message[:150]}; "
            "the same command tries them again"
        )
    if rank is None or rank.number == 0:
        print(sweep.file)
    return 0


def _print_table(sweep: "Sweep") -> None:
    from spikeprune.lab.study import tables
    from spikeprune.lab.study.compare import collect, compare

    runs, unfinished, reference = collect([sweep.file])
    try:
        print("\n".join(["", *tables.to_text(compare(runs, reference, unfinished), terminal_width())]), flush=True)
    except MissingDependency as error:  # the runs are made all the same
        print(f"no table: {error}", flush=True)


def _name(task: "Task") -> str:
    return f"{task.label}, sparsity {task.recipe.sparsity:g}, seed {task.recipe.seed}"


def _dry_run(sweep: "Sweep", workers: int, threads: int) -> None:
    from spikeprune.lab.sweep.estimate import Estimator

    for task in sweep.tasks:
        state = "finished" if task.finished else "begun" if task.folder.checkpoints.is_dir() else "to do"
        print(f"{task.folder.path.name}  {state:<8}  {task.recipe.data.name}  {_name(task)}")
    left = sum(not task.finished for task in sweep.tasks)
    print(f"{len(sweep.tasks)} runs, {left} to make; a few steps of each kind are timed now", flush=True)
    estimator, total, unknown_time = Estimator(threads), 0.0, 0
    for task in sweep.tasks:
        if task.finished:
            continue
        seconds = estimator.seconds(task.recipe)
        total += seconds or 0.0
        unknown_time += seconds is None
        time = "time unknown" if seconds is None else f"about {duration(seconds)}"
        print(f"{task.folder.path.name}  {time}", flush=True)
    print(
        f"{len(sweep.tasks)} runs, {left} to make: about {duration(total / workers)} with {workers} "
        f"worker{'s' * (workers > 1)} of {threads} thread{'s' * (threads > 1)}"
        + (f" and what {unknown_time} runs of unknown time take" if unknown_time else "")
    )
    show(["Times are those of a few steps on random images just now; mask updates and other load come on top."])


_SLURM = {
    "--time": (r"(\d+-)?\d+(:\d\d){0,2}", "as Slurm writes it, such as 02:00:00", "--time={}"),
    "--memory": (r"\d+[KMGT]?", "a size such as 8G", "--mem={}"),
    "--gpus": (r"[1-9]\d*", "a whole number of at least 1", "--gpus-per-task={}"),
    "--at-once": (r"[1-9]\d*", "a whole number of at least 1", ""),
    "--setup": (r"[^\n]+", "one line of shell", ""),
}  # option -> what it may be, the same in words, and its line for the scheduler


def _print_array(name: str, runs: int, words: Sequence[str], threads: int, slurm: Mapping[str, str]) -> None:
    import shlex

    for option, value in slurm.items():
        if not re.fullmatch(_SLURM[option][0], value):
            raise InvalidValue(f"{option} must be {_SLURM[option][1]}, got {value[:40]!r}")
    at_once = f"%{slurm['--at-once']}" if "--at-once" in slurm else ""
    print("#!/bin/sh")
    print(f"#SBATCH --job-name={name}")
    print(f"#SBATCH --array=1-{runs}{at_once}")
    print(f"#SBATCH --cpus-per-task={threads}")
    for option, value in slurm.items():
        if line := _SLURM[option][2]:
            print(f"#SBATCH {line.format(value)}")
    if "--setup" in slurm:
        print(slurm["--setup"])
    command = shlex.join(["spikeprune", "sweep", *words, "--threads", str(threads), "--array"])
    print(f'{command} "$SLURM_ARRAY_TASK_ID/{runs}"')


def _count(text: str | None, option: str) -> int:
    if text is None:
        return 1
    if not text.isdecimal() or not 1 <= int(text) <= 4 * (os.cpu_count() or 1) + 64:
        raise InvalidValue(f"{option} must be a whole number of at least 1, got {text!r}; as in {option} 2")
    return int(text)


def _launcher(text: str | None) -> "Launcher":
    if text is None or text == "local":
        return "local"
    if text == "ray":
        return "ray"
    raise InvalidValue(f"--launcher must be local or ray, got {text!r}; torchrun and --array need no launcher")


def _share(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)(?:/| of )(\d+)", text.strip())
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise InvalidValue(f"--array must be `print` or K/M with 1 <= K <= M, got {text!r}; as in --array 3/8")
    return int(found[1]), int(found[2])
