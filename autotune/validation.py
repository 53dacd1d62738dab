"""Validates plain data by its model, and says what is wrong with it in sentences, each with its line and the nearest name."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from autotune.errors import InvalidInput, Mistake, WrongValue, nearest
from autotune.source import Place, Source

ModelT = TypeVar("ModelT", bound=BaseModel)

_MAPPING, _LIST = "a mapping of names to values", "a list: in [brackets], or lines that begin with '-'"
_WHOLE, _NUMBER, _SWITCH = "a whole number", "a number", "true or false"
_NEEDS: Mapping[str, str] = {
    "string_type": "a text",
    "int_type": _WHOLE,
    "int_parsing": _WHOLE,
    "int_parsing_size": "a number that fits into a computer's integers",
    "int_from_float": _WHOLE,
    "float_type": _NUMBER,
    "float_parsing": _NUMBER,
    "finite_number": "a finite number",
    "bool_type": _SWITCH,
    "bool_parsing": _SWITCH,
    "list_type": _LIST,
    "tuple_type": _LIST,
    "dict_type": _MAPPING,
    "mapping_type": _MAPPING,
    "model_type": _MAPPING,
    "model_attributes_type": _MAPPING,
    "path_type": "a path",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "string_too_short": "a text that is not empty",
    "string_too_long": "a text of at most {max_length} characters",
    "literal_error": "{expected}",
    "enum": "{expected}",
}
"""What a value must be, by pydantic's type of error; braces take the error's own context."""


def validate(model: type[ModelT], data: Any, source: Source, at: Place = ()) -> ModelT:
    """Validate `data`, which stands at `at` in `source`. Raises InvalidInput with every mistake found."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise InvalidInput(mistakes(error, model, source, at)) from error


def mistakes(error: ValidationError, model: Any, source: Source, at: Place = ()) -> list[Mistake]:
    """Every mistake of a validation in file order. `model` is the type that was validated; one cause is one mistake."""
    details = list(error.errors(include_url=False))
    causes = [detail for detail in details if not _follows(detail, details)]
    by_place: dict[Place, list[Any]] = {}
    for detail in causes:
        by_place.setdefault(at + _real(detail, source, at), []).append(detail)
    found = [mistake for place, here in by_place.items() for mistake in _at_one_place(here, model, source, place)]
    return sorted(dict.fromkeys(found), key=lambda mistake: (mistake.line or 0, mistake.path))


def sentence(message: str) -> str:
    """A message as a whole sentence."""
    text = message.removeprefix("Value error, ")
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?", "!")) else ".")


def shorten(value: Any, limit: int = 80) -> str:
    """A value as a short text for a message."""
    if isinstance(value, dict | list | tuple):
        return "a mapping" if isinstance(value, dict) else "a list"
    text = {"None": "nothing", "True": "true", "False": "false"}.get(repr(value), repr(value))
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _follows(detail: Any, details: Sequence[Any]) -> bool:
    """Whether an error only repeats another one: a list too short because its items were refused, a name missing because it
    is misspelt."""
    loc, kind = detail["loc"], detail["type"]
    if kind == "too_short":
        return any(len(other["loc"]) > len(loc) and other["loc"][: len(loc)] == loc for other in details)
    if kind != "missing":
        return False
    unknown = [other["loc"] for other in details if other["type"] == "extra_forbidden"]
    return any(other[:-1] == loc[:-1] and nearest(str(other[-1]), [str(loc[-1])]) for other in unknown)


def _real(detail: Any, source: Source, at: Place) -> Place:
    """A location without what pydantic threads in: names of union members, `[key]`, and values that a default filled in."""
    place: Place = ()
    for part in detail["loc"]:
        if (*at, *place, part) in source.lines:
            place = (*place, part)
    if detail["type"] == "missing":
        place = (*place, detail["loc"][-1])
    return place


def _at_one_place(details: Sequence[Any], model: Any, source: Source, place: Place) -> list[Mistake]:
    """Members of a union each complain about the same value; together they say what it may be."""
    needs = [_need(detail) for detail in details]
    if len(details) > 1 and all(needs):
        problem = f"This must be {', or '.join(dict.fromkeys(need for need in needs if need))}."
        return [source.mistake(place, problem, found=shorten(details[0]["input"]))]
    return [_mistake(detail, model, source, place) for detail in details]


