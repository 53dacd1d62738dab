from __future__ import annotations

from pathlib import Path

import pytest
import recorded_study as support

from autotune import source, study
from autotune.engines.base import Identity
from autotune.ledger import Ledger
from autotune.rules import StudyRule
from autotune.search import warm_start
from autotune.study import Search
from autotune.trial import Configuration

STUDY = """\
name: {name}
engine: {{kind: recorded}}
workload: {{kind: recorded, traffic: {traffic}}}
search_space: {{include: recorded}}
objectives: [{{maximize: output_tokens_per_s @ concurrency=512}}, {{minimize: peak_gpu_memory_gib}}]
constraints: ["ttft_ms.p99 <= 200 @ request_rate=30"]
"""
IDENTITY = support.engine().identity()
RESOLVED = {"recorded": support.engine().preflight([Configuration(engine="recorded")])[0].resolved}


def defined(name: str, traffic: str = "chat", **replace: str) -> study.Study:
    text = STUDY.format(name=name, traffic=traffic)
    for old, new in replace.items():
        text = text.replace(old, new)
    return study.validate(source.parse(text))[0]


def keep(store: Path, name: str, trials: int = 12, identity: Identity = IDENTITY) -> list:
    told = support.run(support.driver(Search(seed=3)), trials)
    with Ledger(store / name, STUDY.format(name=name, traffic="chat"), "digest") as ledger:
        ledger.note("engines", {"recorded": identity.model_dump(mode="json")})
        for _, record, _ in told:
            ledger.record(record)
    return told


def offers(store: Path, wanted: study.Study, **more: object) -> list[warm_start.Offer]:
    given = {"identities": {"recorded": IDENTITY}, "space": support.space(), "resolved": RESOLVED, **more}
    return warm_start.offers(store, wanted, **given)


def test_the_front_of_an_earlier_study_is_offered(tmp_path):
    told = keep(tmp_path, "earlier")
    found = offers(tmp_path, defined("new"), limit=99)
    scores = {record.number: score for _, record, score in told if score is not None and score.feasible}
    best = max(scores, key=lambda number: scores[number].values[0])
    least = min(scores, key=lambda number: scores[number].values[1])
    assert {offer.study for offer in found} == {"earlier"}
    offered = {offer.trial for offer in found}
    assert least in offered
    assert best in offered or best == 0
    assert offered <= scores.keys()
    assert all(support.space().encode(offer.configuration, {}) is not None for offer in found)


def test_there_are_at_most_four_offers_and_none_from_the_study_itself(tmp_path):
    keep(tmp_path, "earlier", trials=30)
    assert 0 < len(offers(tmp_path, defined("new"))) <= warm_start.OFFERS
    assert offers(tmp_path, defined("earlier")) == []


def test_neither_the_default_nor_what_the_study_forbids_is_offered(tmp_path):
    keep(tmp_path, "earlier", trials=30)
    default = support.space().decode(support.space().encode(Configuration(engine="recorded"), RESOLVED["recorded"]))
    found = offers(tmp_path, defined("new"), limit=99)
    assert default not in [offer.configuration for offer in found]
    rule = StudyRule(rule="kv_cache_dtype == 'fp8'", reason="The study forbids it.")
    kept = offers(tmp_path, defined("new"), space=support.space(rule), limit=99)
    assert kept == [offer for offer in found if offer.configuration.values["kv_cache_dtype"] != "fp8"]
    assert len(kept) < len(found)


def test_a_nearer_study_offers_first(tmp_path):
    keep(tmp_path, "a-far", identity=IDENTITY.model_copy(update={"device": "NVIDIA L4", "version": "other"}))
    keep(tmp_path, "b-near")
    found = offers(tmp_path, defined("new"), limit=99)
    assert found[0].study == "b-near"
    assert found[0].similarity > 0.9


def test_a_study_that_cannot_be_read_is_passed_over(tmp_path):
    keep(tmp_path, "earlier")
    keep(tmp_path, "broken")
    (tmp_path / "broken" / "study.yaml").write_text("name: [")
    assert {offer.study for offer in offers(tmp_path, defined("new"), limit=99)} == {"earlier"}


@pytest.mark.parametrize(
    ("changed", "low", "high"),
    [
        ({}, 1.0, 1.0),
        ({"chat": "prefix"}, 0.5, 0.9),
        ({"kind: recorded, traffic: chat": "kind: http"}, 0.0, 0.0),
        ({"minimize: peak_gpu_memory_gib": "minimize: start_s"}, 0.7, 0.9),
    ],
)
def test_similarity(changed, low, high):
    one, other = defined("one"), defined("other", **changed)
    assert low <= warm_start.similarity(one, other, {"recorded": IDENTITY}, {"recorded": IDENTITY}) <= high
