"""Keeps lines of frameworks that tell a user nothing out of the log."""

import logging


def leave_out_triton() -> None:
    """A forward of SpikingJelly 2 registers Triton kernels; torch warns of each without Triton, as on a CPU."""
    logging.getLogger("torch._library.triton").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return "Triton not available" not in record.getMessage()
