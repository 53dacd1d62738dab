"""Figures of a study (plotly): front, load curves, parameter effects, seconds of each trial, hypervolume.

Every figure marks the engine's default, and shows an interval where one was measured and none where not.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from autotune.analysis import Analysis
from autotune.candidate import Candidate
from autotune.effects import Effect
from autotune.errors import NothingMeasured
from autotune.metrics import lookup
from autotune.score import Objective
from autotune.secrets import redact
from autotune.trial import Row, TrialRecord

COLOURS = {"member": "#0b6e4f", "contender": "#6bbf59", "beaten": "#9aa0a6", "infeasible": "#c8553d", "default": "#1f4e9c"}
SERIES = ("#1f4e9c", "#0b6e4f", "#c8553d", "#8e5ea2", "#d49a00", "#3a9ab8", "#7a5c3e", "#5b6770")
NAMES = {
    "member": "front",
    "contender": "off the front within noise",
    "beaten": "beaten",
    "infeasible": "breaks a constraint",
    "default": "engine's default",
}


def page_of(figure: go.Figure, script: bool = True) -> str:
    """The figure as HTML that needs nothing else; without `script` a part of a page that has plotly already."""
    return str(figure.to_html(include_plotlyjs=script, full_html=script, config={"displaylogo": False, "responsive": True}))


def front(analysis: Analysis) -> go.Figure:
    """All measured configurations over the first two objectives; with one objective, over the trial number."""
    objectives = analysis.study.objectives
    across, up = (objectives[0], objectives[1]) if len(objectives) > 1 else (None, objectives[0])
    figure = go.Figure()
    for mark, group in _marked(analysis).items():
        figure.add_trace(_points(analysis, mark, group, across, up))
    _front_line(figure, analysis, across, up)
    title = "Front: what cannot be bettered in one objective without loss in another" if across else "Measured configurations"
    figure.update_layout(title=title, xaxis_title=axis(across.name) if across else "trial", yaxis_title=axis(up.name))
    return _styled(figure)


def load_curves(analysis: Analysis, metric: str, trials: Sequence[int]) -> go.Figure | None:
    """A metric over load levels or steps, a line per trial; None when no row holds it. Invalid rows are left out."""
    figure, default = go.Figure(), analysis.default_candidate
    keys = sorted({key for trial in trials for row in _rows(analysis.record(trial)) for key in row.level})
    for place, trial in enumerate(trials):
        record = analysis.record(trial)
        x, y = _line([row for row in _rows(record) if metric in row.metrics and row.invalid is None], metric, keys)
        if x:
            is_default = default is not None and trial == default.trial
            style = {"color": COLOURS["default"], "dash": "dash"} if is_default else {"color": SERIES[(place + 1) % len(SERIES)]}
            name = f"{trial}: {escape(analysis.named(record.configuration, 120))}"
            figure.add_trace(go.Scatter(x=x, y=y, mode="lines+markers", name=name, line=style))
    if not figure.data:
        return None
    across = "step" if "step" in keys else keys[0] if len(keys) == 1 else "load level"
    figure.update_layout(title=axis(metric), xaxis_title=across, yaxis_title=axis(metric), height=480)
    return _styled(figure).update_layout(legend={"yanchor": "top", "y": -0.2, "x": 0}, showlegend=True)


def effects(found: Sequence[Effect]) -> go.Figure | None:
    """The share of each objective's variance that each parameter explains; None without any."""
    if not found:
        return None
    figure = go.Figure()
    for place, objective in enumerate(dict.fromkeys(effect.objective for effect in found)):
        mine = [effect for effect in found if effect.objective == objective]
        texts = [escape(redact(", ".join(f"{label}: {value:.4g}" for label, value in one.means.items()))) for one in mine]
        bars = {"x": [effect.share for effect in mine], "y": [effect.parameter for effect in mine], "hovertext": texts}
        figure.add_trace(go.Bar(**bars, orientation="h", name=objective, marker_color=SERIES[place % len(SERIES)]))
    figure.update_layout(title="What the objectives depend on", xaxis_title="share of variance explained (epsilon squared)")
    figure.update_xaxes(range=[0, 1])
    figure.update_yaxes(autorange="reversed")
    return _styled(figure)


