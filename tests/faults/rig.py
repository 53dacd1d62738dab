"""Runs the real command line on a small real study and strikes it: what a campaign and single tests share."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from autotune import ledger, proc
from autotune.trial import Measured

ROOT = Path(__file__).parents[2]
FAKES = ROOT / "tests" / "fakes"
CLOCK = Path(__file__).parent / "clock"
COMMAND = Path(sys.executable).with_name("autotune")
TRIALS = 6

STUDY = """\
name: faults
engine: {{kind: fake, model: fake, start_timeout_s: 20, stop_timeout_s: 1, fixed: {{start_s: {start_s}}}}}
workload: {{kind: count, deadline_s: 3}}
search_space:
  parameters:
    speed: {{kind: int, low: 10, high: 1000}}
objectives: [{{maximize: output_tokens_per_s}}, {{minimize: ttft_ms.p99}}]
budget: {{trials: {trials}}}
search: {{sampler: {sampler}, startup_trials: 3, baseline_every: 0}}
finalists: {{count: 0}}
executor: {{parallel: {parallel}}}
tracking: {tracking}
"""


def own_processes(store):
    """Every live process of the store's drivers: pid → (process, tag)."""
    digest = proc.store_digest(store)
    found = {}
    for pid, one in proc.table().items():
        tag = proc.parse_tag(proc.tag_of(pid) or "")
        if tag is not None and tag.store == digest:
            found[pid] = (one, tag)
    return found


def command_line(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def role(one, tag):
    """What a process is to a study: worker, their fork server, engine parent, engine child, load client, or none of them."""
    line = command_line(one.pid)
    if tag.trial.startswith("workers"):
        if one.sid == one.pid:
            return "worker"
        return "fork server" if "forkserver" in line else None
    if "client.py" in line:
        return "load client"
    if "server.py" in line:
        return "engine child" if "server.py" in command_line(one.ppid) else "engine parent"
    return None


@dataclass
class Rig:
    """One study in a store of its own, with a temporary folder of its own."""

    folder: Path
    sampler: str = "tpe"
    trials: int = TRIALS
    start_s: float = 0.05
    parallel: int = 1
    tracking: str = "{enabled: false}"
    env: dict = field(default_factory=dict)

    def __post_init__(self):
        self.store = self.folder / "store"
        self.study = self.store / "faults"
        # Short, because sockets live below it.
        self.temporary = Path(f"/tmp/at-faults-{os.getpid()}-{random.randrange(10**9):09d}")
        self.temporary.mkdir()
        self.folder.mkdir(parents=True, exist_ok=True)
        names = ("sampler", "trials", "start_s", "parallel", "tracking")
        text = STUDY.format(**{name: getattr(self, name) for name in names})
        (self.folder / "study.yaml").write_text(text)

    def start(self):
        """The real driver, in a session of its own."""
        path = os.pathsep.join([str(FAKES), str(ROOT), *([str(CLOCK)] if "CLOCK_OFFSET_FILE" in self.env else [])])
        env = {**os.environ, "PYTHONPATH": path, "TMPDIR": str(self.temporary), **self.env}
        with (self.folder / "driver.log").open("ab") as log:
            return subprocess.Popen(
                [COMMAND, "run", "study.yaml", "--store", self.store],
                cwd=self.folder, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def run(self, timeout_s=120):
        """Run to the end; returns the exit code."""
        driver = self.start()
        try:
            return driver.wait(timeout_s)
        finally:
            end(driver)

    def history(self):
        return ledger.read(self.study)

    def table(self):
        """Trial → configuration and measured rows, None for a failed one."""
        return {
            number: (
                dict(record.configuration.values),
                [dict(row.metrics) for row in record.measurement.rows] if record.measurement else None,
            )
            for number, record in sorted(self.history().records.items())
        }

    def log(self):
        return (self.folder / "driver.log").read_text(errors="replace")

    def left(self, wait_s=8.0):
        """What is left on the machine once no driver runs: processes, ports, temporary files. Empty is right."""
        deadline = time.monotonic() + wait_s
        while True:
            found = [f"process {pid} {tag.trial} {command_line(pid)!r}" for pid, (_, tag) in own_processes(self.store).items()]
            found += [f"temporary {path.relative_to(self.temporary)}" for path in self.temporary.rglob("*")]
            found += [f"partial file {path}" for path in self.store.rglob("*.new")]
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(0.1)

    def close(self):
        for pid in own_processes(self.store):
            os.kill(pid, signal.SIGKILL)
        for path in sorted(self.temporary.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        self.temporary.rmdir()


def end(driver):
    if driver.poll() is None:
        driver.kill()
    driver.wait()


def strike(rig, wanted, rng, driver, every=1, number=signal.SIGKILL):
    """Signal a random instant of a random process of a wanted role, in the first attempt of every so-many-th trial.

    Returns the role, or None when none was there to be struck.
    """
    deadline = time.monotonic() + 5
    while driver.poll() is None and time.monotonic() < deadline:
        attempts = {job.number: job.attempt for job in rig.history().in_flight} if (rig.study / ledger.FILE).exists() else {}
        if len(attempts) == 1 and all(attempt == 1 and trial % every == 0 for trial, attempt in attempts.items()):
            targets = [(one, tag, role(one, tag)) for one, tag in own_processes(rig.store).values()]
            targets = [
                (one, tag, what)
                for one, tag, what in targets
                if what in wanted and (what in ("worker", "fork server") or tag.trial.endswith("-1"))
            ]
            if targets:
                one, _, what = rng.choice(targets)
                time.sleep(rng.uniform(0, 0.15))
                now = proc.look(one.pid)
                still = {job.number: job.attempt for job in rig.history().in_flight} == attempts
                if now is not None and now.identity == one.identity and not now.ended and still:
                    os.kill(one.pid, number)
                    return what
        time.sleep(0.01)
    return None


def measured_of(record):
    return isinstance(record.outcome, Measured)
