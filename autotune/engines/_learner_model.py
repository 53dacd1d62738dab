"""`synthetic:learner-SIZE`: the small model and task that a training engine makes for itself where no model is given."""

from __future__ import annotations

from pathlib import Path

from autotune import process
from autotune.errors import AutotuneError, NotFound, nearest
from autotune.synthetic import PREFIX, TRAINABLE

SIZES = ("tiny", "small", "0.6b")
FOLDER = Path(__file__).parent / "_learner"
"""Holds the maker and the rewards; put on PYTHONPATH so that a trainer can import the rewards."""
_FORMAT = 1


def size_of(model: str) -> str | None:
    """The size that a model name asks for, None for a real model. Raises NotFound for a synthetic one that is not there."""
    if not model.startswith(PREFIX):
        return None
    names = {TRAINABLE + size: size for size in SIZES}
    if model not in names:
        close = nearest(model, names)
        hint = f" Did you mean {close!r}?" if close else ""
        raise NotFound(f"There is no trainable synthetic model {model!r}; there are {', '.join(names)}.{hint}")
    return names[model]


def folder(model: str, family: str, cache: Path) -> Path | None:
    """Where the synthetic model of that name stands or will stand; None for a real model."""
    size = size_of(model)
    return None if size is None else cache / "learner" / f"{size}-{family}-{_FORMAT}"


def make(model: str, family: str, cache: Path, python: str) -> None:
    """Make the model in the engine's own environment, if it is a synthetic one and is not there yet."""
    place = folder(model, family, cache)
    if place is None or place.is_dir():
        return
    argv = [python, str(FOLDER / "make_task.py"), str(place), str(size_of(model)), family]
    made = process.run(argv, timeout_s=900, env={"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})
    if made.returncode != 0:
        raise AutotuneError(f"The model {model!r} could not be made: {made.stderr.strip()[-400:]}")