def seconds(analysis: Analysis) -> go.Figure | None:
    """Where each trial's wall time went, by phase; None when nothing was timed."""
    spent = [(record, record.phases) for record in analysis.records]
    figure = go.Figure()
    for place, phase in enumerate(dict.fromkeys(phase for _, split in spent for phase in split)):
        mine = [(record, split[phase]) for record, split in spent if phase in split]
        x, y = [record.number for record, _ in mine], [seconds for _, seconds in mine]
        hover = [f"trial {record.number}: {analysis.outcome(record)}" for record, _ in mine]
        figure.add_trace(go.Bar(x=x, y=y, name=phase, hovertext=hover, marker_color=SERIES[place % len(SERIES)]))
    if not figure.data:
        return None
    figure.update_layout(barmode="stack", title="Seconds of each trial by phase", xaxis_title="trial", yaxis_title="s")
    return _styled(figure)


def hypervolume(analysis: Analysis) -> go.Figure | None:
    """Hypervolume after each trial; None when nothing feasible was measured."""
    try:
        volume = analysis.hypervolume()
    except NothingMeasured:
        return None
    figure = go.Figure(go.Scatter(x=list(volume.values), y=list(volume.values.values()), line={"shape": "hv"}, name="hypervolume"))
    pairs = zip(analysis.objective_names, volume.reference.values, strict=True)
    place = ", ".join(f"{name} = {value:.4g}" for name, value in pairs)
    figure.update_layout(title=f"Hypervolume of the front, from {place}", xaxis_title="trial", yaxis_title="hypervolume")
    return _styled(figure)


