"""One reader for every YAML file here, and a cluster's. What looks like a word is a word, a number is a number.

YAML 1.1, which PyYAML reads, takes 0100 for 64, 1:30 for 90, 1e-3 for a word, on and no for truth values, and of two
equal keys the last. Here numbers and truth values are JSON's, and what could be read in two ways is an error.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml


class YamlError(ValueError):
    """A file that cannot be read as it is; the message names file, line and what to do."""


STRANGE = re.compile("[\0\ud800-\udfff]")  # by an escape: no file has such a name, and no output can show them


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}  # noqa: RUF012

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _problem("a key has to be a word or a number", key_node)
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise _problem("merge keys (<<) are not read here: use extends:, or write the keys out", key_node)
            key = self.construct_object(key_node)
            if key in seen:
                raise _problem(f"the key {key!r} is given twice", key_node)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_ambiguous(self, node: yaml.ScalarNode) -> None:
        plain = node.value.lstrip("+-0") or "0"
        raise _problem(
            f"{node.value}: a number that begins with 0 could be octal: write {plain}, or '{node.value}' for a word",
            node,
        )

    def compose_node(self, parent: Any, index: Any) -> Any:
        node = self._composed(parent, index)
        if isinstance(node, yaml.ScalarNode) and (strange := STRANGE.search(node.value)):
            raise _problem(f"the character U+{ord(strange[0]):04X} is not allowed in a word", node)
        return node

    def _composed(self, parent: Any, index: Any) -> Any:
        if tag := getattr(self.peek_event(), "tag", None):
            short = tag.replace("tag:yaml.org,2002:", "!!")
            raise yaml.constructor.ConstructorError(
                None,
                None,
                f"tags ({short}) are not read here: write the value as it is, in quotes where it is a word",
                self.peek_event().start_mark,
            )
        if self.check_event(yaml.AliasEvent) and self.peek_event().anchor in self._open:
            event = self.peek_event()
            raise yaml.constructor.ConstructorError(None, None, f"*{event.anchor} contains itself", event.start_mark)
        anchor = getattr(self.peek_event(), "anchor", None)
        if anchor is None or self.check_event(yaml.AliasEvent):
            return super().compose_node(parent, index)
        self._open.add(anchor)
        try:
            return super().compose_node(parent, index)
        finally:
            self._open.discard(anchor)

    def __init__(self, stream: Any):
        super().__init__(stream)
        self._open: set[str] = set()  # anchors of what is being read


def _problem(text: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, text, node.start_mark)


_RESOLVED = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("ambiguous", r"[-+]?0\d+", list("-+0")),
    ("int", r"[-+]?(0|[1-9]\d*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
)
for _name, _pattern, _first in _RESOLVED:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:ambiguous", _Loader.construct_ambiguous)


def parse(text: str, where: str) -> Any:
    """What a text says; `where` is the file or option that it is of."""
    try:
        return yaml.load(text, _Loader)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlError(
            f"{where}: line {line}: not valid YAML: the character U+{error.character:04X} is not allowed: is it text, "
            "in UTF-8?"
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark and "\n" in text else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise YamlError(f"{where}:{line} not valid YAML: {problem}") from None
    except RecursionError:
        raise YamlError(f"{where}: not valid YAML: nested too deeply") from None
    except ValueError as error:  # an integer of thousands of digits
        raise YamlError(f"{where}: not valid YAML: {error}") from None


def read(file: Path, what: str = "file") -> dict[str, Any]:
    """The keys and values of a file; an empty one has none."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise YamlError(f"{file}: cannot read this {what}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise YamlError(
            f"{file}: line {line}: the byte 0x{error.object[error.start]:02x} is not UTF-8: save the file as UTF-8"
        ) from None
    content = parse(text, str(file))
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise YamlError(f"{file}: expected keys and values, got {type(content).__name__}")
    return content
