"""The Ray executor with Ray Tune between it and the cluster, to measure what Tune costs.

Tune gets its trials from a Searcher that hands on what was submitted, makes each a placement group, and keeps a node's
actor for the next trial with the same needs. Everything of Tune's that can be turned off is: its tables, loggers,
snapshots and signal handlers. What remains is in its own folders, which are removed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import shutil
import tempfile
import threading
from collections import deque
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.search import Searcher

from autotune.executors import _ray_node
from autotune.executors.base import Site
from autotune.executors.ray import RayExecutor, _lost
from autotune.trial import TrialJob, TrialRecord

_QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "1000000",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000000",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_MAX_PENDING_TRIALS_PG": "64",
}


class Placed(tune.Trainable):
    """One attempt at a trial is one step; the actor stays for the next trial."""

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        wanted = {"CPU": 1, "GPU": config["gpus"]} if config["gpus"] else {"CPU": 1}
        return tune.PlacementGroupFactory([wanted], strategy="STRICT_PACK")

    def setup(self, config: dict[str, Any], site: Any = None) -> None:
        self.now, self.site = config, site

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.now = new_config
        return True

    def step(self) -> dict[str, Any]:
        os.chdir("/")
        shutil.rmtree(self.logdir, ignore_errors=True)
        engines, workload, home = self.site
        gpus = [int(index) for index in ray.get_gpu_ids()]
        answer = _ray_node.attempt(engines[self.now["engine"]], workload, self.now["job"], home, None, gpus)
        return {"answer": answer, "done": True}


class Submitted(Searcher):
    """Suggests what was submitted, in order; nothing when there is nothing."""

    def __init__(self) -> None:
        super().__init__(metric=None, mode=None)
        self.waiting: deque[dict[str, Any]] = deque()
        self.closed = False

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self.closed:
            return Searcher.FINISHED
        return self.waiting.popleft() if self.waiting else None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        return

    def save(self, checkpoint_path: str) -> None:
        return

    def restore(self, checkpoint_path: str) -> None:
        return


class Listener(tune.Callback):
    """Takes answers and errors as they come, so that Tune keeps neither."""

    def __init__(self) -> None:
        self.ended: queue.SimpleQueue[tuple[str, Any, Exception | None]] = queue.SimpleQueue()
        self.actors: dict[str, Any] = {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.actors[trial.config["key"]] = trial.temporary_state.ray_actor

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        self.actors.pop(trial.config["key"], None)
        self.ended.put((trial.config["key"], result.pop("answer"), None))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.actors.pop(trial.config["key"], None)
        self.ended.put((trial.config["key"], None, trial.get_error() or RuntimeError("Tune gives no reason")))


class Never(tune.Stopper):
    """Ends the whole experiment when the executor closes."""

    def __init__(self, source: Submitted) -> None:
        self.source = source

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.source.closed


class TuneExecutor(RayExecutor):
    """Trials that Ray Tune places."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        os.environ.update(_QUIET)
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL + 1)
        self._source, self._listener = Submitted(), Listener()
        self._jobs: dict[str, TrialJob] = {}
        self._folder = Path(tempfile.mkdtemp(prefix="autotune-tune-"))
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._loop, name="tune", daemon=True)
        self._thread.start()

    def _loop(self) -> None:
        try:
            tune.run(
                tune.with_parameters(Placed, site=(dict(self.site.engines), self.site.workload, self._home)),
                name=self._folder.name,
                search_alg=self._source,
                num_samples=-1,
                storage_path=str(self._folder),
                stop=Never(self._source),
                verbose=0,
                max_failures=0,
                reuse_actors=True,
                raise_on_failed_trial=False,
                callbacks=[self._listener],
                trial_name_creator=lambda trial: trial.trial_id,
                trial_dirname_creator=lambda trial: trial.trial_id,
            )
        except BaseException as error:
            self._failure = error
            raise

    def submit(self, job: TrialJob) -> None:
        key = f"{job.number}-{job.attempt}"
        self._jobs[key] = job
        need = self.site.gpus_needed(job)
        text = job.model_dump_json()
        self._source.waiting.append({"key": key, "job": text, "engine": job.configuration.engine, "gpus": need})

    def running(self) -> tuple[TrialJob, ...]:
        return tuple(self._jobs.values())

    def collect(self, timeout_s: float) -> TrialRecord | None:
        if self._failure is not None:
            raise RuntimeError("Tune's loop ended") from self._failure
        try:
            key, answer, error = self._listener.ended.get(timeout=timeout_s)
        except queue.Empty:
            self._count_nodes()
            return None
        job = self._jobs.pop(key)
        return self._kept(job, answer) if error is None else _lost(job, error)

    def _end_all(self) -> None:
        self._source.closed = True
        for actor in list(self._listener.actors.values()):
            with contextlib.suppress(Exception):
                ray.kill(actor)
        self._jobs.clear()
        self._thread.join(60)
        shutil.rmtree(self._folder, ignore_errors=True)
