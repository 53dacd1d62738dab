"""What an engine was asked once is not asked again, until something it depends on changes."""

from __future__ import annotations

import pytest

from autotune import models
from autotune.engines._answers import Answers
from autotune.engines.base import Identity, Verdict

IDENTITY = Identity(kind="vllm", version="0.26.0", python="3.12.3", device="NVIDIA H200", packages={"torch": "2.11.0"})


@pytest.fixture
def probe(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOTUNE_STORE", str(tmp_path / "store"))
    path = tmp_path / "probe.py"
    path.write_text("print(1)")
    return path


def verdicts(answers, questions, asked):
    def ask(indices):
        asked.append([questions[index] for index in indices])
        return [
            Verdict(refused="no") if "bad" in questions[index] else Verdict(resolved={"q": questions[index]}) for index in indices
        ]

    return answers.verdicts(questions, ask)


def test_only_what_is_not_known_is_asked_and_a_refusal_always(probe):
    asked = []
    first = verdicts(Answers(IDENTITY, "python", probe), ["a", "bad", "b"], asked)
    again = verdicts(Answers(IDENTITY, "python", probe), ["b", "bad", "c", "a"], asked)
    assert asked == [["a", "bad", "b"], ["bad", "c"]]
    assert [one.resolved.get("q") for one in first] == ["a", None, "b"]
    assert [(one.resolved.get("q"), one.refused) for one in again] == [("b", None), (None, "no"), ("c", None), ("a", None)]
    assert verdicts(Answers(IDENTITY, "python", probe), [], asked) == [] and len(asked) == 2


@pytest.mark.parametrize("changed", ["version", "python", "probe"])
def test_another_version_interpreter_or_probe_is_asked_anew(probe, changed):
    told = iter("12")
    assert Answers(IDENTITY, "python", probe).get("flags", lambda: next(told)) == "1"
    assert Answers(IDENTITY, "python", probe).get("flags", lambda: next(told)) == "1"
    if changed == "probe":
        probe.write_text("print(2)")
    identity = IDENTITY.model_copy(update={"version": "0.27.0"}) if changed == "version" else IDENTITY
    assert Answers(identity, "other" if changed == "python" else "python", probe).get("flags", lambda: next(told)) == "2"


def test_what_cannot_be_answered_is_not_kept(probe):
    def broken():
        raise RuntimeError("no")

    answers = Answers(IDENTITY, "python", probe)
    with pytest.raises(RuntimeError):
        answers.get("flags", broken)
    assert answers.get("flags", lambda: 3) == 3


@pytest.mark.parametrize("left", ["", "{"])
def test_what_a_crash_has_left_of_an_answer_is_asked_anew(probe, left):
    answers = Answers(IDENTITY, "python", probe)
    asked = []
    assert answers.get("flags", lambda: 3) == 3 and verdicts(answers, ["a"], asked)[0].resolved == {"q": "a"}
    for kept in models.shared_cache().glob("flags/*"):
        kept.write_text(left)
    assert answers.get("flags", lambda: 4) == 4 and verdicts(answers, ["a"], asked)[0].resolved == {"q": "a"}
    assert answers.get("flags", lambda: 5) == 4 and len(asked) == 2


def test_an_answer_that_cannot_be_kept_is_given_all_the_same(probe):
    """On a full disk or a read-only one a study is checked, and says so itself where it has to write."""
    models.shared_cache().parent.mkdir()
    models.shared_cache().write_text("in the way")
    answers = Answers(IDENTITY, "python", probe)
    assert answers.get("flags", lambda: (3,)) == [3]
    assert verdicts(answers, ["a"], [])[0].resolved == {"q": "a"}
