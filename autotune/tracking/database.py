"""A SQLite database for MLflow: made whole beside its place and then moved there.

MLflow makes one in dozens of steps over seconds. Cut short by Ctrl-C or a killed driver, they can never be taken up again:
every later use fails at the first step that was done already.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

_SCHEME = "sqlite:///"


def make(uri: str) -> None:
    """Make the database that `uri` names unless it is there, or is none of SQLite's; raises what MLflow raises."""
    path = Path(uri.removeprefix(_SCHEME).partition("?")[0])
    if not uri.startswith(_SCHEME) or not path.parent.is_dir():
        return
    with _alone_in(path.parent):
        if path.exists():
            return
        new = path.with_name(f".{path.name}.new")
        for left in (new, new.with_name(f"{new.name}-journal")):
            left.unlink(missing_ok=True)
        _fill(new)
        new.replace(path)


def _fill(path: Path) -> None:
    from mlflow.tracking import MlflowClient

    # Any question makes the tables.
    MlflowClient(tracking_uri=f"{_SCHEME}{path.resolve()}").search_experiments(max_results=1)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Let no other study's sender make a database in the folder at the same time."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # A network folder may know no locks; making the database twice at once is less likely than that.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
