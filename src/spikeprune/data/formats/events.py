"""Event recordings of five bytes an event, gathered into frames.

Source: Orchard et al. 2015, "Converting Static Image Datasets to Spiking Neuromorphic Datasets Using Saccades",
Frontiers in Neuroscience 9:437; frames as in SpikingJelly's `integrate_events_by_fixed_frames_number`.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from spikeprune.data.formats.files import damaged

_OVERFLOW_ROW = 240  # such an entry marks an overflow of the clock and is no event


def frames_of(content: bytes, T: int, side: int, path: Path) -> UInt8[np.ndarray, "T 2 side side"]:
    """Events per polarity and pixel in T frames of equally many events; the last frame takes the remainder.

    With M events in order of time, event i belongs to frame min(i // (M // T), T - 1). An entry has five bytes: x, y,
    one bit polarity and 23 bits time in microseconds.

    Args:
        content: the recording's bytes.
        side: pixels in a row, and rows.
        path: for the message of an error.
    """
    if not content or len(content) % 5:
        raise damaged(path, f"{len(content)} bytes, not a whole number of 5-byte events")
    entries = np.frombuffer(content, np.uint8).reshape(-1, 5).astype(np.int64)
    entries = entries[entries[:, 1] != _OVERFLOW_ROW]
    return gather(entries[:, 0], entries[:, 1], entries[:, 2] >> 7, T, side, path)


def gather(
    x: Int64[np.ndarray, "M"],
    y: Int64[np.ndarray, "M"],
    polarity: Int64[np.ndarray, "M"],
    T: int,
    side: int,
    path: Path,
    clip: bool = False,
) -> UInt8[np.ndarray, "T 2 side side"]:
    """Events per polarity and pixel in T frames of equally many events; the last frame takes the remainder.

    Args:
        side: height and width of the frames in pixels.
        clip: counts above 255 become 255 (real cameras have hot pixels); without it they raise.
    Raises: InvalidValue for fewer than T events, and for an event outside the frame.
    """
    if len(x) < T or max(x.max(), y.max()) >= side:
        raise damaged(path, f"fewer than T = {T} events, or events outside {side}x{side} pixels")
    frame = np.minimum(np.arange(len(x)) // (len(x) // T), T - 1)
    where = ((frame * 2 + polarity) * side + y) * side + x
    counts = np.bincount(where, minlength=T * 2 * side * side)
    if counts.max() > 255 and not clip:
        raise damaged(path, f"{counts.max()} events in one pixel of one frame, more than 255; try a larger T")
    return counts.clip(max=255).astype(np.uint8).reshape(T, 2, side, side)
