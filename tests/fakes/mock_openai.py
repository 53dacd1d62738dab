"""A running mock server and a session on it, for tests of the load client."""

import subprocess
import sys
from contextlib import contextmanager

from autotune.engines.base import Context
from autotune.session import Session
from autotune.trial import FailureKind, Phase, TrialFailed
from autotune.workloads._load import mock_server


class MockSession(Session):
    """A session on a process that somebody else ends."""

    def __init__(self, process, port):
        self._process = process
        self.endpoint = f"http://127.0.0.1:{port}"
        self.model = mock_server.MODEL
        self.resets = 0

    def wait_ready(self):
        return {}

    def check_alive(self):
        if self._process.poll() is not None:
            raise TrialFailed(FailureKind.CRASHED, Phase.MEASURE, "The mock server ended.")

    def resources_between(self, begin, end):
        return {"energy_joule": 300 * (end - begin), "gpu_utilization": 0.5}

    def reset_caches(self):
        self.resets += 1
        return True

    def stop(self):
        return {}


@contextmanager
def serving(*arguments):
    """The mock server as a process of its own."""
    command = [sys.executable, "-m", mock_server.__name__, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield MockSession(process, int(process.stdout.readline().split()[1]))
        finally:
            process.kill()


def context(folder, **changes):
    return Context(
        **{"study": "test", "trial": 0, "tag": "test-tag", "folder": folder, "scratch": folder, "cache": folder, **changes}
    )
