"""A recorded study on a simulated Ray cluster with nodes that die: node time busy, trials lost or doubled, and the front.

    python benchmarks/search/ray_cluster.py --nodes 64 --trials 1000 --kill 8

Each node is a Ray node of its own on this machine with one fake GPU; `--pace` is real seconds for a simulated one, so
that a trial lasts as long as a recorded one, shrunk. All nodes share this machine's cores, so that a trial has to last
long enough for them: at the default pace it takes about 30 s. Only the engine's own seconds count as busy. The same study
run here, one trial after the other with other seeds, says how far fronts differ by chance.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import ray
from ray.cluster_utils import Cluster

sys.path.insert(0, str(Path(__file__).parent))

from arms import Ours
from page import keep
from surfaces import Ran, Task, best, space, tasks

from autotune import pareto
from autotune.engines.recorded import RecordedEngine, RecordedOptions
from autotune.executors.base import Executor, Site
from autotune.executors.ray import RayExecutor
from autotune.score import score
from autotune.trial import Failed, Measured, TrialFailed, TrialJob, TrialRecord, digest_of
from autotune.workloads.recorded import RecordedWorkload, RecordedWorkloadOptions

NOISE = 0.03
STORE_BYTES = 80 << 20
SIMULATED = {
    "enable_metrics_collection": False,
    "event_stats": False,
    "task_events_report_interval_ms": 0,
    "health_check_failure_threshold": 10,
    "worker_register_timeout_seconds": 600,
}
"""Many nodes on one machine share its cores: none of them may spend any on statistics, or be taken for dead for being slow."""


STALLED_S = 240.0
"""After so long without any news the trials that are still out count as lost."""


@dataclass
class Course:
    """A study on the cluster. Times are seconds since the epoch."""

    begun: float
    ended: float = 0.0
    cpu: float = 0.0
    """CPU seconds of the driver, its sampler included."""
    seen: list[TrialRecord] = field(default_factory=list)
    asked: int = 0
    killed: list[float] = field(default_factory=list)
    again: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=64)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--kill", type=int, default=8)
    parser.add_argument("--pace", type=float, default=0.25)
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds after which no more trials are begun")
    parser.add_argument("--seeds", type=int, default=3, help="how many local studies the front is compared with; 0 for none")
    parser.add_argument("--note", default="", help="a sentence for the page")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    task, lines = tasks()[0], [*HEAD]
    course, used = on_cluster(task, given)
    lines.append(row(given, course, used))
    fronts = [f"on the cluster {front(task, course.seen):.4f}"]
    print(lines[-1], *fronts, sep="\n", file=sys.stderr)
    if given.seeds:
        local = [locally(task, given.trials, seed) for seed in range(given.seeds)]
        fronts.append("locally, one seed each, " + ", ".join(f"{found:.4f}" for found in local))
    lines += ["", "True hypervolume of the measured front over the best that the space holds: " + "; ".join(fronts) + "."]
    about = f"Ray {ray.__version__}, {os.cpu_count()} cores for all nodes and the driver. {given.note}".strip()
    keep("A recorded study on a simulated Ray cluster", about, lines, given.out)


def on_cluster(task: Task, given: argparse.Namespace) -> tuple[Course, float]:
    """One study on a cluster of its own, and the GiB of memory that the cluster took."""
    before = psutil.virtual_memory().available
    head = {"num_cpus": 2, "num_gpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**head, "_system_config": SIMULATED})
    try:
        node = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": STORE_BYTES}
        nodes = [cluster.add_node(**node, wait=index % 4 == 3) for index in range(given.nodes)]
        cluster.wait_for_nodes(timeout=600)
        with tempfile.TemporaryDirectory() as store, RayExecutor(site(task, given.pace, Path(store), cluster)) as places:
            course = study(task, places, cluster, nodes, given)
            used = before - psutil.virtual_memory().available
    finally:
        ray.shutdown()
        cluster.shutdown()
    return course, used / (1 << 30)


def site(task: Task, pace: float, store: Path, cluster: Cluster) -> Site:
    engine = RecordedEngine(RecordedOptions(kind="recorded", gpus=1, pace=pace, noise=NOISE))
    workload = RecordedWorkload(RecordedWorkloadOptions(kind="recorded", traffic=task.traffic))
    return Site(engines={"recorded": engine}, workload=workload, store=store, study="ray", address=cluster.address)


def study(task: Task, places: Executor, cluster: Cluster, nodes: list[object], given: argparse.Namespace) -> Course:
    """Run the trials, and kill a node each time another share of them has ended."""
    arm, course, waiting = Ours(task, 0), Course(time.time()), list[TrialJob]()
    cpu, heard = time.process_time(), time.time()
    while time.time() - heard < STALLED_S:
        wanted = given.trials if time.time() - course.begun < given.limit else arm.driver.next_number
        while len(places.running()) < places.capacity and (job := following(arm, waiting, wanted)):
            places.submit(job)
        if not places.running():
            break
        if len(course.killed) < given.kill and len(course.seen) >= (len(course.killed) + 1) * given.trials // (given.kill + 1):
            # It takes seconds to see all of a node's processes dead, and the driver has other things to do.
            threading.Thread(target=cluster.remove_node, args=(nodes.pop(), False)).start()
            course.killed.append(time.time())
        record = places.collect(0.5)
        if record is None:
            continue
        heard = time.time()
        if isinstance(record.outcome, Failed) and not record.outcome.kind.deterministic:
            course.again += 1
            fields = record.model_dump(include={"number", "configuration", "origin", "point"})
            waiting.append(TrialJob(**fields, attempt=record.attempt + 1, seed=0))
            continue
        course.seen.append(record)
        arm.driver.tell(record, judged(task, record).score)
    course.asked, course.ended, course.cpu = arm.driver.next_number, heard, time.process_time() - cpu
    return course


def following(arm: Ours, waiting: list[TrialJob], trials: int) -> TrialJob | None:
    """A trial to run again, or the next proposal while some are wanted."""
    if waiting:
        return waiting.pop()
    if arm.driver.next_number >= trials:
        return None
    proposal = arm.driver.ask()
    assert proposal is not None
    return TrialJob(**proposal.model_dump(include={"number", "configuration", "origin", "point"}), seed=0)


def judged(task: Task, record: TrialRecord) -> Ran:
    found = None
    if isinstance(record.outcome, Measured):
        try:
            found = score(record.outcome.measurement, task.objectives, task.constraints)
        except TrialFailed:
            found = None
    return Ran(record.outcome, found, sum(record.seconds.values()))


def locally(task: Task, trials: int, seed: int) -> float:
    """The front of the same study, run one trial after the other; kept in a file because it takes a minute."""
    key = digest_of([task.name, task.constraints[0].limit, space().digest, trials, seed, NOISE])
    kept = Path(__file__).parent / ".cache" / f"local-{key}.json"
    if kept.is_file():
        return float(json.loads(kept.read_text()))
    arm, seen = Ours(task, seed), list[TrialRecord]()
    while len(seen) < trials:
        job = following(arm, [], trials)
        assert job is not None
        ran = task.run(job.configuration, job.number, seed, NOISE)
        seen.append(job.ended(ran.outcome))
        arm.driver.tell(seen[-1], ran.score)
    found = front(task, seen)
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(json.dumps(found))
    return found


def front(task: Task, seen: Sequence[TrialRecord]) -> float:
    """The hypervolume of what the study would name its front, judged by true values, over the best there is."""
    scored = [(record, judged(task, record).score) for record in seen]
    feasible = [(record, found.values) for record, found in scored if found is not None and found.feasible]
    members = pareto.front([values for _, values in feasible], task.directions)
    truths = [task.truth(feasible[index][0].configuration) for index in members]
    points = [truth.values for truth in truths if truth is not None and truth.feasible]
    return task.volume(points) / best(task).volume


HEAD = (
    "| nodes | killed | trials | lost | doubled | run again | wall s | trials a minute | driver CPU ms a trial "
    "| trial s | busy, whole study | busy, while all nodes had work | GiB |",
    "|---" * 13 + "|",
)


def row(given: argparse.Namespace, course: Course, used: float) -> str:
    numbers = [record.number for record in course.seen]
    wall = course.ended - course.begun
    starts = sorted(record.started_at for record in course.seen)
    cells = [
        given.nodes,
        len(course.killed),
        len(numbers),
        course.asked - len(set(numbers)),
        len(numbers) - len(set(numbers)),
        course.again,
        f"{wall:.0f}",
        f"{60 * len(numbers) / wall:.1f}",
        f"{1000 * course.cpu / len(numbers):.0f}",
        f"{sum(lasting(given, record) for record in course.seen) / len(numbers):.1f}",
        f"{busy(given, course, course.begun, course.ended):.1%}",
        f"{busy(given, course, starts[min(given.nodes, len(starts)) - 1], starts[-1]):.1%}",
        f"{used:.1f}",
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def lasting(given: argparse.Namespace, record: TrialRecord) -> float:
    return sum(record.seconds.values()) * given.pace


def busy(given: argparse.Namespace, course: Course, first: float, last: float) -> float:
    """Share of the time that live nodes offered between two moments which engines used; what a dead node had begun is lost."""
    used = sum(_overlap(one.started_at, one.started_at + lasting(given, one), first, last) for one in course.seen)
    offered = (given.nodes - len(course.killed)) * (last - first)
    return used / (offered + sum(_overlap(first, killed, first, last) for killed in course.killed))


def _overlap(begin: float, end: float, first: float, last: float) -> float:
    return max(0.0, min(end, last) - max(begin, first))


if __name__ == "__main__":
    main()
