"""spikeprune: small, fast spiking neural networks."""

import contextlib
import errno
import importlib
import logging
import os
import pkgutil
import sys
import textwrap
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

_HELP = """usage: spikeprune COMMAND ... [--debug]

{commands}

examples:
  spikeprune demo                               what it does, in a minute
  spikeprune run digits                         a first run with a report
  spikeprune squeeze digits --sparsity 0.8      a trained network made small
  spikeprune list methods

`spikeprune COMMAND --help` explains one.
--debug shows a traceback where something goes wrong.
Exit status: 0 done, 1 the run failed, 2 the input was wrong."""


def commands() -> list[str]:
    """Names of the commands: the files of this folder."""
    found = [module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])]
    return sorted(name for name in found if name != "main" and not name.startswith("_"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. An error is one or two lines on stderr."""
    from spikeprune.core.errors import RunFailed, UserError

    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        with _quiet(debug):
            return _dispatch(words)
    except UserError as error:
        return _fail(error, 2, debug)
    except RunFailed as error:
        return _fail(error, 1, debug)
    except SystemExit as end:  # argparse's own way to end after --help
        return int(end.code or 0)
    except KeyboardInterrupt:
        print("spikeprune: stopped; the same command continues where it was", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output has left, as in `spikeprune list | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno in _FULL:
            said = f"the disk is full{_place(error)}; free some space, and the same command continues"
            return _fail(RunFailed(said), 1, debug)
        if error.errno in _READ_ONLY:
            return _fail(UserError(f"cannot write{_place(error)}: {error.strerror}; use another --out"), 2, debug)
        return _fault(error, debug)
    except Exception as error:
        return _fault(error, debug)


_FULL = {errno.ENOSPC, errno.EDQUOT}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


def _place(error: OSError) -> str:
    return "" if error.filename is None else f" {str(error.filename)[-200:]}"


def _fault(error: Exception, debug: bool) -> int:
    print(f"{_ours()} {type(error).__name__}: {_one_line(error)}", file=sys.stderr)
    print("This is a fault of spikeprune or of a model of yours; --debug shows where.", file=sys.stderr)
    if debug:
        traceback.print_exc()
    return 1


def _dispatch(words: list[str]) -> int:
    from spikeprune.core.errors import unknown

    if not words or words[0] in ("--help", "-h", "help"):
        rows = [textwrap.fill(_summary(_module(name)), 80, initial_indent=f"  {name:<11}", subsequent_indent=" " * 13)
                for name in commands()]  # fmt: skip
        print(_HELP.format(commands="\n".join(rows)))
        return 0 if words else 2
    if words[0] in ("--version", "version"):
        from importlib.metadata import version

        print(f"spikeprune {version('spikeprune')}")
        return 0
    if words[0] not in commands():
        raise unknown("command", words[0], [*commands(), "version"], "(`spikeprune --help` lists all)")
    return int(_module(words[0]).main(words[1:]) or 0)


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"spikeprune.cli.{name}")


def _summary(module: ModuleType) -> str:
    return (module.__doc__ or "").strip().splitlines()[0]


def _fail(error: Exception, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"{_ours()} {_one_line(error)}", file=sys.stderr)
    return status


def _ours() -> str:
    from spikeprune.cli._terminal import paint

    return paint("spikeprune:", "red", sys.stderr)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class _Lines(logging.Handler):
    """Prints each message on a line of its own, above a progress bar that may have replaced sys.stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"spikeprune: {record.getMessage().removeprefix('spikeprune: ')}", file=sys.stderr)


@contextlib.contextmanager
def _quiet(debug: bool) -> Iterator[None]:
    """Lines that frameworks print by themselves are not ours to show; our own warnings are one line each."""
    os.environ.setdefault("LOGURU_AUTOINIT", "0")
    # Threads that spin while they wait make small networks several times slower on a machine that has other work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TORCH_LOGS", "-all")  # errors only: torch sets its loggers anew when it is imported
    if debug:
        yield
        return

    def show(message: Warning | str, category: type[Warning], filename: str, *_: object) -> None:
        if "spikeprune" in Path(filename).parts:
            print(f"spikeprune: {' '.join(str(message).split())}", file=sys.stderr)

    handler = _Lines()
    ours, torchs = logging.getLogger("spikeprune"), logging.getLogger("torch")
    level = torchs.level
    ours.addHandler(handler)
    torchs.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.showwarning = show
            yield
    finally:
        ours.removeHandler(handler)
        torchs.setLevel(level)


if __name__ == "__main__":
    sys.exit(main())
