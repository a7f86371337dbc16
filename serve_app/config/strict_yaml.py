"""YAML in which no mapping has the same key twice. YAML's own loader would take the last one and say nothing."""

from collections.abc import Hashable
from typing import Any

import yaml

MERGE = "tag:yaml.org,2002:merge"


class DuplicateKey(yaml.MarkedYAMLError):
    """A mapping has a key twice; `problem_mark` says where the second one is."""


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        # Check before merge keys (<<) are expanded: a mapping may override the keys that they bring.
        keys = [key for key, _ in node.value if key.tag != MERGE]
        mapping = super().construct_mapping(node, deep)
        seen = set()
        for key in keys:
            value = self.construct_object(key, deep=True)
            if value in seen:
                raise DuplicateKey(problem="the mapping has this key twice", problem_mark=key.start_mark)
            seen.add(value)
        return mapping


def load(text: str) -> Any:
    """What the YAML in `text` says. Raises DuplicateKey or another yaml.YAMLError."""
    return yaml.load(text, _Loader)
