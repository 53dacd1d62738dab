"""A small study with every kind of trial, kept in a real ledger."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from autotune import study as studies
from autotune.ledger import Ledger
from autotune.trial import Configuration, Failed, FailureKind, Measured, Measurement, Origin, Phase, Row, TrialRecord

# How long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture(autouse=True)
def store_of_one_test() -> Iterator[None]:
    """The command line names its store in the environment, where the next test must not find it."""
    named = os.environ.get("AUTOTUNE_STORE")
    yield
    os.environ.pop("AUTOTUNE_STORE", None)
    if named is not None:
        os.environ["AUTOTUNE_STORE"] = named


@pytest.fixture(autouse=True)
def temporary_files_of_engines(request: pytest.FixtureRequest) -> Iterator[None]:
    """A real engine that a test opens by itself keeps its sockets where temporary files go, and leaves them there."""
    if request.node.get_closest_marker("engine") is None:
        yield
        return
    # Short, as a socket's path may have 107 characters; and asked for first, as the answer is kept for good.
    place = tempfile.gettempdir()
    with (
        tempfile.TemporaryDirectory(prefix="at-", dir=place, ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as here,
    ):
        here.setenv("TMPDIR", folder)
        yield


ENGINE_TIMEOUT_S = 900
"""A real engine may take minutes to start on a machine of two busy cores."""

STUDY = """\
name: small
engine: {kind: vllm, model: "synthetic:tiny"}
workload: {kind: http}
search_space: {include: vllm}
objectives: [{maximize: output_tokens_per_s}, {minimize: peak_memory_gib}]
constraints: ["ttft_ms.p99 <= 500 @ request_rate=4"]
budget: {trials: 6}
"""

RUNS: tuple[tuple[Origin, dict[str, object], float, float, float], ...] = (
    (Origin.DEFAULT, {}, 100.0, 8.0, 300.0),
    (Origin.SEARCH, {"max_num_seqs": 64}, 150.0, 8.4, 250.0),
    (Origin.SEARCH, {"max_num_seqs": 8, "block_size": 32}, 60.0, 4.0, 400.0),
    (Origin.SEARCH, {"max_num_seqs": 256}, 200.0, 9.0, 900.0),
    (Origin.BASELINE, {}, 102.0, 8.1, 310.0),
    (Origin.FINALIST, {"max_num_seqs": 64}, 147.0, 8.3, 260.0),
)
"""Origin, parameters, tokens/s, GiB, TTFT p99: trial 3 breaks the constraint, 4 and 5 repeat 0 and 1."""


def measured(tokens: float, memory: float, ttft: float) -> Measured:
    rows = tuple(
        Row(level={"request_rate": rate}, metrics={"output_tokens_per_s": tokens * rate / 4, "ttft_ms.p99": ttft * rate / 4})
        for rate in (2, 4)
    )
    return Measured(measurement=Measurement(rows=rows, totals={"peak_memory_gib": memory}))


def record(number: int, folder: Path | None = None) -> TrialRecord:
    """The number's trial; 6 ran out of memory."""
    shared = {
        "effective": {"max_num_seqs": 128, "block_size": 16},
        "command": ("vllm", "serve", "/models/tiny", "--api-key", "sk-abcdefghijklmnopqrstuvwx"),
        "environment": {"HF_TOKEN": "hf_abcdefghijklmnopqrstuvwx", "VLLM_CPU_KVCACHE_SPACE": "1"},
        "seconds": {"start": 20.0, "measure": 10.0, "stop": 1.0},
        "started_at": 1.75e9 + 60 * number,
        "folder": str(folder) if folder else None,
    }
    if number == 6:
        failed = Failed(kind=FailureKind.OUT_OF_MEMORY, phase=Phase.START, evidence=("No memory left.",), advice="Lower it.")
        configuration = Configuration(engine="vllm", values={"max_num_seqs": 1024})
        return TrialRecord(number=6, configuration=configuration, origin=Origin.SEARCH, outcome=failed, **shared)
    origin, values, tokens, memory, ttft = RUNS[number]
    configuration = Configuration(engine="vllm", values=values)
    shared["effective"] = {**shared["effective"], **values}
    return TrialRecord(number=number, configuration=configuration, origin=origin, outcome=measured(tokens, memory, ttft), **shared)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("engine") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(ENGINE_TIMEOUT_S))


@pytest.fixture
def make_record() -> Callable[..., TrialRecord]:
    return record


@pytest.fixture
def small_study() -> studies.Study:
    return studies.validate(studies.source.parse(STUDY, "study.yaml"))[0]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with the study `small`: seven trials, logs and all."""
    keep(tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture(scope="session")
def keep_small() -> Callable[[Path], studies.Study]:
    """Writes the study `small` into a store."""
    return keep


def keep(store: Path) -> studies.Study:
    folder = store / "small"
    with Ledger(folder, STUDY, "digest") as ledger:
        for number in range(7):
            kept = folder / "trials" / f"{number:04d}-1"
            kept.mkdir()
            (kept / "engine.log").write_text("started with HF_TOKEN=hf_abcdefghijklmnopqrstuvwx\n")
            ledger.record(record(number, kept))
        ledger.note("cut", {"rule": "memory", "reason": "HF_TOKEN=hf_abcdefghijklmnopqrstuvwx does not fit."})
    return studies.load(folder / "study.yaml")[0]
