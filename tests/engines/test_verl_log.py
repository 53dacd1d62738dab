"""The start of a verl trial by the lines of its log."""

import sys

from autotune import process
from autotune.engines._milestones import Clock
from autotune.engines._training import FIRST_STEPS, Dialect, LaunchedTraining, TrainingOptions
from autotune.engines._verl_log import MILESTONES
from autotune.engines.base import Launch, Step

LINES = """
[validate_config] All configuration checks passed successfully!
ray init kwargs: {'num_cpus': 32, 'runtime_env': {'env_vars': {'NCCL_DEBUG': 'WARN'}}}
2026-11-21 20:20:46,675	INFO worker.py:2038 -- Started a local Ray instance.
(TaskRunnerV1 pid=2076) INFO:2026-11-21 20:20:50,354:train and validate dataloader initialized, train dataset size: 512
(WorkerDict pid=2214) Total steps: 1000, num_warmup_steps: 0
(TaskRunnerV1 pid=2076) INFO:2026-11-21 20:20:52,540:actor and ref model engine initialized
(TaskRunnerV1 pid=2076) INFO:2026-11-21 20:20:53,426:checkpoint engine manager initialized
(AgentLoopWorkerTQ pid=2364) Using dataset class: RLHFDataset
(AgentLoopWorkerTQ pid=2364) dataset len: 512
""".strip().splitlines()
"""Of verl 0.9.1."""


def test_every_phase_of_a_start_is_ended_by_its_line():
    clock = Clock(MILESTONES)
    for line in LINES:
        clock.read(line)
    assert list(clock.seconds) == ["imports", "ray", "runner", "trainer", "rollout", "agents"]


def test_a_phase_whose_line_is_missing_counts_to_the_next():
    clock = Clock(MILESTONES, last=0.0)
    clock.read(LINES[3])
    assert list(clock.seconds) == ["runner"] and clock.seconds["runner"] == clock.last


def test_a_session_tells_its_start_by_phase(context):
    program = f"import sys\nfor line in {LINES!r}: print(line, flush=True)\nopen(sys.argv[1], 'w').write('1\\n')\nsys.stdin.read()"
    program += "\nimport time; time.sleep(60)"
    launch = Launch(argv=(sys.executable, "-c", program, str(context.folder / FIRST_STEPS))).within(context)
    options = TrainingOptions(kind="verl", model="m", stop_timeout_s=2)
    read = {1: Step(number=1, metrics={}, samples=1)}.get
    dialect = Dialect(read, lambda launch, seed: launch, lambda log, code: None, ready_at_first_step=True, milestones=MILESTONES)
    session = LaunchedTraining(launch, context, options, dialect)
    try:
        seconds = session.wait_ready()["seconds"]
    finally:
        session.stop()
    assert list(seconds) == ["imports", "ray", "runner", "trainer", "rollout", "agents", "first_step"]
    assert all(part >= 0 for part in seconds.values()) and process.tagged(context.tag) == []
