"""report.html of a run: one self-contained page, made from the run folder alone."""

from spikeprune.lab.page.page import write_report

__all__ = ["write_report"]
