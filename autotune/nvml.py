"""Questions to NVIDIA's management library. Without it, or without a GPU, every answer is None and nothing is raised."""

from __future__ import annotations

import functools
from typing import Any


@functools.cache
def library() -> Any | None:
    """The initialised NVML bindings; None when there is no driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # the bindings raise their own kinds, and an OSError for a broken library
        return None
    return pynvml


def ask(name: str, *arguments: Any) -> Any | None:
    """One NVML query; None when the device or the driver does not answer it."""
    bindings = library()
    function = getattr(bindings, name, None)
    if bindings is None or function is None:
        return None
    try:
        return function(*arguments)
    except bindings.NVMLError:
        return None
