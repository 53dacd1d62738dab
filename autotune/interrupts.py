"""Ctrl-C once finishes the running trials and stops; twice, or SIGTERM, ends now."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self


class Interrupts:
    """Watches the signals while a study runs. A context manager; outside the main thread it watches nothing."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.stopping = False
        """No new trial is to be started."""
        self.now = False
        """Running trials are to be ended."""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._caught)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _caught(self, number: int, frame: FrameType | None) -> None:
        if self.stopping or number == signal.SIGTERM:
            self.now = True
        else:
            self.say("Stopping after the running trial; press Ctrl-C again to end it now.")
        self.stopping = True
