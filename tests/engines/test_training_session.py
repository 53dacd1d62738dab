"""The training session over real processes: small Python programs that write steps as a trainer would."""

import sys
import time

import pytest

from autotune import process
from autotune.engines._training import FIRST_STEPS, Begin, Dialect, LaunchedTraining, TrainingOptions
from autotune.engines._training_log import Own, death, diagnose
from autotune.engines.base import Context, Launch, Step
from autotune.trial import FailureKind, Phase, TrialFailed

BEGIN = "import json,os,sys,time\nf=open(sys.argv[1],'w',buffering=1)\nf.write('{\"begin\":1}\\n')\n"
STEP = "f.write(json.dumps({'step':%d,'s':0.1,'seed':sys.argv[2]})+'\\n')\n"


def read(record):
    if "begin" in record:
        return Begin(effective={"learning_rate": 1e-3}, versions={"trl": "1"})
    return Step(number=record["step"], metrics={"step_s": record["s"], "reward": float(record["seed"])}, samples=4)


def reseed(launch, seed):
    return launch.model_copy(update={"argv": (*launch.argv[:-1], str(seed))})


@pytest.fixture
def opened(tmp_path):
    sessions = []

    def make(program, start_timeout_s=20.0, **dialect):
        context = Context(
            study="s",
            trial=0,
            tag=process.make_tag(tmp_path, "s", 0),
            folder=tmp_path / "folder",
            scratch=tmp_path / "scratch",
            cache=tmp_path / "cache",
        )
        steps = str(context.folder / FIRST_STEPS)
        launch = Launch(argv=(sys.executable, "-c", program, steps, "0"), files={"a.yaml": "a: 1\n"}).within(context)
        options = TrainingOptions(kind="trl", model="m", start_timeout_s=start_timeout_s, stop_timeout_s=2)
        known = {"diagnose": lambda log, _: diagnose(log, ("ValueError",)), **dialect}
        session = LaunchedTraining(launch, context, options, Dialect(read=read, reseed=reseed, **known))
        sessions.append(session)
        return session

    yield make
    for session in sessions:
        session.stop()


def steps_of(session, count, timeout_s=10.0):
    found = []
    deadline = time.monotonic() + timeout_s
    while len(found) < count and time.monotonic() < deadline:
        found += session.new_steps()
        time.sleep(0.02)
    return found


def test_steps_are_read_while_the_trainer_runs(opened, tmp_path):
    session = opened(
        BEGIN + STEP % 1 + 'f.write(\'{"step": 2\')\ntime.sleep(0.5)\nf.write(\', "s": 0.2, "seed": 0}\\n\')\ntime.sleep(60)'
    )
    facts = session.wait_ready()
    assert facts["effective"] == {"learning_rate": 1e-3} and facts["versions"] == {"trl": "1"}
    assert [step.number for step in steps_of(session, 2)] == [1, 2]
    assert session.new_steps() == () and not session.ended()
    session.check_alive()
    assert (tmp_path / "folder" / "a.yaml").read_text() == "a: 1\n"


def test_stopping_ends_the_tree_and_keeps_the_peak(opened, tmp_path):
    program = (
        "import subprocess,sys\nsubprocess.Popen([sys.executable,'-c','import time;time.sleep(99)'])\n" + BEGIN + "time.sleep(99)"
    )
    session = opened(program)
    session.wait_ready()
    deadline = time.monotonic() + 5
    while not session.resources() and time.monotonic() < deadline:
        time.sleep(0.05)
    tag = session._context.tag
    assert len(process.tagged(tag)) == 2
    assert session.stop()["survivors"] == ()
    assert process.tagged(tag) == []
    assert session.resources()["peak_memory_gib"] > 0
    assert not (tmp_path / "scratch").exists()


def test_another_seed_is_another_run_of_the_same_launch(opened, tmp_path):
    session = opened(BEGIN + STEP % 1 + "time.sleep(60)")
    session.wait_ready()
    assert [step.metrics["reward"] for step in steps_of(session, 1)] == [0.0]
    session.restart(7)
    assert [step.metrics["reward"] for step in steps_of(session, 1)] == [7.0]
    assert (tmp_path / "folder" / "steps-0.jsonl").exists() and (tmp_path / "folder" / "steps-1.jsonl").exists()


def ended(session):
    """What a session that is looked at as a workload does is ended with."""
    with pytest.raises(TrialFailed) as caught:
        for _ in range(100):
            session.new_steps()
            session.check_alive()
            time.sleep(0.05)
    return caught.value.failed


