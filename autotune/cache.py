"""Content-addressed trials: an equal trial that some study of the store has measured need not be run again.

Two trials are equal when the model, the engine as installed, what its section says, the hardware, the workload, every
parameter, every environment variable and the content of every file named in them are equal. Only complete measurements are
found, never failures: a failure may have been the machine's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from autotune import ledger
from autotune.errors import AutotuneError
from autotune.trial import Configuration, TrialRecord, Value, digest_of


def trial_key(
    *,
    model: str,
    engine: Mapping[str, Value],
    hardware: Mapping[str, Value],
    workload: Mapping[str, Value],
    configuration: Configuration,
    fixed: Mapping[str, Value],
    env: Mapping[str, str],
    options: Mapping[str, Value],
) -> str:
    """The address of a trial.

    `model` is a digest of what is loaded (not just its name), `engine` the dumped identity, `hardware` the devices given
    to the trial, `workload` the dumped options, `fixed` and `env` what every trial of the study gets beside its configuration,
    `options` whatever else the engine's section says about how it is run.
    """
    parameters = {**fixed, **configuration.values}
    given = {"workload": workload, "parameters": parameters, "env": env, "options": options}
    files = {text: digest for text in sorted(set(_texts(given))) if (digest := _content(text)) is not None}
    parts = {"model": model, "engine": engine, "hardware": hardware, "files": files, "by": measured_by(), **given}
    return digest_of({**parts, "kind": configuration.engine})


def _texts(value: Value) -> Iterator[str]:
    """Every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _content(text: str) -> str | None:
    """Digest of the file that a text names, `file.py:function` included; None where it names none."""
    for name in dict.fromkeys((text, text.rpartition(":")[0])):
        try:
            path = Path(name).expanduser()
            if name and path.is_file():
                found = path.stat()
                return _digest(str(path), found.st_size, found.st_mtime_ns)
        except (OSError, ValueError, RuntimeError):
            continue
    return None


@lru_cache(maxsize=256)
def _digest(path: str, size: int, changed_ns: int) -> str:
    """Size and time of change are part of the question, so that a changed file is read again and no other is."""
    with open(path, "rb") as stream:  # noqa: PTH123 - file_digest wants a raw stream
        return hashlib.file_digest(stream, "sha256").hexdigest()[:12]


def measured_by() -> str:
    """The measuring code's own version: another one may count and cut differently."""
    try:
        return version("autotune")
    except PackageNotFoundError:
        return ""


def find(store: Path, key: str, *, skip: str | None = None) -> TrialRecord | None:
    """The latest equal trial of any study in the store but `skip`, with `reused_from` set; None when there is none.

    A study that cannot be read is passed over: reuse is a convenience and never stops a study.
    """
    needle = f'"key": "{key}"'.encode()
    for folder in reversed(ledger.studies(store)):
        if folder.name == skip or needle not in _bytes(folder / ledger.FILE):
            continue
        found = _measured(folder, key)
        if found is not None:
            return found.model_copy(update={"reused_from": found.reused_from or f"{folder.name}/{found.number}"})
    return None


def _measured(folder: Path, key: str) -> TrialRecord | None:
    try:
        history = ledger.read(folder)
    except AutotuneError:
        return None
    numbers = [number for number, own in history.keys.items() if own == key and history.records[number].measurement is not None]
    return history.records[numbers[-1]] if numbers else None


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
