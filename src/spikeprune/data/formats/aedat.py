"""Recordings of event cameras in AEDAT files, versions 2 (as CIFAR10-DVS has them) and 3.1 (as DVS128-Gesture does).

Source: the format's description by iniVation, docs.inivation.com/software/software-advanced-usage/file-formats
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from spikeprune.data.formats.files import damaged

_HEADER_3 = 28  # bytes before the events of a packet
_END = b"#!END-HEADER"


@dataclass(frozen=True)
class Events:
    """Events in the order of the file: microseconds, column, row, polarity 0 or 1."""

    t: Int64[np.ndarray, "M"]
    x: Int64[np.ndarray, "M"]
    y: Int64[np.ndarray, "M"]
    p: Int64[np.ndarray, "M"]

    def between(self, start: int, end: int) -> "Events":
        """The events with start <= t < end."""
        inside = (self.t >= start) & (self.t < end)
        return Events(self.t[inside], self.x[inside], self.y[inside], self.p[inside])


def read_aedat2(content: bytes, path: Path) -> Events:
    """Events of eight bytes, big-endian: an address (y in bits 8 to 14, x in 1 to 7, polarity in 0), then the time.

    CIFAR10-DVS flips both axes and the polarity, and so does this function: column = 127 - y, row = 127 - x,
    polarity = 1 - p. Raises: InvalidValue for a length that is no multiple of eight bytes.
    """
    start = _after_comments(content, path)
    if (len(content) - start) % 8:
        raise damaged(path, f"{len(content) - start} bytes behind the header, not a whole number of 8-byte events")
    words = np.frombuffer(content, ">u4", offset=start).astype(np.int64)
    address, t = words[::2], words[1::2]
    return Events(t, 127 - ((address & 0x7F00) >> 8), 127 - ((address & 0xFE) >> 1), 1 - (address & 1))


def read_aedat3(content: bytes, path: Path) -> Events:
    """Packets of a 28-byte header and events; those of type 1 are polarity events of eight bytes, little-endian.

    An event has x in bits 17 to 31, y in 2 to 16 and the polarity in bit 1 of its first word, and its time in the
    second, with the packet's count of overflows above it.
    """
    place = _after_comments(content, path)
    found: list[np.ndarray] = []
    while place < len(content):
        if place + _HEADER_3 > len(content):
            raise damaged(path, "a packet's header is cut")
        kind = int(np.frombuffer(content, "<u2", 1, place)[0])
        size, _, overflow, capacity = (int(v) for v in np.frombuffer(content, "<u4", 4, place + 4))
        place += _HEADER_3
        if place + capacity * size > len(content):
            raise damaged(path, f"a packet of {capacity} events of {size} bytes is cut")
        if kind == 1:
            if size != 8:
                raise damaged(path, f"polarity events of {size} bytes in place of 8")
            words = np.frombuffer(content, "<u4", 2 * capacity, place).astype(np.int64).reshape(-1, 2)
            words[:, 1] |= overflow << 31
            found.append(words)
        place += capacity * size
    words = np.concatenate(found) if found else np.zeros((0, 2), np.int64)
    address = words[:, 0]
    return Events(words[:, 1], (address >> 17) & 0x7FFF, (address >> 2) & 0x7FFF, (address >> 1) & 1)


def _after_comments(content: bytes, path: Path) -> int:
    """The position after the first lines, which begin with #."""
    place = 0
    while content[place : place + 1] == b"#":
        end = content.find(b"\n", place)
        if end < 0:
            raise damaged(path, "its header has no end")
        last = content[place:end].startswith(_END)
        place = end + 1
        if last:
            break
    return place
