"""Makes the study again, from nothing: `python study/make.py --root DIR --workers 2 [NAME ...]`.

    python study/make.py --root DIR tune deep      # first chooses settings for each arm, where a file has `tune`
    python study/make.py --root DIR hours [NAME ...]   # writes how long each part would take on this machine
    python study/make.py --root DIR collect NAME ...   # makes the page of what is finished, and runs nothing

For each NAME, in the order of study/page.py: the runs of study/NAME.yaml, then study/results/NAME.json; docs/study.md
comes last. It may be stopped at any moment: the same command goes on, since what is finished is found by its hash.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import page

from spikeprune.lab.study.tuning import as_dict, tried
from spikeprune.lab.sweep.sweep import read_sweep, read_tuning
from spikeprune.lab.sweep.workers import work

ROOT = page.ROOT
_MECHANISM = ("criticality", "magnitude", "random", "gradient")  # the first is analysed against the others
_SEEDS = ("0", "1", "2")


def spikeprune(*words: str, quiet: bool = False) -> str:
    """What the command prints, which is shown as well unless `quiet`; its seconds are CPU seconds (study/clock.py).

    Raises: SystemExit if it fails.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]  # the recipes name study.networks
    done = subprocess.run(
        [sys.executable, str(ROOT / "study" / "clock.py"), *words],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,  # files of the study name each other from there
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    if not quiet:
        print(done.stdout, end="", flush=True)
    if done.returncode:
        raise SystemExit(done.returncode)
    return done.stdout


def sweep(name: str, data: list[str], out: Path, workers: str) -> None:
    """The runs of a sweep and their comparison."""
    tuned = [*tuned_for(name)]
    spikeprune("sweep", str(ROOT / "study" / f"{name}.yaml"), *data, "--out", str(out), "--workers", workers, *tuned)
    collect(name, data, out)


def collect(name: str, data: list[str], out: Path) -> None:
    """study/results/NAME.json, from the runs of a sweep that are finished."""
    os.chdir(ROOT)
    found = read_sweep(str(ROOT / "study" / f"{name}.yaml"), [*data, "--out", str(out), *tuned_for(name)])
    found.save()
    told = spikeprune("compare", str(found.file), "--json", quiet=True)
    (ROOT / "study" / "results" / f"{name}.json").write_text(told, encoding="utf-8")


def tuned_for(name: str) -> list[str]:
    """The words that hand a sweep the settings that tuning has chosen for it."""
    chosen = ROOT / "study" / "results" / "tuned" / f"{name}.json"
    return ["--tuned", str(chosen)] if chosen.is_file() else []


def tune(name: str, data: list[str], out: Path, workers: str) -> None:
    """The tuning runs of a sweep, and what they choose."""
    file = str(ROOT / "study" / f"{name}.yaml")
    os.chdir(ROOT)
    found = read_tuning(file, [*data, "--out", str(out)])
    failed = work(found.tasks, int(workers), 1, lambda end: print(end.task.label, end.message or "done", flush=True))
    if failed:
        raise SystemExit(f"{len(failed)} tuning runs failed, first: {failed[0].message}")
    varied = tuple(key for key in ("lr", "optim.weight_decay") if len({_key(t.recipe, key) for t in found.tasks}) > 1)
    target = ROOT / "study" / "results" / "tuned"
    target.mkdir(parents=True, exist_ok=True)
    said = json.dumps(as_dict(tried(found, varied)), indent=1)
    (target / f"{name}.json").write_text(said + "\n", encoding="utf-8")


def _key(recipe: object, key: str) -> object:
    for part in key.split("."):
        recipe = getattr(recipe, part)
    return recipe


def hours(names: list[str], data: list[str], out: Path) -> None:
    """study/results/hours.txt: for each part, how many runs are left and how long they would take here."""
    file = ROOT / "study" / "results" / "hours.txt"
    known = dict(line.split(": ", 1) for line in file.read_text().splitlines()) if file.is_file() else {}
    for name in names or [name for name in page.ORDER if name != "mechanism"]:
        told = spikeprune(
            "sweep", str(ROOT / "study" / f"{name}.yaml"), *data, "--out", str(out), "--dry-run", quiet=True
        )
        known[name] = next(line for line in told.splitlines() if re.match(r"\d+ runs, .*: about", line))
        print(f"{name}: {known[name]}", flush=True)
        lines = [f"{part}: {known[part]}\n" for part in page.ORDER if part in known]
        file.write_text("".join(lines), encoding="utf-8")


def mechanism(data: list[str], out: Path) -> None:
    """Runs with and without regeneration, and their analysis."""
    folders = {
        method: [
            spikeprune(
                "run", str(ROOT / "study" / "mechanism.yaml"), "--method", method, "--seed", seed, *data,
                "--out", str(out),
            ).splitlines()[-1]
            for seed in _SEEDS
        ]
        for method in _MECHANISM
    }  # fmt: skip
    first, *others = folders.values()
    spikeprune("analyze", *first, "--against", *(folder for arm in others for folder in arm))
    keep(first[0], "mechanism")


def recovered(data: list[str], out: Path) -> None:
    """The analysis of the runs of recovery_digits, in which regrown weights have time to grow."""
    found = read_sweep(str(ROOT / "study" / "recovery_digits.yaml"), [*data, "--out", str(out)])
    arms: dict[str, list[str]] = {}
    for task in found.tasks:
        if task.finished:
            arms.setdefault(task.label, []).append(str(task.folder.path))
    first = arms.pop("criticality, constant share")
    spikeprune("analyze", *first, "--against", *(folder for arm in arms.values() for folder in arm))
    keep(first[0], "mechanism_recovery")


def keep(run: str, name: str) -> None:
    """Copies a run's analysis to study/results/NAME; study/page.py makes analysis.html of it."""
    target = ROOT / "study" / "results" / name
    target.mkdir(parents=True, exist_ok=True)
    (target / "analysis.json").write_bytes((Path(run) / "analysis.json").read_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"{', '.join(page.ORDER)}; default: all")
    parser.add_argument("--root", default=os.environ.get("SPIKEPRUNE_DATA"), help="the data; default SPIKEPRUNE_DATA")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "study", help="where run folders go")
    parser.add_argument("--workers", default="1", help="runs made at a time")
    options = parser.parse_args()
    data = [] if options.root is None else ["--data.root", str(Path(options.root).resolve())]
    if options.names[:1] == ["hours"]:
        hours(options.names[1:], data, options.out.resolve())
        return
    if options.names[:1] == ["collect"]:
        for name in options.names[1:]:
            collect(name, data, options.out.resolve())
        page.main()
        return
    if options.names[:1] == ["tune"]:
        for name in options.names[1:]:
            tune(name, data, options.out.resolve(), options.workers)
        return
    wrong = [name for name in options.names if name not in page.ORDER]
    if wrong:
        parser.error(f"no part of the study named {wrong[0]!r}; there are {', '.join(page.ORDER)}")
    for name in options.names or page.ORDER:
        if name == "mechanism":
            mechanism(data, options.out.resolve())
        else:
            sweep(name, data, options.out.resolve(), options.workers)
        if name == "recovery_digits":
            recovered(data, options.out.resolve())
    page.main()


if __name__ == "__main__":
    main()
