"""Brings MLflow to what the ledger says: creates what is missing, once, and updates what changed.

Every run is found by tag before it is created, and a second run of one trial (a server that answered too late) is deleted.
Anything may raise here; the sender tries again later, and doing all of it twice changes nothing.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlflow.entities import Metric, Param, Run, RunTag, ViewType
from mlflow.tracking import MlflowClient

from autotune import figures, tables
from autotune.errors import NothingMeasured
from autotune.results import StudyResults
from autotune.secrets import redact
from autotune.tracking import payload
from autotune.tracking.payload import Payload
from autotune.tracking.state import Request, State
from autotune.trial import TrialRecord, digest_of

_PAGE = 1000
_BATCH = 500
"""MLflow takes at most 1000 metrics, 100 parameters and 100 tags in one call."""
_READING = """

Each child run is a trial. `autotune.kind` says how it ended, `autotune.front` whether it stands on the front; metrics named
`LEVEL/METRIC` have the load level or training step as their step. The front is the table `front.json` among the artifacts.
"""


@dataclass
class Known:
    """A run as the server holds it."""

    run_id: str
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)


class Server:
    """One study's runs on one tracking server."""

    def __init__(self, uri: str, experiment: str, artifacts: str | None, study_id: str) -> None:
        """`artifacts` is where a new experiment keeps its files; None leaves it to the server."""
        self.client = MlflowClient(tracking_uri=uri)
        self.study_id = study_id
        self.experiment = self._experiment(experiment, artifacts)
        self.known: dict[str, Known] = {}
        """Runs by key, the parent's being the empty text."""
        self.names: dict[str, tuple[str, ...]] = {}
        """The parameter names with which this sender last looked at a trial."""

    def look(self) -> None:
        """Read what the server holds, and delete second runs of one trial."""
        found: dict[str, list[Run]] = {}
        for run in self._search():
            found.setdefault(run.data.tags.get("autotune.key", ""), []).append(run)
        for same in found.values():
            same.sort(key=lambda run: (run.info.status == "RUNNING", run.info.start_time, run.info.run_id))
            for extra in same[1:]:
                self.client.delete_run(extra.info.run_id)
        self.known = {key: Known(same[0].info.run_id, same[0].data.tags, same[0].data.params) for key, same in found.items()}

    def create(self, name: str, started_at: int, tags: Mapping[str, str]) -> str:
        """A new run's id."""
        run = self.client.create_run(self.experiment, start_time=started_at, tags=dict(tags), run_name=name)
        return str(run.info.run_id)

    def fill(self, run_id: str, known: Mapping[str, str], one: Payload, logs: Mapping[str, str]) -> None:
        """Parameters, metrics, texts and the end of a child run. Parameters that it has are left: they cannot change."""
        params = [Param(name, value) for name, value in one.params.items() if name not in known]
        metrics = [Metric(point.key, point.value, point.at, point.step) for point in one.metrics]
        for start in range(0, max(len(params), 1), 100):
            self.client.log_batch(run_id, params=params[start : start + 100])
        for start in range(0, len(metrics), _BATCH):
            self.client.log_batch(run_id, metrics=metrics[start : start + _BATCH])
        self.files(run_id, {**one.texts, **{f"logs/{name}": text for name, text in logs.items()}})
        self.client.set_terminated(run_id, "FAILED" if one.failed else "FINISHED", one.ended_at or None)

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags, in one call."""
        self.client.log_batch(run_id, tags=[RunTag(name, value[:5000]) for name, value in tags.items()])

    def files(self, run_id: str, texts: Mapping[str, str]) -> None:
        """Texts as artifacts, by their path."""
        with tempfile.TemporaryDirectory(prefix="autotune-tracking-") as folder:
            for name, text in texts.items():
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            self.client.log_artifacts(run_id, folder)

    def _experiment(self, name: str, artifacts: str | None) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is not None and found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return str(found.experiment_id if found else self.client.create_experiment(name, artifact_location=artifacts))

    def _search(self) -> Iterable[Run]:
        token: str | None = None
        while True:
            page = self.client.search_runs(
                [self.experiment], f"tags.`autotune.study_id` = '{self.study_id}'", ViewType.ACTIVE_ONLY, _PAGE, page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return


def bring_up_to_date(server: Server, results: StudyResults, request: Request, state: State, save: Callable[[], None]) -> None:
    """One pass over the study. `save` keeps `state` after every run, so that an ended pass goes on where it was.

    The server is read at the first pass after a start or a failure, and once more at the end of the study.
    """
    if not server.known or request.over:
        server.look()
    state.parent = _parent(server, results, state)
    names = payload.parameter_names(results)
    for record in results.records:
        if _bring_trial(server, results, record, state, names):
            save()
    _show_front(server, results, state)
    _end_parent(server, results, request, state)


def _parent(server: Server, results: StudyResults, state: State) -> str:
    if "" not in server.known:
        started = min((record.started_at for record in results.records if record.started_at), default=time.time())
        tags = {"autotune.study_id": server.study_id, "autotune.study": results.name, "autotune.role": "study"}
        server.known[""] = Known(server.create(results.name, int(started * 1000), tags), tags)
    one = server.known[""]
    missing = {name: value for name, value in payload.of_study(results).items() if name not in one.params}
    if missing:
        server.client.log_batch(one.run_id, params=[Param(name, value[: payload.MAX_PARAMETER]) for name, value in missing.items()])
        one.params |= missing
    if state.sent.get("study") != one.run_id and results.folder is not None:
        server.files(one.run_id, {"study.yaml": redact((results.folder / "study.yaml").read_text())})
        state.sent["study"] = one.run_id
    return one.run_id


def _bring_trial(server: Server, results: StudyResults, record: TrialRecord, state: State, names: tuple[str, ...]) -> bool:
    """Whether anything had to be sent."""
    key = payload.key_of(record)
    tags = {**payload.tags_of(results, record, server.study_id), "mlflow.parentRunId": state.parent}
    fresh = key not in server.known
    if fresh:
        one = payload.of_trial(results, record, tags, names)
        run_id = server.create(one.name, one.started_at, tags)
        server.known[key] = Known(run_id, dict(tags))
        state.sent.pop(key, None)
    known = server.known[key]
    stale = not tags.items() <= known.tags.items()
    if stale:
        server.tag(known.run_id, tags)
        known.tags |= tags
    # A drift is known only once the default's answers are, and its tag comes with it.
    return ((stale or server.names.get(key) != names) and _fill(server, results, record, state, names)) or fresh or stale


def _fill(server: Server, results: StudyResults, record: TrialRecord, state: State, names: tuple[str, ...]) -> bool:
    one, known = payload.of_trial(results, record, {}, names), server.known[payload.key_of(record)]
    due = state.sent.get(one.key) != one.body
    if due:
        server.fill(known.run_id, known.params, one, payload.logs(record, results.folder))
        known.params |= one.params
        state.sent[one.key] = one.body
    server.names[one.key] = names
    return due


def _show_front(server: Server, results: StudyResults, state: State) -> None:
    """The front as a table that MLflow's own page shows, and as a figure; both replaced when it changes."""
    table = json.loads(results.front.reset_index().to_json(orient="split", index=False)) if len(results.front) else None
    if table is None or state.sent.get("front") == digest_of(table):
        return
    text = json.dumps({"columns": table["columns"], "data": table["data"]})
    server.files(state.parent, {"front.json": text, "front.html": figures.page_of(figures.front(results))})
    server.tag(state.parent, {"mlflow.loggedArtifacts": json.dumps([{"path": "front.json", "type": "table"}])})
    state.sent["front"] = digest_of(table)


