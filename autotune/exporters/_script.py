"""The shape that every launch script has: whence it comes, variables, then one command that takes its caller's arguments."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


def script(notes: Iterable[str], env: Mapping[str, str], command: Sequence[str], *, beside: bool = False) -> str:
    """The script's text. `command` is its lines, quoted for the shell; `beside` runs it in the folder that the script lies in."""
    return "\n".join(
        [
            "#!/bin/sh",
            *comments(notes),
            "set -eu",
            *(['cd "$(dirname "$0")"'] if beside else []),
            *(f"export {name}={shlex.quote(value)}" for name, value in sorted(env.items())),
            "exec " + " \\\n  ".join([*command, '"$@"']),
            "",
        ]
    )


def start(interpreter: Path | None) -> str:
    """What goes before the line that starts a script here, where the engine's programs lie in an environment of their own."""
    return "" if interpreter is None else f'PATH={shlex.quote(str(interpreter.absolute().parent))}:"$PATH" '


def comments(notes: Iterable[str]) -> list[str]:
    """Lines that a shell and a YAML parser both pass over, also where a note has several: a study's own reasons may."""
    return [f"# {line}" for note in notes for line in note.splitlines()]
