"""The errors of the library. Each message says what came, what is allowed and what to try.

`UserError` marks a mistake that the user can mend (exit status 2 on the command line); `RunFailed` marks a run that
went wrong on its own, such as a loss that is not a number (exit status 1).
"""

import difflib
import re
from collections.abc import Iterable

_LONG_WORD, _LONGEST = re.compile(r"\S{201,}"), 400


def _without_middle(text: str, length: int) -> str:
    """The beginning and the end of a text, in that length together."""
    end = length // 2 - 5
    return f"{text[: length - 5 - end]} ... {text[-end:]}"


class UserError(Exception):
    """A mistake in the input. The message is one or two lines and names the next thing to try.

    A message may quote a name from a file that somebody else wrote, and such a name can be of any length. So a word of
    more than 200 characters and a message of more than 400 lose their middle.
    """

    def __init__(self, message: object = "", *rest: object) -> None:
        text = _LONG_WORD.sub(lambda word: _without_middle(word[0], 120), str(message))
        super().__init__(_without_middle(text, _LONGEST) if len(text) > _LONGEST else text, *rest)


class InvalidValue(UserError, ValueError):
    """A value outside what is allowed."""


class UnknownName(UserError, KeyError):
    """A name that is not registered. A KeyError, so that `get` and `in` work on mappings that raise it."""

    __str__ = Exception.__str__  # a KeyError's quoting would spoil the message


class MissingEvidence(UserError, LookupError):
    """A method needs statistics or gradients that nothing has supplied."""

    __str__ = Exception.__str__


class MissingDependency(UserError, ImportError):
    """An optional package is not installed."""


class RunFailed(RuntimeError):
    """A run that cannot go on, through no mistake in its settings that we could see beforehand."""


_FEW = 8


def unknown(kind: str, name: object, known: Iterable[str], hint: str = "") -> UnknownName:
    """The error for an unknown name, with the nearest known one offered. `hint` says where the whole list stands."""
    names, text = sorted(known), str(name)
    text = text if len(text) <= 80 else f"{text[:80]}..."
    near = _nearest(text, names)
    if near is not None:
        offer = f"; did you mean {near!r}?"
    elif hint and len(names) > _FEW:  # the first of many names in the alphabet would only mislead
        offer = ""
    else:
        offer = f"; known: {', '.join(names[:_FEW])}" + (" ..." if names[_FEW:] else "")
    return UnknownName(f"no {kind} named {text!r}{offer}{' ' + hint if hint else ''}")


def _nearest(text: str, names: list[str]) -> str | None:
    """The name that was probably meant: one that holds the text, `data.limit` for `limit`, or a near spelling."""
    same_end = [name for name in names if name.rpartition(".")[2] == text]
    longer = [name for name in names if len(text) >= 3 and name.startswith(text)]
    close = difflib.get_close_matches(text, names, n=1, cutoff=0.6)
    return next(iter([*same_end, *close, *longer]), None)


def first_line(error: BaseException, most: int) -> str:
    """The first line of what an error says, at most so many characters; its type where it says nothing."""
    return (str(error) or type(error).__name__).splitlines()[0][:most]
