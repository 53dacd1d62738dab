"""Reads a user's YAML with the line of every value. Numbers are read as YAML 1.2 has them: `1e-5` is one, `.nan` is refused."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from autotune.errors import InvalidInput, Mistake
from autotune.secrets import redact, redact_named

MAX_BYTES = 1 << 20
MAX_DEPTH = 40
MAX_NODES = 50_000
"""Limits on what a stranger's file may cost us; a study is some hundred nodes."""

_CONVERTED = {"tag:yaml.org,2002:" + name for name in ("null", "bool", "int", "float")}
_TEXT = {"tag:yaml.org,2002:" + name for name in ("str", "timestamp", "value", "merge")}
_COLLECTIONS = {"tag:yaml.org,2002:" + name for name in ("map", "seq")}

_SCIENTIFIC = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+")
"""Floats that YAML 1.1, which the parser follows, takes for text because they lack a point or a sign."""

_PROPERTIES = re.compile(r"(?:[&!]\S*\s+)+")
"""A value's anchor and tag."""
_COMMENT = re.compile(r"#[^\n]*")
"""What stands between names and values and is more than punctuation."""

Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Source:
    """A parsed YAML file: plain data, the 1-based line of every place in it, and the text itself."""

    file: str
    data: Any
    lines: Mapping[Place, int] = field(default_factory=dict)
    text: str = ""

    def line(self, place: Sequence[str | int]) -> int | None:
        """The line of a place, or of the nearest place around it that stands in the file."""
        known = tuple(place)
        while known and known not in self.lines:
            known = known[:-1]
        return self.lines.get(known)

    def mistake(self, place: Sequence[str | int], problem: str, **details: Any) -> Mistake:
        """A Mistake at a place of this file; credentials in what was found are masked."""
        if details.get("found") is not None:
            details["found"] = redact(details["found"])
        return Mistake(path=dotted(place), problem=redact(problem), line=self.line(place), file=self.file, **details)

    def placed(self, mistake: Mistake, place: Sequence[str | int]) -> Mistake:
        """A mistake that knows no file, put at a place of this one; one that does is left where it is."""
        if mistake.file is not None:
            return mistake
        return replace(mistake, path=dotted(place), line=self.line(place), file=self.file)


def dotted(place: Sequence[str | int]) -> str:
    """`("load", 0, "rate")` as `load[0].rate`."""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def read(path: Path) -> Source:
    """Parse a YAML file. Raises InvalidInput for anything that keeps it from being read."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InvalidInput([Mistake("", f"The file {path} cannot be read: {error.strerror or error}.")]) from error
    if len(raw) > MAX_BYTES:
        raise InvalidInput([Mistake("", f"The file is {len(raw)} bytes long; at most {MAX_BYTES} are read.", file=str(path))])
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput([Mistake("", f"The file is not UTF-8 text (byte {error.start}).", file=str(path))]) from error
    return parse(text, str(path))


def parse(text: str, file: str = "<text>") -> Source:
    """Parse YAML text. Raises InvalidInput."""
    loader = yaml.SafeLoader(text) if _printable(text, file) else None
    assert loader is not None
    try:
        node = loader.get_single_node()
        lines: dict[Place, int] = {}
        data = _Builder(loader, lines, file).build(node, (), 0) if node is not None else None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        mistake = Mistake("", f"This is not valid YAML: {problem}.", line=mark.line + 1 if mark else None, file=file)
        raise InvalidInput([mistake]) from error
    except RecursionError as error:
        raise InvalidInput([Mistake("", f"The file nests deeper than {MAX_DEPTH} levels.", file=file)]) from error
    finally:
        loader.dispose()
    return Source(file, data, lines, text)


def masked(source: Source) -> str:
    """The text of a parsed file, its credentials masked such that it parses as before."""
    kept, end = list[str](), 0
    root = yaml.compose(source.text, yaml.SafeLoader)
    found: dict[tuple[int, int], str | None] = {}
    for start, stop, shown in _scalars(root, ""):
        # An alias brings a value under several names.
        found[start, stop] = found.get((start, stop)) or shown
    for (start, stop), hidden in sorted(found.items()):
        between, own = source.text[end:start], source.text[start:stop]
        kept += [_COMMENT.sub(_said, between), own if hidden is None else _quoted(hidden, own)]
        end = stop
    return "".join([*kept, _COMMENT.sub(_said, source.text[end:])])


def _said(comment: re.Match[str]) -> str:
    return redact(comment.group())


def _scalars(node: yaml.Node | None, name: str) -> Iterator[tuple[int, int, str | None]]:
    """Where each name and value stands, and what to show for one that holds a credential."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _scalars(key, "")
            yield from _scalars(value, str(key.value))
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _scalars(item, name)
    elif isinstance(node, yaml.ScalarNode):
        shown = redact_named(name, node.value)
        yield node.start_mark.index, node.end_mark.index, None if shown == node.value else shown


