"""Reading the trainer's `config.yaml`, which comes from an unknown author, within limits.

The trainer writes it with `yaml.dump`. So it may have aliases, and tags of Python's own types, but no merge keys, which
could grow without limit.
"""

from collections.abc import Hashable, Mapping
from typing import Any

import yaml

# The trainer's own configs have a few KB, most of it prompts.
MAX_BYTES = 2**20
MAX_DEPTH, MAX_NODES, MAX_ALIASES = 30, 50_000, 1_000
ORDERED_DICT = "tag:yaml.org,2002:python/object/apply:collections.OrderedDict"
MERGE_KEY = "<<"


class ConfigUnreadable(ValueError):
    """The file is not a whole config of the trainer. The message ends the sentence "config.yaml"."""


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """A safe loader that reads a value with an unknown tag as what it looks like."""

    def construct_untagged(self, suffix: str, node: yaml.Node) -> Any:
        if isinstance(node, yaml.MappingNode):
            return self.construct_mapping(node, deep=True)
        if isinstance(node, yaml.SequenceNode):
            return self.construct_sequence(node, deep=True)
        return self.construct_scalar(node)

    def construct_ordered(self, node: yaml.Node) -> Any:
        """An OrderedDict, which `yaml.dump` writes as the list of its arguments: one list of pairs."""
        pairs = self.construct_untagged("", node)
        try:
            return dict(pairs[0]) if pairs else {}
        except (TypeError, ValueError, KeyError) as error:
            raise ConfigUnreadable("has a mapping that cannot be read") from error


_Loader.add_multi_constructor("", _Loader.construct_untagged)
_Loader.add_constructor(ORDERED_DICT, _Loader.construct_ordered)


def read_config(data: bytes) -> Mapping[Hashable, Any]:
    """The mapping that the file holds. Raises ConfigUnreadable."""
    if len(data) > MAX_BYTES:
        raise ConfigUnreadable(f"has more than {MAX_BYTES} bytes")
    try:
        text = data.decode()
        _check_events(text)
        document = yaml.load(text, _Loader)
    except ConfigUnreadable:
        raise
    except Exception as error:
        # PyYAML's constructors raise what their parts raise: ValueError, OverflowError, KeyError, AttributeError and
        # more, for values such as dates that do not exist.
        raise ConfigUnreadable("is not YAML, or is still being written") from error
    if not isinstance(document, dict):
        raise ConfigUnreadable("holds no mapping, or is still being written")
    return document


def _check_events(text: str) -> None:
    """Raise ConfigUnreadable for a document that is too deep or too large, before anything is built of it."""
    depth = aliases = 0
    for nodes, event in enumerate(yaml.parse(text, _Loader)):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.AliasEvent):
            aliases += 1
        elif isinstance(event, yaml.ScalarEvent) and event.value == MERGE_KEY:
            raise ConfigUnreadable("has merge keys (<<), which the trainer does not write")
        if depth > MAX_DEPTH or nodes > MAX_NODES or aliases > MAX_ALIASES:
            raise ConfigUnreadable("is nested too deeply, or has too many entries")
