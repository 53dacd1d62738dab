"""Stands in for SGLang's kernels on a machine without a GPU: every name imports, and raises when it is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn


def __getattr__(name: str) -> Callable[..., NoReturn]:
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError(
            f"sgl_kernel.{name} is a stand-in of autotune's CPU option: this configuration needs SGLang's real kernels."
        )

    missing.__name__ = missing.__qualname__ = name
    return missing
