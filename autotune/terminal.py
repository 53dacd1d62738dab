"""Text on a terminal as it is: nothing that an engine or a file says can style, move or clear it."""

from __future__ import annotations

import json
import re
from typing import Any

from rich.console import Console

_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\\\)?|\x1b.?|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Escape sequences (CSI, OSC and others) and control characters but newline and tab."""


def clean(text: str) -> str:
    """The text without what a terminal would obey instead of show."""
    return _CONTROL.sub("", text)


class ReaderGone(Exception):
    """Whoever read our output has seen enough (`autotune list | head`); no failure, and nobody is left to tell."""


def write_json(value: Any) -> None:
    """Print a value as JSON on one line. Raises ReaderGone."""
    try:
        print(json.dumps(value), flush=True)
    except BrokenPipeError as error:
        raise ReaderGone from error


class Plain(Console):
    """A console that shows strings as they are: neither control sequences nor square brackets mean anything in them."""

    def print(self, *objects: Any, **options: Any) -> None:
        shown = (clean(one) if isinstance(one, str) else one for one in objects)
        super().print(*shown, **{"markup": False, "highlight": False, **options})

    def on_broken_pipe(self) -> None:
        raise ReaderGone
