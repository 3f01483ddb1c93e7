"""Compiled files with fields and bytes changed and their checksum made anew: each is refused in one line, or runs.

    python tests/integration/fuzz_compiled.py --inputs 1000000 [--seed 0] [--batch 2000] [--keep FOLDER]

A changed file that reaches lines of the reader and validator that no file before it reached, or an error text that
none had, is changed further (`Corpus`). Lines are traced for every eighth file, texts of errors for each. Every batch
runs in a process of its own with a limit on memory, and a limit of 10 s of processor time for each file, so that a
signal or a hang is counted and not fatal; the file that caused it is kept as `killed-SEED.snn`.
"""

import argparse
import copy
import hashlib
import json
import os
import random
import re
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

import spikeprune as sp
from spikeprune.core.errors import UserError
from spikeprune.runtime.compile import load
from spikeprune.runtime.compile.store import MAGIC

VALUES = (
    0, 1, 2, 3, 5, 9, -1, 100, 65_535, 65_536, 2**31 - 1, 2**31, 2**63, 10**30, 1.5, float("nan"), float("inf"), True,
    False, None, "", "x" * 5000, "conv", "neuron", [], [0], [1, 1], [2**20, 2**20], {}, [[1]],
)  # fmt: skip


TRACED, LONGEST = 8, 10.0  # every how many files the lines are traced; seconds for one file
WATCHED = tuple(str(Path(sp.__file__).parent / "runtime" / part) for part in ("compile", "steps"))


def parts(path):
    """(header, data) of a compiled file."""
    body = Path(path).read_bytes()[len(MAGIC) + 32 :]
    size = int.from_bytes(body[:8], "little")
    return json.loads(body[8 : 8 + size]), body[8 + size :]


class Corpus:
    """Files to change, and what the files before them have reached: lines of the reader, and texts of errors.

    Files that ran are kept apart from those that were refused, whose changes are refused at the same place mostly.
    """

    def __init__(self, folder):
        self.ran, self.refused, self.seen, self.folder = [], [], set(), folder
        self.tried, self._known = 0, {}
        for path in sorted(folder.glob("*.snn")):
            if not path.name.startswith("killed"):
                self.add(path.read_bytes(), not path.name.startswith("refused"))
        if (folder / "seen.json").exists():
            self.seen |= set(json.loads((folder / "seen.json").read_text()))

    def draw(self, rng):
        """(header as JSON, network as JSON, data) of one file."""
        return rng.choice(self.refused if self.refused and rng.random() < 0.3 else self.ran)

    def add(self, content, ran):
        """Takes a file in, if it is whole enough to be changed again."""
        try:
            body = content[len(MAGIC) + 32 :]
            size = int.from_bytes(body[:8], "little")
            header = json.loads(body[8 : 8 + size])
            network = header["__metadata__"].pop("network")
            if isinstance(json.loads(network), dict):
                (self.ran if ran else self.refused).append((json.dumps(header), network, body[8 + size :]))
                return True
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass
        return False

    def attempt(self, content, path):
        """`attempt`, with what it reaches noted; a file that reaches something new stays."""
        self.tried += 1
        if self.tried % TRACED == 1:
            (outcome, said), lines = traced(content, path)
        else:
            (outcome, said), lines = attempt(content, path), set()
        reached = {self._name(line) for line in lines}
        reached.add(re.sub(r"[0-9]+|'.*?'|\[.*?\]", "_", said)[:80])
        if reached - self.seen:
            self.seen |= reached
            if self.add(content, outcome == "ran"):
                (self.folder / f"{outcome[:7]}-{hashlib.sha256(content).hexdigest()[:16]}.snn").write_bytes(content)
        return outcome

    def _name(self, line):
        if line not in self._known:
            self._known[line] = f"{line[0].co_filename[-24:]}:{line[1]}"
        return self._known[line]

    def write(self):
        (self.folder / "seen.json").write_text(json.dumps(sorted(self.seen)))


_watched = {}  # code -> whether its lines are noted


def traced(content, path):
    """What a file does, and the lines that it reaches on its way, as (code, number)."""
    reached = set()

    def line(frame, event, _):
        reached.add((frame.f_code, frame.f_lineno))
        return line

    def call(frame, event, _):
        code = frame.f_code
        if code not in _watched:
            _watched[code] = code.co_filename.startswith(WATCHED)
        return line if _watched[code] else None

    before = sys.gettrace()
    sys.settrace(call)
    try:
        return attempt(content, path), reached
    finally:
        sys.settrace(before)


def places(tree, path=()):
    """The path of every value in a JSON tree."""
    found = []
    _places(tree, path, found)
    return found


def _places(tree, path, found):
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, child in children:
        here = (*path, key)
        found.append(here)
        if isinstance(child, (dict, list)):
            _places(child, here, found)


