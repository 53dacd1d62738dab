"""The report of a study: one HTML page that needs nothing else.

It leads with the gain over the engine's default and its uncertainty, then the front, why the losers lost, the load curves,
what the objectives depend on, and where the time went.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from autotune import effects, figures, finalists, tables
from autotune.analysis import Analysis
from autotune.errors import AutotuneError
from autotune.results import StudyResults
from autotune.secrets import redact
from autotune.tables import Rows

SMALL_STUDY = 30
"""Below this many measured configurations, parameter effects are a hint (they are with more, but less so)."""
CURVES = ("sps", "output_tokens_per_s", "ttft_ms.p99", "tpot_ms.mean", "reward", "kl", "validity_rate", "step_s")
"""Drawn where they were measured, after the study's own objectives and constraints."""
CURVES_DRAWN = 7
"""Members of the front in one figure; more lines could not be told apart."""


def chosen(analysis: Analysis) -> list[int]:
    """The trials worth drawing: the default and CURVES_DRAWN members of the front, from one end of it to the other."""
    default = [analysis.default_candidate.trial] if analysis.default_candidate else []
    return list(dict.fromkeys([*default, *(one.trial for one in analysis.along_front(CURVES_DRAWN))]))


def all_figures(analysis: Analysis) -> list[go.Figure]:
    """The figures of the page that have something to show, in order."""
    metrics = [objective.selector.metric for objective in analysis.study.objectives]
    metrics += [constraint.selector.metric for constraint in analysis.study.constraints]
    curves = [figures.load_curves(analysis, metric, chosen(analysis)) for metric in dict.fromkeys([*metrics, *CURVES])]
    found = effects.effects(analysis)
    made = [figures.front(analysis), *curves, figures.effects(found), figures.hypervolume(analysis), figures.seconds(analysis)]
    return [figure for figure in made if figure is not None]


def page(found: StudyResults) -> str:
    """The whole report as HTML, plotly's own script included."""
    drawn = all_figures(found) if found.candidates else []
    first, rest = _drawn(drawn[:1]), _drawn(drawn[1:])
    body = [f"<h1>{_safe(found.name)}</h1>", _paragraphs(_introduction(found)), "<h2>Gain over the engine's default</h2>"]
    body += [
        _list(tables.gain_lines(found)),
        _paragraphs(_verdicts(found)),
        first,
        _table(tables.front_rows(found)),
        _paragraphs(_reading_the_front(found)),
    ]
    body += [
        _table(tables.losers(found)),
        _table(_cuts(found)),
        _table(tables.finding_rows(found, chosen(found))),
        rest,
        _paragraphs(_on_effects(found)),
        _table(tables.effect_rows(found)),
    ]
    body += [_table(tables.health_rows(found, trial)) for trial in chosen(found)[:3]]
    body += [_table(tables.trial_rows(found))]
    return _PAGE.format(title=_safe(found.name), script=_script(), body="\n".join(part for part in body if part))


def write_page(found: StudyResults, path: Path) -> None:
    """Write the report. Raises AutotuneError when the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page(found), encoding="utf-8")
    except OSError as error:
        raise AutotuneError(f"Cannot write the report to {path}: {error.strerror}.") from error


def _introduction(found: StudyResults) -> list[str]:
    scored = sum(found.score(record) is not None for record in found.records)
    lines = [found.study.about, f"{len(found.records)} trials, {scored} of them with everything that the objectives need."]
    for note in found.notes:
        if note.kind == "engines":
            identities = note.payload.values()
            lines += [f"Engine {one.get('kind')} {one.get('version')} on {one.get('device')}." for one in identities]
    bounds = "; ".join(constraint.name for constraint in found.study.constraints) or "none"
    lines.append(f"Objectives: {'; '.join(f'{o.direction} {o.name}' for o in found.study.objectives)}. Constraints: {bounds}.")
    return list(dict.fromkeys(line for line in lines if line))


def _verdicts(found: StudyResults) -> list[str]:
    """The winner, and what the finalists' rounds said, as the last plan of them is noted in the ledger."""
    won = finalists.on_winner(found)
    return [*([won] if won else []), *(str(verdict) for verdict in finalists.verdicts(found, *finalists.planned(found.notes)))]


def _cuts(found: StudyResults) -> Rows:
    """What was cut before a launch, by rule, with one reason of each."""
    groups: dict[str, list[str]] = {}
    for note in found.notes:
        if note.kind == "cut":
            groups.setdefault(str(note.payload.get("rule")), []).append(str(note.payload.get("reason")))
    cells = tuple((rule, len(reasons), reasons[0]) for rule, reasons in groups.items())
    return Rows("Cut before a launch", ("rule", "configurations", "for instance"), cells)


def _reading_the_front(found: StudyResults) -> list[str]:
    if all(found.noise(objective) is None for objective in found.study.objectives):
        return ["Nothing was measured twice, so noise is unknown: read small differences as none."]
    return [
        "Intervals are 95 %, from the run-to-run noise pooled over every configuration that was measured more than once. "
        "A contender is beaten by value, but not beyond noise; tied trials overlap in every objective."
    ]


def _on_effects(found: StudyResults) -> list[str]:
    if len(found.candidates) >= SMALL_STUDY:
        return ["The share of variance looks at one parameter at a time and cannot see interactions."]
    return [f"With {len(found.candidates)} measured configurations the shares below are a hint, not a finding."]


def _drawn(made: Iterable[go.Figure]) -> str:
    return "\n".join(figures.page_of(figure, script=False) for figure in made)


def _table(rows: Rows) -> str:
    if not rows.cells:
        return ""
    head = "".join(f"<th>{_safe(column)}</th>" for column in rows.columns)
    body = "".join("<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>\n" for row in rows.cells)
    return (
        f"<h2>{_safe(rows.title)}</h2><div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(value: Any) -> str:
    if value is None or value != value:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else _safe(str(value))


def _paragraphs(lines: Iterable[str]) -> str:
    return "".join(f"<p>{_safe(line)}</p>" for line in lines)


def _list(lines: Iterable[str]) -> str:
    return "<ul class='gain'>" + "".join(f"<li>{_safe(line)}</li>" for line in lines) + "</ul>"


def _safe(text: str) -> str:
    return html.escape(redact(text))


def _script() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>autotune: {title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #202124; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.6rem; }} h2 {{ font-size: 1.15rem; margin-top: 2rem; }}
ul.gain {{ font-size: 1.1rem; padding-left: 1.2rem; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; padding: 0.3rem 0.7rem; border-bottom: 1px solid #e0e0e0; vertical-align: top; }}
th {{ border-bottom: 2px solid #9aa0a6; }}
</style><script>{script}</script></head><body>
{body}
</body></html>
"""