def panels(analysis: Analysis, metrics: Sequence[str]) -> go.Figure:
    """A panel per metric over the measured trials, the default's value as a line; one that no trial measured says so."""
    height = -(-len(metrics) // 2)
    figure = make_subplots(rows=height, cols=2, subplot_titles=[axis(metric) for metric in metrics])
    for place, metric in enumerate(metrics):
        at = {"row": place // 2 + 1, "col": place % 2 + 1}
        objective, default = analysis.objective(metric), analysis.default_candidate
        known = [one for one in analysis.candidates if one.samples(objective)]
        if not known:
            # Without a trace the panel has no axes for a note to stand in.
            figure.add_trace(go.Scatter(x=[None], y=[None], showlegend=False), **at)
            figure.add_annotation(text="not measured in this study", showarrow=False, x=0.5, y=0.5, **at)
            figure.update_xaxes(visible=False, **at).update_yaxes(visible=False, **at)
            continue
        figure.add_trace(_bars(analysis, known, objective), **at)
        if default in known:
            base = analysis.mean(default, objective)
            figure.add_hline(y=base, line_dash="dash", line_color=COLOURS["default"], **at)
    figure.update_xaxes(title_text="trial")
    figure.update_layout(height=340 * height, title="Each measured configuration; dashed: the engine's default")
    return _styled(figure).update_layout(margin_t=90)


def axis(name: str) -> str:
    """A metric's name with its unit."""
    try:
        unit = lookup(name.split(" @")[0]).unit
    except KeyError:
        return name
    return f"{name} [{unit}]"


def _marked(analysis: Analysis) -> dict[str, list[Candidate]]:
    groups: dict[str, list[Candidate]] = {mark: [] for mark in ("infeasible", "beaten", "contender", "member", "default")}
    for one in analysis.candidates:
        groups[_mark(analysis, one)].append(one)
    return {mark: group for mark, group in groups.items() if group}


def _bars(analysis: Analysis, known: Sequence[Candidate], objective: Objective) -> go.Bar:
    return go.Bar(
        x=[str(one.trial) for one in known],
        y=[analysis.mean(one, objective) for one in known],
        marker_color=[COLOURS[_mark(analysis, one)] for one in known],
        hovertext=[_hover(analysis, one) for one in known],
        hoverinfo="text+y",
        showlegend=False,
    )


def _mark(analysis: Analysis, one: Candidate) -> str:
    if one is analysis.default_candidate:
        return "default"
    return analysis.membership.get(one.trial, "beaten") if one.feasible else "infeasible"


def _points(analysis: Analysis, mark: str, group: Sequence[Candidate], across: Objective | None, up: Objective) -> go.Scatter:
    style = {"color": COLOURS[mark], "size": 14 if mark == "default" else 9, "symbol": "star" if mark == "default" else "circle"}
    return go.Scatter(
        x=[_middle(analysis, one, across) for one in group],
        y=[_middle(analysis, one, up) for one in group],
        error_x=_errors(analysis, group, across, COLOURS[mark]),
        error_y=_errors(analysis, group, up, COLOURS[mark]),
        mode="markers",
        name=NAMES[mark],
        marker=style,
        hovertext=[_hover(analysis, one) for one in group],
        hoverinfo="text",
    )


def _middle(analysis: Analysis, one: Candidate, objective: Objective | None) -> float:
    if objective is None:
        return one.trial
    return analysis.point(one)[analysis.study.objectives.index(objective)]


def _errors(analysis: Analysis, group: Sequence[Candidate], objective: Objective | None, colour: str) -> dict[str, Any] | None:
    if objective is None or analysis.noise(objective) is None:
        return None
    index = analysis.study.objectives.index(objective)
    cells = [analysis.interval_point(one)[index] for one in group]
    up, down = [cell.high - cell.estimate for cell in cells], [cell.estimate - cell.low for cell in cells]
    return {"type": "data", "array": up, "arrayminus": down, "color": colour, "thickness": 1}


def _hover(analysis: Analysis, one: Candidate) -> str:
    lines = [f"<b>trial {one.trial}</b>, measured {len(one.records)} time{'' if len(one.records) == 1 else 's'}"]
    lines += [f"{name}: {value:.5g}" for name, value in zip(analysis.objective_names, analysis.point(one), strict=True)]
    values = one.records[0].configuration.values
    lines += [escape(redact(f"{name} = {value}")) for name, value in values.items()] or ["engine's default"]
    return "<br>".join(lines)


def _front_line(figure: go.Figure, analysis: Analysis, across: Objective | None, up: Objective) -> None:
    members = [analysis.feasible[index] for index in analysis.noisy_front.members]
    if across is None or len(analysis.study.objectives) != 2 or len(members) < 2:
        return
    corners = sorted((_middle(analysis, one, across), _middle(analysis, one, up)) for one in members)
    # A step that never runs over ground nobody measured: between two members only the worse of both is certain.
    shape = "vh" if across.direction == "maximize" else "hv"
    x, y = [corner[0] for corner in corners], [corner[1] for corner in corners]
    line = {"shape": shape, "color": COLOURS["member"], "width": 1}
    figure.add_trace(go.Scatter(x=x, y=y, mode="lines", line=line, showlegend=False, hoverinfo="skip"))


def _rows(record: TrialRecord) -> Sequence[Row]:
    return record.measurement.rows if record.measurement else ()


def _line(rows: Sequence[Row], metric: str, keys: Sequence[str]) -> tuple[list[Any], list[float | None]]:
    """A line's points. Steps of several seeds are several lines with a gap between; levels of several kinds are names; those of
    one kind stand by their size, however they were visited: a climb goes up and back, and so would its line."""
    if len(keys) == 1 and all(isinstance(row.level.get(keys[0]), int | float) for row in rows):
        rows = sorted(rows, key=lambda row: float(row.level[keys[0]] or 0))
    x: list[Any] = []
    y: list[float | None] = []
    before: Any = None
    for row in rows:
        if "step" in keys:
            group = {key: value for key, value in row.level.items() if key != "step"}
            if x and group != before:
                x.append(None)
                y.append(None)
            before = group
            x.append(row.level.get("step"))
        else:
            x.append(
                row.level.get(keys[0])
                if len(keys) == 1
                else ", ".join(f"{key} {_plain(value)}" for key, value in row.level.items())
            )
        y.append(row.metrics[metric])
    return x, y


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _styled(figure: go.Figure) -> go.Figure:
    font = {"family": "system-ui, sans-serif", "size": 13}
    figure.update_layout(template="plotly_white", font=font, margin={"l": 70, "r": 20, "t": 50, "b": 55}, hovermode="closest")
    return figure
