"""How a result is kept: one page with the command that makes it, its date and its tables."""

from __future__ import annotations

import datetime
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path


def keep(title: str, about: str, body: Sequence[str], out: Path | None) -> None:
    """Print the page of the script that runs, and write it to `out`."""
    command = f"python benchmarks/search/{Path(sys.argv[0]).name} {shlex.join(sys.argv[1:])}"
    text = "\n".join([f"# {title}", "", f"Command: `{command}`", f"{datetime.date.today()}; {about}", "", *body, ""])
    print(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text)
