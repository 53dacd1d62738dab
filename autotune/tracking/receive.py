"""Reads a study back from a tracking server alone, from the lossless `trial.json` of each child run."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from autotune import source
from autotune import study as studies
from autotune.errors import AutotuneError, NotFound
from autotune.ledger import Note
from autotune.results import StudyResults, in_order
from autotune.secrets import redact
from autotune.tracking.payload import NOTES
from autotune.tracking.sender import LIMITS
from autotune.trial import TrialRecord


def read(uri: str, name: str) -> StudyResults:
    """The newest study of that name: its trials and, once it ended, its notes; secrets are masked.

    Raises NotFound, AutotuneError (the server does not answer, or holds something else under that name).
    """
    text, records, notes = _fetch(uri, name)
    study, _ = studies.validate(source.parse(text, f"{name} in MLflow"))
    return StudyResults(study, in_order(records), notes=tuple(notes))


def _fetch(uri: str, name: str) -> tuple[str, list[TrialRecord], list[Note]]:
    """The study's file, trials and notes."""
    os.environ.update({name: value for name, value in LIMITS.items() if name not in os.environ})
    client = MlflowClient(tracking_uri=uri)
    try:
        parent = _parent(client, uri, name)
        records = [TrialRecord.model_validate_json(_text(uri, run, "trial.json")) for run in _children(client, parent)]
        return _text(uri, parent, "study.yaml"), records, _notes(client, uri, parent)
    except (MlflowException, OSError, ValueError) as error:
        raise AutotuneError(f"MLflow at {redact(uri)} did not give study {name!r}: {redact(str(error))[:300]}") from error


def _parent(client: MlflowClient, uri: str, name: str) -> Run:
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    everything = "tags.`autotune.role` = 'study'"
    found = client.search_runs(experiments, everything, order_by=["attributes.start_time DESC"], max_results=1000)
    parents = [run for run in found if run.data.tags.get("autotune.study") == name]
    if not parents:
        known = sorted({str(run.data.tags.get("autotune.study")) for run in found})
        raise NotFound(f"MLflow at {redact(uri)} holds no study named {name!r}; it holds {', '.join(known) or 'none'}.")
    return parents[0]


def _children(client: MlflowClient, parent: Run) -> list[Run]:
    """The last attempt of every trial."""
    latest: dict[str, Run] = {}
    token: str | None = None
    while True:
        query = f"tags.mlflow.parentRunId = '{parent.info.run_id}'"
        page = client.search_runs([parent.info.experiment_id], query, max_results=1000, page_token=token)
        for run in page:
            number, attempt = run.data.tags["autotune.trial"], int(run.data.tags["autotune.attempt"])
            if number not in latest or attempt > int(latest[number].data.tags["autotune.attempt"]):
                latest[number] = run
        token = page.token
        if not token:
            return list(latest.values())


def _notes(client: MlflowClient, uri: str, parent: Run) -> list[Note]:
    if all(item.path != NOTES for item in client.list_artifacts(parent.info.run_id)):
        return []
    return [Note(**note) for note in json.loads(_text(uri, parent, NOTES))]


def _text(uri: str, run: Run, path: str) -> str:
    with tempfile.TemporaryDirectory(prefix="autotune-tracking-") as folder:
        found = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path=path, dst_path=folder, tracking_uri=uri)
        return Path(found).read_text()
