"""What an engine's probe has answered, kept in the store in use: importing an engine takes ten seconds."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from autotune import models
from autotune.engines.base import Identity, Verdict
from autotune.trial import Value, digest_of


class Answers:
    """Kept per machine, interpreter, versions and probe; whatever else an answer depends on is part of its question."""

    def __init__(self, identity: Identity, python: str, probe: Path) -> None:
        about = {
            "python": python,
            "identity": identity.model_dump(mode="json"),
            "probe": probe.read_text(),
            "machine": platform.node(),
        }
        self._kind, self._about = identity.kind, digest_of(about)

    def get(self, question: str, ask: Callable[[], Any]) -> Any:
        """The answer as JSON gives it back, asked for once; one that cannot be had is not kept."""
        kept = self._path(question)
        with contextlib.suppress(OSError, ValueError):
            return json.loads(kept.read_text())
        answer = ask()
        self._keep(kept, answer)
        return json.loads(json.dumps(answer))

    def verdicts(self, questions: Sequence[Value], ask: Callable[[list[int]], list[Verdict]]) -> list[Verdict]:
        """A verdict to each question; `ask` answers those at some places. A refusal is asked again every time, because what
        it complains of may have been mended outside the question."""
        paths = [self._path(question) for question in questions]
        found = {index: kept for index, path in enumerate(paths) if (kept := _verdict(path)) is not None}
        missing = [index for index in range(len(questions)) if index not in found]
        for index, verdict in zip(missing, ask(missing) if missing else [], strict=True):
            found[index] = verdict
            if verdict.refused is None:
                self._keep(paths[index], verdict.model_dump(mode="json"))
        return [found[index] for index in range(len(questions))]

    def _path(self, question: Value) -> Path:
        return models.shared_cache() / "flags" / f"{self._kind}-{self._about}-{digest_of(question)}.json"

    def _keep(self, path: Path, answer: Any) -> None:
        """Written beside its place and moved there whole, so that a second process never reads half of it. Where it cannot be
        kept, it is asked again."""
        draft = path.with_suffix(f".{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps(answer))
            draft.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                draft.unlink()


def _verdict(path: Path) -> Verdict | None:
    """A kept verdict; None where there is none, or what a full disk or a crash has left of one."""
    with contextlib.suppress(OSError, ValueError):
        return Verdict.model_validate_json(path.read_text())
    return None
