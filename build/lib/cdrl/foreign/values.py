"""YAML and JSON as plain values: text, numbers, lists and mappings, of bounded size, by one kind of error."""

from __future__ import annotations

import json
from typing import Any

import yaml

_MOST_VALUES = 20_000
_TAGS = {
    f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge", "value")
}


class _PlainLoader(yaml.SafeLoader):
    """YAML of plain values: dates are text, and a mark such as ``!!int`` must fit what it is put on.

    Aliases repeat a value without a word of the file: what they unfold to is counted before anything is made of it.
    """

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None:
            self._count(node, {})
        return node

    def _count(self, node: Any, known: dict[int, int]) -> int:
        """How many values a node stands for with all that its aliases repeat."""
        if id(node) in known:
            if not known[id(node)]:
                raise yaml.YAMLError("a value that holds itself")
            return known[id(node)]
        if node.tag not in _TAGS:
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: a value of the kind {node.tag[:80]}")
        known[id(node)] = 0
        children: list[Any] = []
        if isinstance(node, yaml.ScalarNode):
            kind = node.tag.rpartition(":")[2]
            found = self.resolve(yaml.ScalarNode, node.value, (True, False))
            if kind in ("int", "float", "bool", "null") and found != node.tag:
                raise yaml.YAMLError(f"line {node.start_mark.line + 1}: no {kind}")
        elif isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        else:
            children = node.value
        total = 1
        for child in children:
            total += self._count(child, known)
            if total > _MOST_VALUES:
                raise yaml.YAMLError(f"more than {_MOST_VALUES:,} values")
        known[id(node)] = total
        return total


_PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in _TAGS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def load_yaml(text: str) -> Any:
    """The value that a YAML text is.

    Raises:
        ValueError: it is none, or not of plain values, or of more than 20,000 of them; in one line.
    """
    try:
        return yaml.load(text, Loader=_PlainLoader)
    except RecursionError:
        raise ValueError("values within values without end") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(" ".join(str(error).split())[:300]) from None


def load_json(text: str) -> Any:
    """The value that a JSON text is.

    Raises:
        ValueError: it is none; in one line.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("values within values without end") from None