def mutate(tree, rng):
    """One value replaced, removed, doubled, or swapped with another; also inside a text that holds a program."""
    path = rng.choice(places(tree))
    parent = tree
    for key in path[:-1]:
        parent = parent[key]
    if isinstance(parent[path[-1]], str) and parent[path[-1]].startswith("{"):
        inner = _program(parent[path[-1]])
        if inner and rng.random() < 0.95:
            mutate(inner, rng)
            parent[path[-1]] = json.dumps(inner)
            return
    kind = rng.random()
    if kind < 0.5:
        parent[path[-1]] = copy.deepcopy(rng.choice(VALUES))
    elif kind < 0.7:  # a value of the same tree in another place
        other = tree
        for key in rng.choice(places(tree)):
            other = other[key]
        parent[path[-1]] = copy.deepcopy(other)
    elif kind < 0.8:
        del parent[path[-1]]
    elif isinstance(parent, list):
        parent.insert(rng.randrange(len(parent) + 1), copy.deepcopy(parent[path[-1]]))
    else:
        other = rng.choice(sorted(parent))
        parent[path[-1]], parent[other] = parent[other], parent[path[-1]]


def _program(text):
    """The JSON object in a text; None for a text that a changed byte of an earlier file has spoilt."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None


def changed(header, network, data, rng):
    """A whole file with one to three changes and a checksum that fits; `header` and `network` are JSON."""
    header, data = json.loads(header), bytearray(data)
    tree = None  # the network is read where it is changed
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        way = rng.random()
        if way < 0.75:
            tree = json.loads(network) if tree is None else tree
            if tree:
                mutate(tree, rng)
        elif way < 0.9:
            if header:
                mutate(header, rng)
        elif data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    if isinstance(header.get("__metadata__"), dict):
        header["__metadata__"]["network"] = network if tree is None else json.dumps(tree)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    body = bytearray(len(text).to_bytes(8, "little") + text + data)
    if rng.random() < 0.1:
        body[rng.randrange(min(len(body), 200 + len(text)))] ^= 1 << rng.randrange(8)
    return MAGIC + hashlib.sha256(body).digest() + bytes(body)


def attempt(content, path):
    """What a file does ("refused", "ran", or the name of what went wrong), and the text of its error."""
    path.write_bytes(content)
    begin = time.process_time()
    said = ""
    try:
        compiled = load(path)
        loaded = time.process_time() - begin
        if compiled.network.T * len(compiled.network.layers) < 5_000:
            sys.settrace(None)
            _call(compiled)
    except UserError as error:
        said = str(error)
        if "\n" in said or not 20 <= len(said) < 400:
            return f"message of {len(said)} characters", said
        loaded, outcome = time.process_time() - begin, "refused"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:80]}", str(error)
    else:
        outcome = "ran"
    return (outcome if loaded < 1 else f"took {loaded:.1f} s"), said


def _call(compiled):
    """Two steps of one sample, in the layout that the network takes."""
    network = compiled.network
    x = torch.rand(2, 1, *network.input_shape) * 4
    time_axis, batch_axis = network.layout.input
    x = x.movedim((0, 1), (time_axis, batch_axis)) if max(time_axis, batch_axis) < x.dim() else x
    compiled(x)


def batch(corpus, seed, size, folder):
    """Outcomes of `size` changed files, counted."""
    rng = random.Random(seed)
    path = folder / f"changed-{seed}.snn"
    found = Counter()
    for _ in range(size):
        content = changed(*corpus.draw(rng), rng)
        signal.setitimer(signal.ITIMER_PROF, LONGEST)  # SIGPROF ends a hang
        found[corpus.attempt(content, path)] += 1
    signal.setitimer(signal.ITIMER_PROF, 0)
    path.unlink()
    return found


def separately(folder, seed, size, scratch):
    """`batch` in a process of its own; the corpus lies in a folder, and grows there."""

    def work():
        corpus = Corpus(folder)
        found = batch(corpus, seed, size, scratch)
        corpus.write()
        return found

    found = apart(work, size, f"the batch of seed {seed}")
    last = scratch / f"changed-{seed}.snn"
    if last.exists():
        last.rename(folder / f"killed-{seed}.snn")
    return found


def begin(folder):
    """Good files of every kind, as the first of a corpus, and a call of each."""
    from compiled_nets import good_files

    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.glob("*.snn")):
        good_files(folder)
    for name in ("good", "loop"):  # so that what torch imports at a first call is there before the batches are forked
        _call(load(folder / f"{name}.snn"))


def apart(function, size, what="a batch", gib=8):
    """The counted outcomes that a function returns, in a process of its own with limits on memory and time."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        if "ASAN_OPTIONS" not in os.environ:  # a sanitizer reserves terabytes of addresses
            now = (
                int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
                if Path("/proc").is_dir()
                else 0
            )
            resource.setrlimit(resource.RLIMIT_AS, (now + (gib << 30),) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (60 + size // 10, 70 + size // 10))  # a hang ends by SIGXCPU
        os.write(write, json.dumps(function()).encode()[:60_000])
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    if status & 127:
        return Counter({f"KILLED by {signal.Signals(status & 127).name} in {what}": 1})
    return Counter(json.loads(said))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=2000)
    parser.add_argument("--keep", type=Path, help="folder of the corpus; a scratch folder by default")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = options.keep or Path(name) / "corpus"
        begin(folder)
        for first in range(0, options.inputs, options.batch):
            size = min(options.batch, options.inputs - first)
            found += separately(folder, options.seed + first, size, Path(name))
            print(first + size, dict(found), f"{len(list(folder.glob('*.snn')))} files in the corpus", flush=True)
    return 0 if set(found) <= {"refused", "ran"} else 1


if __name__ == "__main__":
    sys.exit(main())
