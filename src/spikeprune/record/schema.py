"""The schema number of the files of a run folder: record.json, statistics.json and bench.json.

Keys may be added under the same number; a key that is taken away or changes its meaning raises it.
"""

from spikeprune.record.base import Impossible

SCHEMA = 1


def check(number: int, key: str, known: int = SCHEMA) -> None:
    """Raises: Impossible for a file of a later version, whose keys may mean something else."""
    if number > known:
        raise Impossible(f"{key} is {number}, written by a later version; this one reads {known}: update spikeprune")
