"""Changed recipes, records, statistics, plans, masks and pruner states: each is read, or refused in one line.

    python tests/integration/fuzz_records.py [--inputs 100000] [--seed 0] [--kind record]

One value of a good file is replaced, removed or doubled; each batch runs in a process of its own with limits on memory
and time. Exit status 1 if one case ended in something else than an accepted file or a message of 20 to 400 characters.
"""

import argparse
import copy
import functools
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from fuzz_compiled import apart, mutate

from spikeprune.core.errors import UserError
from spikeprune.lab.recipe import load
from spikeprune.lab.train.folder import RunFolder, read_safetensors
from spikeprune.record.epoch import read_epochs
from spikeprune.record.statistics import StatisticsRecord
from spikeprune.shrink.plan import ChannelPlan

FINISHED = Path(__file__).parents[1] / "fixtures" / "0.1.0" / "finished" / "tiny-7ecc3f540e"
Read = Callable[[Any, Path], object]
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def _recipe(tree: Any, folder: Path) -> object:
    path = folder / "changed.yaml"
    path.write_text(yaml.dump(tree, Dumper=_DUMPER, allow_unicode=True))
    return load(str(path))


def _record(tree: Any, folder: Path) -> object:
    changed = RunFolder(folder)
    changed.record.write_text(json.dumps(tree))
    return changed.read_record()


def _statistics(tree: Any, folder: Path) -> object:
    path = folder / "statistics.json"
    path.write_text(json.dumps(tree))
    return StatisticsRecord.of_file(path)


def _metrics(tree: Any, folder: Path) -> object:
    path = folder / "metrics.jsonl"
    lines = tree if isinstance(tree, list) else [tree]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_epochs(path)


def _masks(tree: Any, folder: Path) -> object:
    """The header of a safetensors file; the data behind it stays."""
    good = (FINISHED / "masks.safetensors").read_bytes()
    size = int.from_bytes(good[:8], "little")
    head = json.dumps(tree).encode()
    path = folder / "masks.safetensors"
    path.write_bytes(len(head).to_bytes(8, "little") + head + good[8 + size :])
    return read_safetensors(path)


def _plan(tree: Any, folder: Path) -> object:
    """A plan that is read is carried out too, or refused there."""
    model, small = _shrunk()
    return ChannelPlan.from_json(json.dumps(tree)).rebuild(model, small)


def _state(tree: Any, folder: Path) -> object:
    """A pruner state, whose tensors the changes leave whole or put somewhere else."""
    _, pruner = _pruner()
    before = pruner.alive
    try:
        return pruner.load_state_dict(tree)
    except UserError:
        assert pruner.alive == before, "a refused state changed the masks"
        raise


@functools.cache
def _pruner() -> Any:
    import spikeprune as sp

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruner = sp.Pruner(model, "gradient", sp.Cubic(to=0.5, begin=0, end=8, every=2)).attach(optimizer)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.rand(4, 5)).square().sum().backward()
        optimizer.step()
    return copy.deepcopy(pruner.state_dict()), pruner


def _header() -> Any:
    good = (FINISHED / "masks.safetensors").read_bytes()
    return json.loads(good[8 : 8 + int.from_bytes(good[:8], "little")])


@functools.cache
def _shrunk() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """A network and the weights of the small one that its plan gives."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = 0, 0
    return model, _small(model)[0].state_dict()


def _small(model: torch.nn.Module) -> tuple[torch.nn.Module, ChannelPlan]:
    import spikeprune as sp

    dead = {"0.weight": model[0].weight != 0, "0.bias": model[0].bias != 0}
    return sp.shrink(model, dead, torch.ones(1, 4))


def _good_plan() -> Any:
    return json.loads(_small(_shrunk()[0])[1].to_json())


@functools.cache
def kinds() -> dict[str, tuple[Any, Read]]:
    """Kind of file -> a good one as a tree, and how it is read."""
    lines = (FINISHED / "metrics.jsonl").read_text().splitlines()
    return {
        "recipe": (yaml.safe_load((FINISHED / "recipe.yaml").read_text()), _recipe),
        "record": (json.loads((FINISHED / "record.json").read_text()), _record),
        "statistics": (json.loads((FINISHED / "statistics.json").read_text()), _statistics),
        "metrics": ([json.loads(line) for line in lines], _metrics),
        "masks": (_header(), _masks),
        "plan": (_good_plan(), _plan),
        "state": (_pruner()[0], _state),
    }


def attempt(tree: Any, read: Read, folder: Path) -> str:
    """What a case does: "refused", "accepted", or what went wrong."""
    begin = time.process_time()
    try:
        read(tree, folder)
    except UserError as error:
        if "\n" in str(error) or not 20 <= len(str(error)) <= 400:
            return f"a message of {len(str(error))} characters: {str(error)[:120]!r}"
        outcome = "refused"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:120]}"
    else:
        outcome = "accepted"
    spent = time.process_time() - begin
    return outcome if spent < 5 else f"took {spent:.1f} s"


def cases(kind: str, seed: int, size: int, folder: Path) -> Counter[str]:
    """Outcomes of `size` changed files of a kind, counted."""
    rng = random.Random(f"{kind} {seed}")
    good, read = kinds()[kind]
    found: Counter[str] = Counter()
    for _ in range(size):
        tree = copy.deepcopy(good)
        if kind == "recipe":  # a recipe may leave keys out, and a short one is read in a fifth of the time
            tree = {key: tree[key] for key in rng.sample(list(tree), 12)}
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            try:
                mutate(tree, rng)
            except (IndexError, KeyError, TypeError):  # nothing is left to change
                break
        try:
            json.dumps(tree, default=str)
        except (ValueError, RecursionError):
            continue
        found[attempt(tree, read, folder)] += 1
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--kind", choices=sorted(kinds()))
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = [options.kind] if options.kind else sorted(kinds())
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        done = 0
        while done < options.inputs:
            for kind in names:
                seed = options.seed + done
                total += apart(
                    lambda kind=kind, seed=seed: cases(kind, seed, options.batch, Path(folder)), options.batch
                )
                done += options.batch
            print(done, dict(total), flush=True)
    return 0 if set(total) <= {"refused", "accepted"} else 1


if __name__ == "__main__":
    sys.exit(main())
