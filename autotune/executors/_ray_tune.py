"""Ray Tune's loop: it places trials that the driver submits, and knows nothing of what is searched.

The driver decides what runs, and `Submitted` hands it to Tune in its order. Tune makes each trial a placement group and an
actor in it, keeps both for the next trial alike, and calls `Listener`. All of them talk to the driver across its `Desk`.

The loop is a thread of the driver. A driver that joined across ray:// is no part of the cluster: Tune then runs its loop on
the cluster's head, and the desk is an actor there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import shutil
import threading
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import ray
from ray import tune
from ray.tune.search import Searcher

from autotune import process
from autotune.engines.base import Engine
from autotune.executors import _ray_cluster, _ray_node
from autotune.executors._ray_cluster import said
from autotune.executors._ray_desk import Desk, FarDesk, Held, News, Seen
from autotune.executors._ray_trial import Placed, run_folder
from autotune.workloads.base import Workload

_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "1000000",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000000",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",
}
"""No loggers, tables, snapshots or signal handlers of Tune's own, and as many trials waiting as the driver submits."""
_IDLE_S = 10.0
"""How long Tune waits for the next trial while none is out; left to itself it looks for one every second."""
_FETCH_S = 60.0
"""How long what a trial returned may take to arrive."""
_END_S = 60.0
"""How long Tune gets to end its actors."""


class Submitted(Searcher):  # type: ignore[misc]
    """Suggests what was submitted, in its order."""

    def __init__(self, desk: Any) -> None:
        super().__init__(metric=None, mode=None)
        self._desk, self._out = desk, 0
        os.environ.update(_SETTINGS)
        for name in ("ray.tune", "ray.train", "ray.air"):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)

    def __reduce__(self) -> tuple[Any, ...]:
        """Made anew where Tune's loop runs, since its settings have to be there."""
        return type(self), (self._desk,)

    def suggest(self, trial_id: str) -> Any:
        order = self._desk.take(0.0 if self._out else _IDLE_S)
        if self._desk.closed():
            return Searcher.FINISHED
        self._out += order is not None
        return order

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._out -= 1

    def save(self, checkpoint_path: str) -> None:
        return

    def restore(self, checkpoint_path: str) -> None:
        return


class Listener(tune.Callback):  # type: ignore[misc]
    """Takes answers and errors as they come, so that Tune keeps neither."""

    def __init__(self, desk: Any) -> None:
        self._desk, self._shown = desk, False

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if trials and not self._shown:
            self._shown = True
            self._desk.tell(News("folder", trials[0].config["key"], run_folder(trials[0].local_path)))

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """When the driver closes, what runs is ended at once, as is a hung attempt; Tune by itself would give it time to end."""
        closed, hung = self._desk.closed(), self._desk.hung()
        for trial in trials if closed or hung else []:
            actor = trial.temporary_state.ray_actor
            if actor is not None and (closed or trial.config["key"] == hung):
                ray.kill(actor)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        key = trial.config["key"]
        if "seen" in result:
            self._desk.tell(News("folder", key, result["folder"]))
            reply = self._desk.placed(key, Seen(node=result["node"], host=result["hostname"], **result["seen"]))
            # An actor does what one caller asks of it in that order: this comes before the step that Tune asks for next.
            trial.temporary_state.ray_actor.begin.remote(reply)
        elif "answer" in result:
            self._desk.tell(_fetched(key, *result.pop("answer")))
        elif "held" in result:
            self._desk.tell(News("held", key, Held(result["node"], result["hostname"], result["gpus"], tuple(result["held"]))))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._desk.tell(News("lost", trial.config["key"], said(_error(trial))))


class Ending(tune.Stopper):  # type: ignore[misc]
    """Ends the whole experiment when the driver closes."""

    def __init__(self, desk: Any) -> None:
        self._desk = desk

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return bool(self._desk.closed())


class Placement:
    """One run of Tune, from its start to `close`."""

    def __init__(self, engines: Mapping[str, Engine], workload: Workload, home: _ray_node.Home) -> None:
        far = _ray_cluster.is_far()
        self.desk: Any = FarDesk() if far else Desk()
        self.folder = process.scratch_root() / f"tune-{uuid.uuid4().hex[:8]}"
        self._work = {"engines": dict(engines), "workload": workload, "home": home}
        self._thread = threading.Thread(target=self._run, args=(self._work, far), name="tune", daemon=True)
        self._thread.start()

    def broken(self) -> dict[str, str]:
        """Nodes that cannot import what trials are made of, by their ids, and why."""
        found = _ray_cluster.on_every_node(_ray_node.arrived, Placed, *self._work.values(), timeout_s=_FETCH_S)
        return {node: said(error) for node, error in found.items() if isinstance(error, Exception)}

    def close(self) -> None:
        """End every trial and the loop. Idempotent."""
        self.desk.close()
        self._thread.join(_END_S)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, work: Mapping[str, Any], far: bool) -> None:
        why = "its loop came to an end"
        try:
            placed = tune.with_parameters(Placed, **work)
            placed.__name__ = self.folder.name  # Tune keeps such classes by name, for all of a process's runs
            tune.run(
                placed,
                name=self.folder.name,
                search_alg=Submitted(self.desk),
                num_samples=-1,
                storage_path=str(self.folder),
                stop=Ending(self.desk),
                verbose=0,
                max_failures=0,
                reuse_actors=True,
                raise_on_failed_trial=False,
                callbacks=[Listener(self.desk)],
                trial_name_creator=_name,
                trial_dirname_creator=_name,
            )
        except Exception as error:
            why = said(error)
        with contextlib.suppress(Exception):  # a cluster that is gone cannot be told across ray://
            self.desk.tell(News("ended", "", why))


def _error(trial: Any) -> Exception:
    """Why Tune lost a trial. It keeps that beside itself and looks for it where the experiment is stored."""
    with contextlib.suppress(Exception):  # whatever the error is made of need not be importable here
        return cast(Exception, pickle.loads(Path(trial.pickled_error_file).read_bytes()))
    return RuntimeError("Tune gives no reason")


def _name(trial: Any) -> str:
    return str(trial.trial_id)


def _fetched(key: str, record: Any, files: Any) -> News:
    """The record, which is short, and the files as far as they arrive: what was measured is not lost for the sake of logs."""
    try:
        text = ray.get(record, timeout=_FETCH_S)
    except ray.exceptions.RayError as error:
        return News("lost", key, said(error))
    try:
        return News("record", key, (text, ray.get(files, timeout=_FETCH_S)))
    except ray.exceptions.RayError as error:
        return News("record", key, (text, said(error)))