def test_a_refused_argument_is_the_configurations_fault(opened):
    session = opened("raise ValueError('generation_batch_size (64) must be divisible by num_generations (7).')")
    with pytest.raises(TrialFailed) as caught:
        session.wait_ready()
    failed = caught.value.failed
    assert failed.kind is FailureKind.INVALID_CONFIG and failed.phase is Phase.START
    assert "divisible by num_generations (7)" in failed.evidence[0]


def test_an_argument_that_the_first_step_refuses_is_the_configurations_fault(opened):
    """TRL reads the name of its loss there, and nowhere before."""
    session = opened(BEGIN + "time.sleep(0.3)\nraise ValueError('Unknown loss type: grpoo')")
    session.wait_ready()
    failed = ended(session)
    assert failed.kind is FailureKind.INVALID_CONFIG and failed.phase is Phase.MEASURE


def test_the_same_exception_later_is_a_crash(opened):
    session = opened(BEGIN + STEP % 1 + "time.sleep(0.3)\nraise ValueError('late')")
    session.wait_ready()
    failed = ended(session)
    assert failed.kind is FailureKind.CRASHED and failed.phase is Phase.MEASURE


def test_a_kill_that_is_not_ours_counts_as_out_of_memory(opened):
    session = opened(BEGIN + "time.sleep(0.3)\nos.kill(os.getpid(), 9)")
    session.wait_ready()
    failed = ended(session)
    assert failed.kind is FailureKind.OUT_OF_MEMORY


def test_a_crash_tells_where_it_was_raised(tmp_path):
    log = tmp_path / "training-0.log"
    log.write_text(
        'Traceback (most recent call last):\n  File "/trl/grpo.py", line 9, in main\n    train()\n'
        '  File "/mine/rewards.py", line 12, in score\n    raise KeyError("answer")\nKeyError: \'answer\'\n'
    )
    failed = death(log, 1, Phase.MEASURE, lambda text, code: diagnose(text, ("ValueError",))).failed
    assert failed.kind is FailureKind.CRASHED
    assert failed.evidence == ("KeyError: 'answer' (raised in /mine/rewards.py, line 12, in score)",)
    assert failed.advice == "Read training-0.log in the trial's folder."


@pytest.mark.parametrize(
    ("frames", "own", "kind"),
    [
        (["/mine/train.py", "/mine/data.py"], Own(script="/mine/train.py"), FailureKind.INVALID_CONFIG),
        (["/trl/tap.py", "/mine/train.py"], Own(script="/mine/train.py"), FailureKind.CRASHED),
        (["/mine/train.py", "/trl/config.py"], Own(script="/mine/train.py"), FailureKind.INVALID_CONFIG),
        (["/trl/grpo.py", "/mine/rewards.py"], Own(called="/rewards.py"), FailureKind.CRASHED),
        (["/trl/grpo.py", "/mine/rewards.py", "/lib/sympy/parser.py"], Own(called="/rewards.py"), FailureKind.CRASHED),
        (["/trl/grpo.py", "/trl/all_rewards.py"], Own(called="/rewards.py"), FailureKind.INVALID_CONFIG),
        (["/mine/rewards.py"], Own(), FailureKind.INVALID_CONFIG),
    ],
)
def test_what_the_studys_own_code_raises_refuses_no_parameters(tmp_path, frames, own, kind):
    """Before the first step too: verl's first step calls the reward, and a script may fail at its own first line."""
    log = tmp_path / "training-0.log"
    traced = "".join(f'  File "{file}", line 3, in score\n    score()\n' for file in frames)
    log.write_text(f"Traceback (most recent call last):\n{traced}ValueError: no number in the answer\n")
    failed = death(log, 1, Phase.START, lambda text, code: diagnose(text, ("ValueError",), own)).failed
    assert failed.kind is kind and "no number in the answer" in failed.evidence[0]
    assert ("study's own code" in failed.advice) == (kind is FailureKind.CRASHED)


RAY = "\x1b[36m(TaskRunner pid=3)\x1b[0m "


