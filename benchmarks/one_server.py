"""One running server, for the benchmarks that measure several times on it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from autotune.engines.base import Context, Engine
from autotune.process import make_tag
from autotune.session import Session
from autotune.trial import Configuration


@contextlib.contextmanager
def served(engine: Engine, name: str, cpus: tuple[int, ...] = ()) -> Iterator[tuple[Session, Context]]:
    """The engine's default configuration, ready, with a folder that goes with it; `cpus` empty is every core."""
    with tempfile.TemporaryDirectory() as made:
        folder, cache = Path(made), Path.home() / ".cache" / "autotune"
        tag = make_tag(folder, name, 0)
        context = Context(study=name, trial=0, tag=tag, folder=folder, scratch=folder, cache=cache, cpus=cpus)
        launch = engine.launch(Configuration(engine=engine.kind), context).within(context)
        with engine.open(launch, context) as session:
            session.wait_ready()
            yield session, context
