"""Content-addressed trials: an equal trial that some study of the store has measured need not be run again.

Two trials are equal when the model, the engine as installed, the hardware, the workload, every parameter and every
environment variable are equal. Only complete measurements are found, never failures: a failure may have been the machine's.
"""

from __future__ import annotations

from collections.abc import Mapping
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
) -> str:
    """The address of a trial.

    `model` is a digest of what is loaded (not just its name), `engine` the dumped identity, `hardware` the devices given
    to the trial, `workload` the dumped options, `fixed` and `env` what every trial of the study gets beside its configuration.
    """
    parameters = {**fixed, **configuration.values}
    parts = {"model": model, "engine": engine, "hardware": hardware, "workload": workload, "parameters": parameters, "env": env}
    return digest_of({**parts, "kind": configuration.engine})


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
