"""Reads log files while they grow."""

from __future__ import annotations

import os
from pathlib import Path


def tail(log: Path, n: int = 50, limit_bytes: int = 256 * 1024) -> list[str]:
    """The last `n` lines of a log, read from at most its last `limit_bytes`; empty when there is no log."""
    try:
        with log.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - limit_bytes))
            lines = stream.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    return lines[1 if size > limit_bytes else 0 :][-n:]


class LogReader:
    """Reads the lines that were appended to a growing file since the last look."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._partial = b""

    def lines(self, final: bool = False) -> list[str]:
        """New complete lines; with `final` also an unterminated last one. Empty while there is no file."""
        try:
            with self.path.open("rb") as stream:
                stream.seek(self._offset)
                new = stream.read()
        except OSError:
            return []
        self._offset += len(new)
        *complete, self._partial = (self._partial + new).split(b"\n")
        if final and self._partial:
            complete, self._partial = [*complete, self._partial], b""
        return [line.decode(errors="replace").rstrip("\r") for line in complete]