@pytest.mark.parametrize(
    ("text", "evidence"),
    [
        (
            'Traceback (most recent call last):\n  File "/mine/train.py", line 5, in main\nRuntimeError: boom\n'
            'Exception ignored in atexit callback:\n  File "/lib/threading.py", line 1541, in _shutdown\nKeyboardInterrupt\n',
            ("RuntimeError: boom (raised in /mine/train.py, line 5, in main)",),
        ),
        (
            '  File "/lib/probe.py", line 5, in probe\nImportError: no flash attention\n'
            f'{RAY}Traceback (most recent call last):\n{RAY}  File "/mine/reward.py", line 3, in score\n{RAY}RuntimeError: boom\n',
            (
                "(TaskRunner pid=3) RuntimeError: boom (raised in /mine/reward.py, line 3, in score)",
                "ImportError: no flash attention (raised in /lib/probe.py, line 5, in probe)",
            ),
        ),
        ('  File "/lib/probe.py", line 5, in probe\nStopIteration\nImportError: one\nRuntimeError: boom\n', None),
    ],
)
def test_a_crash_is_not_placed_where_another_was_raised(tmp_path, text, evidence):
    log = tmp_path / "training-0.log"
    log.write_text(text)
    found = death(log, 1, Phase.MEASURE, lambda text, code: diagnose(text, ("ValueError",))).failed.evidence
    assert found == evidence if evidence else found[0] == "RuntimeError: boom"


def test_steps_written_just_before_a_death_are_not_lost(opened):
    session = opened(BEGIN + "time.sleep(0.3)\n" + STEP % 1 + "raise RuntimeError('gone')")
    session.wait_ready()
    while session._process.alive():
        time.sleep(0.02)
    session.check_alive()
    assert [step.number for step in session.new_steps()] == [1]
    with pytest.raises(TrialFailed):
        session.check_alive()


def test_an_end_by_itself_is_told_apart_from_a_death(opened):
    session = opened(BEGIN + STEP % 1)
    session.wait_ready()
    while not session.ended():
        session.check_alive()
        time.sleep(0.02)
    assert [step.number for step in session.new_steps()] == [1]


def test_a_trainer_that_never_begins_times_out(opened):
    session = opened("import time\ntime.sleep(60)", start_timeout_s=0.5)
    with pytest.raises(TrialFailed) as caught:
        session.wait_ready()
    assert caught.value.failed.kind is FailureKind.START_TIMEOUT


def test_a_driver_that_lives_on_after_a_fatal_line_is_hung(opened, monkeypatch):
    monkeypatch.setattr("autotune.engines._training.HUNG_S", 0.3)
    session = opened(BEGIN + "print('ray.exceptions.ActorDiedError: gone', flush=True)\ntime.sleep(60)", fatal=r"ActorDiedError")
    session.wait_ready()
    failed = ended(session)
    assert failed.kind is FailureKind.CRASHED
    assert any("ActorDiedError" in line for line in failed.evidence)


def test_a_line_that_is_no_json_is_passed_over(opened):
    session = opened(BEGIN + "f.write('garbage\\n')\n" + STEP % 3 + "time.sleep(60)")
    session.wait_ready()
    assert [step.number for step in steps_of(session, 1)] == [3]


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", FailureKind.OUT_OF_MEMORY),
        ("(WorkerDict pid=7) torch.cuda.OutOfMemoryError: CUDA out of memory.", FailureKind.OUT_OF_MEMORY),
        ("ValueError: No available memory for the cache blocks.", FailureKind.OUT_OF_MEMORY),
        ("RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory", FailureKind.OUT_OF_MEMORY),
        (
            "torch.distributed.DistNetworkError: The server socket has failed to listen on any local network address. "
            "port: 29500, useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use",
            FailureKind.MACHINE_FAULT,
        ),
        ("ValueError: bad", FailureKind.INVALID_CONFIG),
        ("RuntimeError: shape mismatch", FailureKind.CRASHED),
        ("(main pid=3) RuntimeError: shape mismatch", FailureKind.CRASHED),
    ],
)
def test_logs_are_classified(line, kind):
    found = diagnose(f"starting\n{line}\n", ("ValueError",))
    assert found is not None and found.kind is kind and found.evidence[0].endswith(line[-20:])


def test_of_several_exceptions_the_last_ended_the_run_and_the_first_caused_it():
    log = (
        "\x1b[36m(Loop pid=7)\x1b[0m FileNotFoundError: no /nowhere/reward.py\n"
        "\x1b[36m(Loop pid=7)\x1b[0m ray.exceptions.ActorDiedError: died\nRuntimeError: no trajectories\n"
    )
    found = diagnose(log, ("ValueError",))
    assert found.kind is FailureKind.CRASHED and found.evidence[0] == "RuntimeError: no trajectories"
    assert found.evidence[1].endswith("FileNotFoundError: no /nowhere/reward.py")


def test_an_ordinary_log_says_nothing():
    assert diagnose("step 1\nSome weights were not used: error rate 0\n", ("ValueError",)) is None