def _end_parent(server: Server, results: StudyResults, request: Request, state: State) -> None:
    """The parent's status, counts and, once the study is over, the hypervolume after each trial and the files of its end.

    The curve needs one reference point over all trials, so it is drawn at the end; a study that was continued gets a
    curve of its own beside the earlier one.
    """
    tags = {
        "autotune.trials": str(len(results.records)),
        "autotune.front": ", ".join(map(str, results.front.index)),
        "mlflow.note.content": redact("\n".join(f"- {line}" for line in tables.gain_lines(results)) + _READING),
    }
    parent = server.known[""]
    if not tags.items() <= parent.tags.items():
        server.tag(parent.run_id, tags)
        parent.tags |= tags
    if not request.over:
        server.client.update_run(state.parent, status="RUNNING")
        return
    if state.sent.get("end") != request.digest + str(len(results.records)):
        _log_hypervolume(server, results, state)
        server.files(state.parent, {payload.NOTES: payload.notes_text(results.notes)})
        server.files(
            state.parent, {Path(name).name: redact(Path(name).read_text()) for name in request.files if Path(name).is_file()}
        )
        state.sent["end"] = request.digest + str(len(results.records))
    server.client.set_terminated(state.parent, request.status, int(request.at * 1000))


def _log_hypervolume(server: Server, results: StudyResults, state: State) -> None:
    try:
        volume = results.hypervolume()
    except NothingMeasured:
        return
    earlier = state.sent.get("hypervolume", "hypervolume")
    digest = digest_of([volume.reference.values, sorted(volume.values.items())])
    name, _, sent = earlier.partition("#")
    if sent not in ("", digest):
        name = f"hypervolume after {len(volume.values)} trials"
    at = int(results.records[0].started_at * 1000)
    metrics = [Metric(name, value, at, trial) for trial, value in volume.values.items()]
    for start in range(0, len(metrics), _BATCH):
        server.client.log_batch(state.parent, metrics=metrics[start : start + _BATCH])
    server.tag(state.parent, {"autotune.hypervolume_reference": _reference_text(results, volume.reference.values)})
    state.sent["hypervolume"] = f"{name}#{digest}"


def _reference_text(results: StudyResults, values: Sequence[float]) -> str:
    pairs = zip(results.objective_names, values, strict=True)
    return ", ".join(f"{name} = {value:.6g}" for name, value in pairs) + " (nadir of all feasible trials, a tenth outside)"
