"""Finds the files of `search_spaces/`, and turns a study's choice from them into a Space."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from autotune import source, validation
from autotune.errors import InvalidInput, Mistake, nearest
from autotune.selection import Selection
from autotune.source import Source
from autotune.space import Space, SpaceFile
from autotune.study import Study
from autotune.trial import Value


def folders() -> tuple[Path, ...]:
    """Where space files are looked for: beside the package when installed, at the top of a checkout."""
    package = Path(__file__).parent
    return package / "data" / "search_spaces", package.parent / "search_spaces"


def available() -> dict[str, Path]:
    """Name → file of every space that ships."""
    return {path.stem: path for folder in reversed(folders()) for path in sorted(folder.glob("*.yaml"))}


def load(name: str) -> SpaceFile:
    """A shipped space by name, or a file by path. Raises InvalidInput."""
    if name.endswith((".yaml", ".yml")):
        return _read(Path(name))
    known = available()
    if name not in known:
        problem = f"There is no search space {name!r}."
        raise InvalidInput(
            [Mistake("", problem, allowed=f"{', '.join(known)}, or the path of a .yaml file", nearest=nearest(name, known))]
        )
    return _shipped(known[name])


@cache
def _shipped(path: Path) -> SpaceFile:
    return _read(path)


def _read(path: Path) -> SpaceFile:
    text = source.read(path)
    return validation.validate(SpaceFile, text.data, text)


def build(study: Study, text: Source, fixed: Mapping[str, Mapping[str, Value]]) -> Space:
    """The study's Space; `fixed` holds each engine's fixed parameters. Raises InvalidInput with every mistake found."""
    mistakes: list[Mistake] = []
    spaces = []
    for kind, parameters in fixed.items():
        selection = Selection(kind, study, text, parameters, load, tuple(available()))
        spaces.append(selection.build())
        mistakes += selection.mistakes
    for kind in study.search_space.engines:
        if kind not in fixed:
            place = ("search_space", "engines", kind)
            allowed = ", ".join(fixed)
            mistakes.append(
                text.mistake(place, f"The study has no engine {kind!r}.", allowed=allowed, nearest=nearest(kind, fixed))
            )
    if mistakes:
        raise InvalidInput(sorted(set(mistakes), key=lambda mistake: (mistake.line or 0, mistake.path)))
    return Space(spaces)
