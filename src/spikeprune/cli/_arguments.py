"""What the commands share: argparse whose complaints are ours, and JSON output."""

import argparse
import json
from typing import Any, NoReturn

from spikeprune.core.errors import InvalidValue


class Parser(argparse.ArgumentParser):
    """argparse that reports a wrong command line as one line of ours."""

    def __init__(self, command: str, description: str):
        super().__init__(prog=f"spikeprune {command}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise InvalidValue(f"{self.prog}: {message}; `{self.prog} --help` shows what it takes")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise SystemExit(status)


def print_json(value: Any) -> None:
    """One JSON object on stdout."""
    print(json.dumps(value, allow_nan=False))
