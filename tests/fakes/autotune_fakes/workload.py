"""A load whose result depends on the configuration alone, so that a disturbed study can be compared with an undisturbed one."""

import json
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

from autotune import process
from autotune.trial import FailureKind, Measurement, Phase, Row, TrialFailed
from autotune.workloads.base import Workload, WorkloadOptions


class CountOptions(WorkloadOptions):
    requests: int = 8
    deadline_s: float = 10.0
    share: float = 0.9


class CountWorkload(Workload):
    kind = "count"
    needs = "http"
    Options = CountOptions

    def levels(self):
        return ({"concurrency": 1},)

    def metrics(self):
        return frozenset({"output_tokens_per_s", "ttft_ms.p99"})

    def expected_seconds(self):
        return 0.5

    def run(self, session, context, progress):
        progress("concurrency 1", 0.0)
        port = urlsplit(session.endpoint).port
        client = Path(__file__).with_name("client.py")
        argv = [sys.executable, "-S", "-E", str(client), str(port), str(self.options.requests)]
        log = context.folder / "client.jsonl"
        running = process.start(argv, env={}, cwd=context.scratch, log=log, tag=context.tag)
        deadline = time.monotonic() + self.options.deadline_s
        with running:
            while running.alive():
                session.check_alive()
                if time.monotonic() > deadline:
                    raise TrialFailed(FailureKind.UNHEALTHY, Phase.MEASURE, "The load did not end in time.")
                time.sleep(0.01)
        session.check_alive()
        if running.returncode() != 0:
            raise TrialFailed(FailureKind.MACHINE_FAULT, Phase.MEASURE, f"The load client ended with {running.returncode()}.")
        return self._table(session, [json.loads(line) for line in log.read_text().splitlines()])

    def _table(self, session, answers):
        finished = [answer for answer in answers if "tokens" in answer]
        if len(finished) < self.options.share * self.options.requests:
            reason = f"{len(finished)} of {self.options.requests} requests finished."
        elif any(answer["tokens"] != 4 for answer in finished):
            reason = "The server counted other tokens than were asked for."
        else:
            reason = None
        with urlopen(session.endpoint + "/speed", timeout=2) as answer:
            speed = json.loads(answer.read())["speed"]
        metrics = {"output_tokens_per_s": speed * 1.5, "ttft_ms.p99": 1000.0 / speed + speed / 10}
        return Measurement(rows=(Row(level={"concurrency": 1}, metrics=metrics, invalid=reason),))


workload = CountWorkload
