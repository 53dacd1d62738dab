"""Text on a terminal as it is: nothing that an engine or a file says can style, move or clear it."""

from __future__ import annotations

import re
from typing import Any

from rich.console import Console

_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\\\)?|\x1b.?|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Escape sequences (CSI, OSC and others) and control characters but newline and tab."""


def clean(text: str) -> str:
    """The text without what a terminal would obey instead of show."""
    return _CONTROL.sub("", text)


class Plain(Console):
    """A console that shows strings as they are: neither control sequences nor square brackets mean anything in them."""

    def print(self, *objects: Any, **options: Any) -> None:
        shown = (clean(one) if isinstance(one, str) else one for one in objects)
        super().print(*shown, **{"markup": False, "highlight": False, **options})

    def on_broken_pipe(self) -> None:
        """Leave it to the caller, for whom it is no failure: the reader has seen enough."""
        raise BrokenPipeError
