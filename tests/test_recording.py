"""A study's ledger as a recording: what the script keeps, leaves out, and says of the surface."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest

from autotune.engines._recorded.recording import load
from autotune.engines._recorded.surface import surface
from autotune.engines.base import Context
from autotune.engines.recorded import RecordedEngine, RecordedOptions
from autotune.errors import AutotuneError
from autotune.history import FILE
from autotune.ledger import Ledger
from autotune.trial import Configuration, Failed, FailureKind, Measured, Measurement, Origin, Phase, Row, TrialRecord
from autotune.workloads.recorded import RecordedWorkload, RecordedWorkloadOptions

ROOT = Path(__file__).parents[1]
OWN = ROOT / "benchmarks" / "data" / "h200-chat-8b.jsonl"
STUDY = """\
name: small
engine: {kind: vllm, model: "synthetic:llama-3.1-8b", fixed: {max_model_len: 8192}}
workload:
  kind: http
  traffic: {input_tokens: {uniform: [256, 768]}, output_tokens: {uniform: [64, 192]}}
  load: [{request_rate: 30}, {concurrency: 256}]
search_space: {include: vllm}
objectives: [{maximize: output_tokens_per_s}, {minimize: peak_gpu_memory_gib}]
"""
DEFAULTS = {"max_num_seqs": 1024, "max_num_batched_tokens": 8192, "gpu_memory_utilization": 0.92, "block_size": 16}
DEFAULTS |= {"enable_prefix_caching": True, "kv_cache_dtype": "auto", "enforce_eager": False, "async_scheduling": True}
IDENTITY = {"version": "0.26.0", "device": "NVIDIA H200", "packages": {"vllm": "0.26.0"}}


def script():
    spec = importlib.util.spec_from_file_location("recording_script", ROOT / "scripts" / "recording.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


recording = script()


def row(level, tokens, ttft, **metrics):
    latencies = {f"{name}_ms.{one}": ttft for name in ("ttft", "tpot", "e2e") for one in ("mean", "p50", "p90", "p95", "p99")}
    rates = {"output_tokens_per_s": tokens, "total_tokens_per_s": 5 * tokens, "requests_per_s": tokens / 128, "preemptions": 0.0}
    return Row(level=level, metrics={**latencies, **rates, "energy_joule_per_token": 0.2, "prefix_cache_hit_rate": 0.25, **metrics})


def measured(seqs, tokens, ttft, **facts):
    rows = (row({"request_rate": 30.0}, 3800.0, ttft), row({"concurrency": 256}, tokens, 10 * ttft))
    window = {"window_from_s": 5.0, "window_s": 12.0, "requests_in_window": 360, "finished_in_window": 350, "errors": [], **facts}
    totals = {"peak_gpu_memory_gib": 130.0 + math.log2(seqs), "kv_cache_tokens": 920_000.0, "start_s": 50.0}
    return Measured(measurement=Measurement(rows=rows, totals=totals, facts={"levels": [window, window]}))


def trial(number, outcome, origin=Origin.SEARCH, values=None, **more):
    seconds = {"start": 50.0, "start.imports": 17.0, "measure": 44.0, "stop": 1.0}
    effective = {**DEFAULTS, **(values or {}), "max_model_len": 8192}
    configuration = Configuration(engine="vllm", values=values or {})
    kept = {"seconds": seconds, "effective": effective, "started_at": 1.0e9, "gpus": (1,)}
    return TrialRecord(number=number, configuration=configuration, origin=origin, outcome=outcome, **(kept | more))


def searched():
    """The default and six others; throughput grows with max_num_seqs, and the TTFT is noise around 80."""
    ttfts = (80, 110, 60, 100, 70, 120, 90)
    for number, (seqs, ttft) in enumerate(zip((1024, 8, 16, 32, 64, 128, 256), ttfts, strict=True)):
        values = {"max_num_seqs": seqs} if number else {}
        yield trial(number, measured(seqs, 1000.0 * math.log2(seqs), float(ttft)), values=values)


def ledger(folder, *records, study=STUDY, engines=None):
    folder.mkdir()
    with Ledger(folder, study, "d") as store:
        store.note("engines", engines or {"vllm": IDENTITY})
        for one in records:
            store.record(one)
    return folder


def made(folder, **options):
    found, errors, left_out = recording.recording(folder / FILE, folder / "study.yaml", "chat", **options)
    return found, {(error.level, error.metric): error for error in errors}, left_out


def written(folder, *arguments):
    out = folder.parent / "own.jsonl"
    sys.argv = ["recording.py", str(folder), str(out), *arguments]
    load.cache_clear()
    surface.cache_clear()
    recording.main()
    return str(out)


def replayed(data, values, trial=0, **options):
    where = Context(study="s", trial=trial, tag="t", folder=ROOT, scratch=ROOT, cache=ROOT, seed=0)
    engine = RecordedEngine(RecordedOptions(kind="recorded", data=data, **options))
    with engine.open(engine.launch(Configuration(engine="recorded", values=values), where), where) as session:
        session.wait_ready()
        table = RecordedWorkload(RecordedWorkloadOptions(kind="recorded", data=data)).run(session, where, lambda *_: None)
    return table, session.stop()["seconds"]


@pytest.fixture(autouse=True)
def argv(monkeypatch):
    monkeypatch.setattr(sys, "argv", list(sys.argv))


def test_a_launch_is_replayed_as_the_ledger_holds_it(tmp_path, capsys):
    data = written(ledger(tmp_path / "small", *searched()))
    table, seconds = replayed(data, {"max_num_seqs": 64}, noise=0.0)
    assert [dict(one.level) for one in table.rows] == [{"request_rate": 30.0}, {"concurrency": 256}]
    metrics = table.rows[1].metrics
    assert metrics["output_tokens_per_s"] == 6000.0
    assert metrics["ttft_ms.p99"] == 700.0
    assert metrics["energy_joule_per_token"] == pytest.approx(0.2)
    assert metrics["prefix_cache_hit_rate"] == 0.25
    assert table.totals["peak_gpu_memory_gib"] == 136.0
    assert table.totals["kv_cache_tokens"] == 920_000
    assert seconds["start"] == 50.0
    assert seconds["measure"] == pytest.approx(44.0)
    assert "7 launches of 7 configurations, 2 levels each" in capsys.readouterr().out


def test_what_is_no_launch_of_its_own_is_left_out_and_counted(tmp_path):
    refused = Failed(kind=FailureKind.OUT_OF_MEMORY, phase=Phase.START, evidence=("No blocks",))
    hung = Failed(kind=FailureKind.UNHEALTHY, phase=Phase.MEASURE)
    fine = measured(64, 6000.0, 80.0)
    others = (
        trial(7, refused, values={"max_num_seqs": 512}),
        trial(8, hung, values={"max_num_seqs": 300}),
        trial(9, fine, values={"max_num_seqs": 301}, reused_from="other/3"),
        trial(10, measured(64, 6000.0, 80.0, errors=["HTTP 500"]), values={"max_num_seqs": 302}),
        trial(11, Failed(kind=FailureKind.REJECTED, phase=Phase.CHECK), values={"max_num_seqs": 303}, seconds={}),
        trial(12, Failed(kind=FailureKind.MACHINE_FAULT, phase=Phase.START), values={"max_num_seqs": 304}),
    )
    found, _, left_out = made(ledger(tmp_path / "small", *searched(), *others))
    assert [launch.idx for launch in found.launches] == [*range(7), 7]
    assert found.launches[-1].error == "No blocks"
    assert sum(left_out.values()) == 5
    assert "requests failed, and a ledger does not say how many" in left_out


def test_relaunches_are_one_configuration_and_their_spread_is_the_noise(tmp_path):
    again = (trial(7, measured(1024, 11_000.0, 80.0), Origin.BASELINE), trial(8, measured(1024, 9_000.0, 80.0), Origin.BASELINE))
    folder = ledger(tmp_path / "small", *searched(), *again)
    found, _, _ = made(folder)
    assert len(found.launches) == 9 and len(found.distinct) == 7
    assert found.find({}).levels[1].out_tps == pytest.approx((10_000 * 11_000 * 9_000) ** (1 / 3))
    logs = [math.log(value) for value in (10_000, 11_000, 9_000)]
    deviation = math.sqrt(sum((one - sum(logs) / 3) ** 2 for one in logs) / 2)
    noise = found.about.noise["chat/concurrency/256"]
    assert noise.rates == pytest.approx(deviation, abs=1e-3) and noise.degrees == 2
    assert found.about.noise["chat/rate/30"].rates == 0.0
    data = written(folder)
    tokens = [replayed(data, {}, trial=number)[0].rows for number in range(40)]
    assert len({rows[1].metrics["output_tokens_per_s"] for rows in tokens}) == 40
    assert all(rows[0].metrics["output_tokens_per_s"] == pytest.approx(3800.0) for rows in tokens)


def test_a_metric_that_the_launches_cannot_tell_apart_is_answered_by_its_mean(tmp_path):
    folder = ledger(tmp_path / "small", *searched())
    found, errors, _ = made(folder)
    assert errors["chat/concurrency/256", "out_tps"].informed
    assert not errors["chat/rate/30", "ttft.p99"].informed
    assert "chat/rate/30 ttft" in found.about.flat and "chat/concurrency/256 rates" not in found.about.flat
    data = written(folder)
    between = [replayed(data, {"max_num_seqs": seqs}, noise=0.0)[0].rows for seqs in (12, 100, 200)]
    mean = math.exp(sum(math.log(one) for one in (80, 110, 60, 100, 70, 120, 90)) / 7)
    assert [rows[0].metrics["ttft_ms.p99"] for rows in between] == [pytest.approx(mean)] * 3
    grown = [rows[1].metrics["output_tokens_per_s"] for rows in between]
    assert grown == sorted(grown) and grown[0] < grown[-1]


def test_only_some_launches(tmp_path):
    found, _, left_out = made(ledger(tmp_path / "small", *searched()), only="max_num_seqs >= 16")
    assert [launch.idx for launch in found.launches] == [0, 2, 3, 4, 5, 6]
    assert left_out == {"not max_num_seqs >= 16": 1}
    assert found.about.setup.endswith("Only launches with max_num_seqs >= 16.")


@pytest.mark.parametrize(
    ("records", "options", "told"),
    [
        ([], {}, "a measured default"),
        (list(searched())[:4], {}, "Fewer than 5 launches"),
        (list(searched()), {"engines": {"vllm": {**IDENTITY, "device": "L4"}}}, "How much memory L4 has"),
        (
            list(searched()),
            {"study": STUDY.replace("engine: {kind", "engine: [{kind").replace("8192}}", "8192}}, {kind: sglang}]")},
            "one engine",
        ),
    ],
)
def test_what_cannot_be_a_recording_is_one_clear_message(tmp_path, records, options, told):
    with pytest.raises(AutotuneError, match=told):
        made(ledger(tmp_path / "small", *records, **options))


def test_its_file_must_be_jsonl(tmp_path):
    sys.argv = ["recording.py", str(ledger(tmp_path / "small", *searched())), str(tmp_path / "own.json")]
    with pytest.raises(SystemExit, match=r"is a \.jsonl file"):
        recording.main()


def test_the_study_on_the_h200_says_what_it_cannot_tell_apart():
    whole = surface(str(OWN))
    errors = {(error.level, error.metric): error for error in whole.errors()}
    assert len(whole.recording.launches) > len(whole.working)
    told = {f"{level} {recording.FAMILIES[metric]}".strip() for (level, metric), error in errors.items() if not error.informed}
    assert told == set(whole.recording.about.flat)
    for metric in ("out_tps", "tpot.p99"):
        assert errors["chat/concurrency/256", metric].root_mean_square < 0.6 * errors["chat/concurrency/256", metric].of_mean
    about = json.loads(OWN.with_suffix(".json").read_text())
    assert about["noise"].keys() == {"chat/rate/30", "chat/concurrency/256"}
