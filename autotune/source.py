"""Reads a user's YAML with the line of every value, and turns validation errors into mistakes that point at them."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from autotune.errors import InvalidInput, Mistake, nearest

MAX_BYTES = 1 << 20
MAX_DEPTH = 40
MAX_NODES = 50_000
"""Limits on what a stranger's file may cost us; a study is some hundred nodes."""

_CONVERTED = {"tag:yaml.org,2002:" + name for name in ("null", "bool", "int", "float")}
_TEXT = {"tag:yaml.org,2002:" + name for name in ("str", "timestamp", "value", "merge")}
_COLLECTIONS = {"tag:yaml.org,2002:" + name for name in ("map", "seq")}

Place = tuple[str | int, ...]
ModelT = TypeVar("ModelT", bound=BaseModel)


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
        """A Mistake at a place of this file."""
        return Mistake(path=dotted(place), problem=problem, line=self.line(place), file=self.file, **details)


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
        plain = {"tag:yaml.org,2002:" + name for name in ("null", "bool", "int", "float")}
        if node.tag not in plain:
            if node.tag in (
                "tag:yaml.org,2002:str",
                "tag:yaml.org,2002:timestamp",
                "tag:yaml.org,2002:value",
                "tag:yaml.org,2002:merge",
            ):
                return str(node.value)
            raise self.refuse(node, place, f"The YAML tag {node.tag!r} is not allowed; only plain values are.")
        try:
            return self.loader.construct_object(node)
        except (ValueError, OverflowError, KeyError, IndexError) as error:
            raise self.refuse(node, place, f"{str(node.value)[:60]!r} cannot be read as a value.") from error


def validate(model: type[ModelT], data: Any, source: Source, at: Place = ()) -> ModelT:
    """Validate `data`, which stands at `at` in `source`. Raises InvalidInput with every mistake found."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise InvalidInput(mistakes(error, model, source, at)) from error


def mistakes(error: ValidationError, model: type[BaseModel], source: Source, at: Place = ()) -> list[Mistake]:
    """Every error of a pydantic validation, in file order, each with its line and the nearest right name."""
    details = error.errors(include_url=False)
    hollow = {"too_short", "missing"} if len(details) > 1 else set()
    found = [
        _mistake(detail, model, source, at) for detail in details if not (detail["type"] in hollow and _follows(detail, details))
    ]
    unique = {(mistake.path, mistake.problem): mistake for mistake in found}
    return sorted(unique.values(), key=lambda mistake: (mistake.line or 0, mistake.path))


def _follows(detail: Any, details: Sequence[Any]) -> bool:
    """Whether an error only repeats one inside it: a list is too short because its items were refused."""
    loc = detail["loc"]
    return any(len(other["loc"]) > len(loc) and other["loc"][: len(loc)] == loc for other in details)


def _mistake(detail: Any, model: type[BaseModel], source: Source, at: Place) -> Mistake:
    place = at + _real(detail["loc"], source, at)
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        name = str(detail["loc"][-1])
        fields = sorted(set(_fields(model, detail["loc"][:-1])))
        return source.mistake(
            place, f"{name!r} is not known here.", allowed=", ".join(fields) or None, nearest=nearest(name, fields)
        )
    if kind == "missing":
        return source.mistake(place, f"{detail['loc'][-1]!r} is missing.")
    message = sentence(str(detail["msg"]))
    allowed = context.get("expected") or context.get("expected_tags")
    close = None
    if allowed and isinstance(detail["input"], str):
        close = nearest(detail["input"], [word.strip("' ") for word in str(allowed).replace(" or ", ",").split(",")])
    shown = None if isinstance(detail["input"], dict | list) or kind == "value_error" else shorten(detail["input"])
    return source.mistake(place, message, found=shown, nearest=close)


def _real(loc: tuple[str | int, ...], source: Source, at: Place) -> Place:
    """A pydantic location without the names of union members that it threads in; a missing last name is kept."""
    place: Place = ()
    for index, part in enumerate(loc):
        if (*at, *place, part) in source.lines or index == len(loc) - 1:
            place = (*place, part)
    return place


def _fields(model: Any, loc: Sequence[str | int]) -> Iterator[str]:
    """Names a mapping at `loc` below `model` may hold."""
    for member in _models(model):
        if not loc:
            yield from (info.alias or name for name, info in member.model_fields.items())
        elif isinstance(loc[0], str) and loc[0] in member.model_fields:
            yield from _fields(member.model_fields[loc[0]].annotation, loc[1:])
        elif isinstance(loc[0], int) or loc[0] not in member.model_fields:
            yield from _fields(member, loc[1:])


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _models(get_args(annotation)[0])
    elif origin in (Union, types.UnionType) or origin in (list, tuple, dict, Mapping, Sequence):
        for argument in get_args(annotation):
            yield from _models(argument)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation


def sentence(message: str) -> str:
    """A pydantic message as a whole sentence."""
    text = message.removeprefix("Value error, ")
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?", "!")) else ".")


def shorten(value: Any, limit: int = 80) -> str:
    """A value as a short text for a message."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
