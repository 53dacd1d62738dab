"""How a result is kept: one page with the command that makes it, its date and its tables."""

from __future__ import annotations

import datetime
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path


def keep(title: str, about: str, body: Sequence[str], out: Path | None, section: bool = False) -> None:
    """Print the page of the script that runs, and write it to `out`; a `section` takes its own old place there, or the end."""
    command = f"python benchmarks/search/{Path(sys.argv[0]).name} {shlex.join(sys.argv[1:])}"
    text = "\n".join(
        [f"{'##' if section else '#'} {title}", "", f"Command: `{command}`", f"{datetime.date.today()}; {about}", "", *body, ""]
    )
    print(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(placed(text, out.read_text()) if section and out.is_file() else text + sections(out))


def placed(section: str, page: str) -> str:
    """The page with a section replaced, or put at its end."""
    parts = re.split(r"(?m)^(?=## )", page)
    title = section.splitlines()[0]
    rest = [part for part in parts if part.splitlines()[0] != title]
    return "\n".join(part.rstrip("\n") + "\n" for part in [*rest, section])


def sections(out: Path) -> str:
    """The sections that other runs put on the page, kept when the rest of it is written again."""
    found = re.search(r"(?ms)^## .*", out.read_text()) if out.is_file() else None
    return f"\n{found[0]}" if found else ""
