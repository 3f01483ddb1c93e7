"""Reads YAML that a stranger may have written: plain values only, and nothing that grows while it is read."""

import re
from collections.abc import Hashable
from typing import Any

import yaml

from spikeprune.core.errors import UserError
from spikeprune.lab.recipe.validate import LONGEST

_LARGEST = 100_000  # characters of a document
_DEEPEST = 6
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_OTHER_BASE = re.compile(r"[-+]?(0[0-9_]+|.*:.*)")  # 010 is 8 in YAML 1.1, and 1:30:00 is 5400


class _PlainLoader(yaml.SafeLoader):
    """The safe loader without aliases, deep nesting, huge scalars or repeated keys."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise _Refused(f"line {mark.line + 1} has an alias (*name), which can make a small file grow without limit")
        self._depth += 1
        if self._depth > _DEEPEST:
            raise _Refused(f"its values are nested deeper than {_DEEPEST} levels")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(node, yaml.ScalarNode) and len(node.value) > LONGEST:
            raise _Refused(f"line {node.start_mark.line + 1} has a value of {len(node.value):,} characters")
        if isinstance(node, yaml.ScalarNode) and node.tag in _NUMBERS and _OTHER_BASE.fullmatch(node.value):
            raise _Refused(f"line {node.start_mark.line + 1} has {node.value[:40]}, a number of base 60 or 8 in YAML")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = [name.value for name, _ in node.value if isinstance(name, yaml.ScalarNode)]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise _Refused(f"the key {repeated[0][:60]!r} stands twice")
        return super().construct_mapping(node, deep)


class _Refused(Exception):
    """A document that is valid YAML, but not one of ours."""


def read_yaml(text: str, what: str) -> Any:
    """The plain values of a YAML document.

    Args:
        what: for messages, such as "the recipe mine.yaml".
    Raises: UserError in one line if it is no YAML, or grows, nests or repeats itself.
    """
    if len(text) > _LARGEST:
        raise UserError(f"{what} has {len(text):,} characters; a recipe has some dozen lines of `key: value`")
    try:
        return yaml.load(text, _PlainLoader)
    except _Refused as error:
        raise UserError(f"{what} is refused: {error}; write plain `key: value` lines") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date or a number that does not exist
        first = (str(error).splitlines() or [type(error).__name__])[0][:100]
        raise UserError(f"{what} is not valid YAML: {first}; write one `key: value` a line") from error
