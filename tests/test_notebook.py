"""The notebook runs from top to bottom on the kept study, and on any other."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import plotly.graph_objects as go
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "tuning_sps_memory.ipynb"


def run(monkeypatch, folder=None):
    """Execute every code cell in one namespace; returns what each would display."""
    monkeypatch.chdir(ROOT / "notebooks")
    if folder is not None:
        monkeypatch.setenv("AUTOTUNE_STUDY", str(folder))
    space, shown = {}, []
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        if cell["cell_type"] == "code":
            tree = ast.parse("".join(cell["source"]))
            last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, NOTEBOOK.name, "exec"), space)
            shown.append(eval(compile(ast.Expression(last.value), NOTEBOOK.name, "eval"), space) if last else None)
    return space, shown


def drawn(shown):
    return [one for one in shown if isinstance(one, go.Figure)]


def test_it_reads_the_kept_training_study(monkeypatch, capsys):
    space, shown = run(monkeypatch)
    assert space["found"].study.workload["kind"] == "training" and "times the default" in capsys.readouterr().out
    panels = drawn(shown)[0]
    bars = [trace for trace in panels.data if trace.type == "bar"]
    assert len(bars) == 3 and all(len(one.x) == len(space["found"].candidates) for one in bars), "speed, memory and validity"
    notes = [note.text for note in panels.layout.annotations]
    assert notes.count("not measured in this study") == 1, "Transformers generates without a prefix cache"
    assert {"before", "after"} <= {name for name, _ in space["rows"]}, "both were measured with several seeds"


def test_after_beats_before_by_more_than_the_seeds_differ(monkeypatch):
    """The kept study's promise, of the trial with the best reward."""
    space, _ = run(monkeypatch)
    found, seeds = space["found"], space["seeds"]
    reward = found.objective("reward")
    best = seeds(max(found.candidates, key=lambda one: found.mean(one, reward)), "reward")
    before = seeds(space["before"], "reward")
    assert min(best) - max(before) > max(max(best) - min(best), max(before) - min(before))


def test_it_reads_another_study_and_says_what_was_not_measured(monkeypatch, store):
    _, shown = run(monkeypatch, store / "small")
    notes = [note.text for note in drawn(shown)[0].layout.annotations]
    assert notes.count("not measured in this study") == 3


def test_it_carries_no_output():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert all(not cell.get("outputs") for cell in cells)


@pytest.mark.slow
def test_jupyter_runs_it(monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="nbclient and ipykernel are needed to run it as Jupyter does")
    client = pytest.importorskip("nbclient", reason="nbclient and ipykernel are needed to run it as Jupyter does")
    pytest.importorskip("ipykernel", reason="nbclient and ipykernel are needed to run it as Jupyter does")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
