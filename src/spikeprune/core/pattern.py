"""Patterns of sparsity by name: "weight", "channel", "gate" and "n:m"."""

import re

from spikeprune.core.errors import InvalidValue, unknown

CHANNEL_PATTERNS = ("channel", "gate")
PATTERNS = (*CHANNEL_PATTERNS, "weight")
_NM = re.compile(r"^(\d+):(\d+)$")


def unit_of(pattern: str) -> str:
    """The unit that a pattern cuts and counts: "channels" or "weights"."""
    return "channels" if pattern in CHANNEL_PATTERNS else "weights"


def nm_pattern(name: str) -> tuple[int, int] | None:
    """(n, m) of a pattern such as "2:4", None for the named ones.

    Raises: UnknownName; InvalidValue if not 0 < n < m.
    """
    match = _NM.match(name)
    if match is None:
        if name not in PATTERNS:
            raise unknown("pattern", name, PATTERNS, "or n:m such as '2:4'")
        return None
    n, m = int(match[1]), int(match[2])
    if not 0 < n < m:
        raise InvalidValue(f"pattern {name!r} must keep between 1 and {m - 1} of {m} weights, for example '2:4'")
    return n, m
