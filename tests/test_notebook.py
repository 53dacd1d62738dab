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


def test_it_reads_the_kept_study(monkeypatch, capsys):
    space, shown = run(monkeypatch)
    assert "times the default" in capsys.readouterr().out
    panels = drawn(shown)[0]
    bars = [trace for trace in panels.data if trace.type == "bar"]
    assert len(bars) >= 2, "samples per second and memory were measured"
    assert len(bars[0].x) == len(space["found"].candidates)


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