def _quoted(value: str, replaced: str) -> str:
    """A value as YAML on one line, with the anchor and the line's end of what it replaces."""
    anchored = _PROPERTIES.match(replaced)
    return (anchored.group() if anchored else "") + json.dumps(value) + ("\n" if replaced.endswith("\n") else "")


def _printable(text: str, file: str) -> bool:
    found = yaml.reader.Reader.NON_PRINTABLE.search(text)
    if found:
        line = text.count("\n", 0, found.start()) + 1
        raise InvalidInput([Mistake("", f"The character {found.group()!r} cannot stand in YAML.", line=line, file=file)])
    return True


class _Builder:
    """Plain data out of YAML nodes; the standard constructor would lose lines, accept duplicate keys and follow cycles."""

    def __init__(self, loader: yaml.SafeLoader, lines: dict[Place, int], file: str) -> None:
        self.loader, self.lines, self.file, self.nodes = loader, lines, file, 0

    def refuse(self, node: yaml.Node, place: Place, problem: str) -> InvalidInput:
        return InvalidInput([Mistake(dotted(place), problem, line=node.start_mark.line + 1, file=self.file)])

    def build(self, node: yaml.Node, place: Place, depth: int) -> Any:
        self.nodes += 1
        if depth > MAX_DEPTH or self.nodes > MAX_NODES:
            raise self.refuse(node, place, f"The file nests deeper than {MAX_DEPTH} levels or holds more than {MAX_NODES} values.")
        self.lines.setdefault(place, node.start_mark.line + 1)
        if not isinstance(node, yaml.ScalarNode) and node.tag not in _COLLECTIONS:
            raise self.refuse(node, place, f"The YAML tag {node.tag!r} is not allowed; only plain values are.")
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, place, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*place, index), depth + 1) for index, item in enumerate(node.value)]
        return self.scalar(node, place)

    def mapping(self, node: yaml.MappingNode, place: Place, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self.refuse(key_node, place, "A key must be a plain name.")
            key = str(key_node.value)
            if key in result:
                raise self.refuse(key_node, (*place, key), f"The key {key!r} stands twice here.")
            self.lines[(*place, key)] = key_node.start_mark.line + 1
            result[key] = self.build(value_node, (*place, key), depth + 1)
        return result

    def scalar(self, node: yaml.Node, place: Place) -> Any:
        text = str(node.value)
        if node.tag in _TEXT:
            plain = getattr(node, "style", None) is None and node.tag.endswith(":str")
            return self.finite(node, place, float(text)) if plain and _SCIENTIFIC.fullmatch(text) else text
        if node.tag not in _CONVERTED:
            raise self.refuse(node, place, f"The YAML tag {node.tag!r} is not allowed; only plain values are.")
        try:
            return self.finite(node, place, self.loader.construct_object(node))
        except (ValueError, OverflowError, KeyError, IndexError) as error:
            raise self.refuse(node, place, f"{text[:60]!r} cannot be read as a value.") from error

    def finite(self, node: yaml.Node, place: Place, value: Any) -> Any:
        """No number of a study is infinite, and nothing can be measured or compared at one that is not a number."""
        if isinstance(value, float) and not math.isfinite(value):
            raise self.refuse(node, place, f"{str(node.value)[:60]!r} is not a finite number.")
        return value