def _need(detail: Any) -> str | None:
    """What a value must be, as the end of a sentence; None where the error is not about what it is."""
    template = _NEEDS.get(detail["type"])
    if template is None or "[key]" in detail["loc"]:
        return None
    return template.format(**{name: _plain(value) for name, value in detail.get("ctx", {}).items()})


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _mistake(detail: Any, model: Any, source: Source, place: Place) -> Mistake:
    kind, context, value = detail["type"], detail.get("ctx", {}), detail["input"]
    cause = context.get("error")
    if isinstance(cause, WrongValue):
        return source.mistake((*place, *cause.at), sentence(cause.problem), **cause.details)
    if kind == "extra_forbidden" or "[key]" in detail["loc"]:
        return _unknown(detail, model, source, place)
    if kind == "missing":
        return source.mistake(place, f"{detail['loc'][-1]!r} is missing.")
    if kind in ("too_short", "too_long"):
        return source.mistake(place, _wrong_length(kind, context))
    if kind in ("literal_error", "enum"):
        return _no_choice(source.mistake(place, "This is not one of the choices."), value, _words(context["expected"]))
    if kind == "union_tag_invalid":
        mistake = source.mistake((*place, "kind"), "This kind does not exist.")
        return _no_choice(mistake, context["tag"], _words(context["expected_tags"]))
    need = _need(detail)
    if need is None:
        return source.mistake(place, sentence(str(detail["msg"])))
    return source.mistake(place, f"This must be {need}.", found=shorten(value))


def _unknown(detail: Any, model: Any, source: Source, place: Place) -> Mistake:
    """A name that is not among a mapping's."""
    if "[key]" in detail["loc"]:
        name, known = str(detail["input"]), _words(detail["ctx"]["expected"]) if "expected" in detail.get("ctx", {}) else []
    else:
        name, known = str(detail["loc"][-1]), sorted(set(_fields(model, detail["loc"][:-1])))
    allowed = ", ".join(known) or None
    return source.mistake(place, f"{name!r} is not known here.", allowed=allowed, nearest=nearest(name, known))


def _no_choice(mistake: Mistake, value: Any, known: Sequence[str]) -> Mistake:
    close = nearest(value, known) if isinstance(value, str) else None
    return replace(mistake, found=shorten(value), allowed=", ".join(known), nearest=close)


def _wrong_length(kind: str, context: Mapping[str, Any]) -> str:
    if kind == "too_long":
        return f"There may be at most {context['max_length']} entries here, not {context['actual_length']}."
    if not context["actual_length"]:
        return (
            "At least one entry is needed here." if context["min_length"] == 1 else f"{context['min_length']} entries are needed."
        )
    return f"At least {context['min_length']} entries are needed here, not {context['actual_length']}."


def _words(expected: str) -> list[str]:
    """`'a', 'b' or 'c'` as its words."""
    return [word.strip(" '") for word in str(expected).replace(" or ", ",").split(",")]


def _fields(model: Any, loc: Sequence[str | int]) -> Iterator[str]:
    """Names a mapping at `loc` below `model` may hold."""
    members = list(_models(model))
    tagged = [member for member in members if loc and loc[0] in _kinds(member)]
    if tagged:
        members, loc = tagged, loc[1:]
    for member in members:
        if not loc:
            yield from (info.alias or name for name, info in member.model_fields.items())
        elif isinstance(loc[0], str) and loc[0] in member.model_fields:
            yield from _fields(member.model_fields[loc[0]].annotation, loc[1:])
        else:
            yield from _fields(member, loc[1:])


def _kinds(model: type[BaseModel]) -> tuple[Any, ...]:
    """The tags by which a union tells this model."""
    kind = model.model_fields.get("kind")
    return get_args(kind.annotation) if kind is not None and get_origin(kind.annotation) is Literal else ()


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _models(get_args(annotation)[0])
    elif origin in (Union, types.UnionType) or origin in (list, tuple, dict, Mapping, Sequence):
        for argument in get_args(annotation):
            yield from _models(argument)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
