"""What the terminal shows: tables of a study and the progress of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from autotune import finalists, ledger, results, tables
from autotune.doctor import Finding
from autotune.errors import AutotuneError, NothingMeasured
from autotune.preview import Preview
from autotune.results import StudyResults
from autotune.run import Finished
from autotune.score import level_name
from autotune.terminal import Plain, clean
from autotune.trial import Configuration, TrialRecord

console = Plain() if Plain().is_terminal else Plain(width=200)
"""Wide enough for a table when the output goes to a file or a pipe, which have no width of their own."""


def number(value: Any) -> str:
    """A measured value for a table; absent is a dash, never a zero."""
    if value is None or value != value:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def overrides(configuration: Configuration) -> str:
    """What a configuration changes against the engine's default."""
    return ", ".join(f"{name}={value}" for name, value in configuration.values.items()) or "the engine's default"


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """A plain table; cells are escaped, so that a log line cannot style the terminal."""
    made = Table(title=escape(clean(title)), title_justify="left", box=None, pad_edge=False, show_edge=False)
    for index, column in enumerate(columns):
        made.add_column(escape(clean(column)), overflow="fold", justify="left" if index in (0, len(columns) - 1) else "right")
    for row in rows:
        made.add_row(*(escape(clean(number(cell))) for cell in row))
    return made


def print_preview(shown: Preview) -> None:
    """`autotune check`."""
    for kind, identity in shown.identities.items():
        console.print(f"Engine {kind} {identity.version} on {identity.device}, {identity.python}")
    console.print(
        f"Objectives: {'; '.join(shown.objectives)}. Constraints: {'; '.join(shown.constraints) or 'none'}.", markup=False
    )
    levels = [", ".join(f"{name}={number(value)}" for name, value in level.items()) for level in shown.levels]
    found = ["a rate that a climb finds"] if shown.climbs else []
    console.print(f"Load levels: {'; '.join([*levels, *found]) or 'found by the workload'}", markup=False)
    columns = ("parameter", "canonical", "values", "default here", "engine")
    rows = [(line.name, line.canonical, line.values, line.default, line.engine) for line in shown.parameters]
    console.print(table("\nSearch space", columns, rows))
    for rule in shown.rules:
        console.print(f"  forbidden: {rule}", markup=False)
    for index, trial in enumerate(shown.first):
        told = f": {overrides(trial.configuration)}" if trial.configuration.values else ""
        console.print(f"\nTrial {index} ({trial.configuration.engine}), {trial.why}{told}", markup=False)
        if trial.command:
            console.print(
                "  " + " ".join([*(f"{k}={v}" for k, v in trial.environment.items()), trial.command]), markup=False, soft_wrap=True
            )
    _print_expected(shown)
    if shown.ends_early:
        console.print(shown.ends_early, markup=False)
    for warning in shown.warnings:
        console.print(f"Note: {warning}", markup=False)


def _print_expected(shown: Preview) -> None:
    expected = shown.expected
    limit = f", stopped at {expected.limit_gpu_minutes:g} GPU-minutes" if expected.limit_gpu_minutes else ""
    limit += f", which buy about {expected.affordable} trials of the search" if expected.affordable is not None else ""
    if expected.minutes is None:
        cost = f"each measuring up to {expected.workload_seconds:.0f} s plus the engine's start, which the first trial will tell"
    else:
        pace = f"{expected.at_once} at a time" if expected.at_once > 1 else "one after the other"
        cost = f"about {expected.seconds_per_trial:.0f} s each, {expected.minutes:.0f} minutes in all {pace}"
    finals = f", {expected.finals} of them to measure the finalists again beside the default" if expected.finals else ""
    console.print(f"\nThe study runs up to {expected.trials} trials{finals}; {cost}{limit}.")


def print_finished(finished: Finished) -> None:
    """The end of `autotune run`."""
    console.print(f"\n{finished.reason}", markup=False)
    print_study(finished.results)
    for verdict in finished.verdicts:
        console.print(str(verdict), markup=False)
    for written in finished.exports:
        console.print(
            f"Exported trial {written.trial}: {', '.join(map(str, written.files))}. {written.proof}", markup=False, soft_wrap=True
        )
    for sentence in finished.tracking:
        console.print(sentence, markup=False, soft_wrap=True)
    if not finished.results.candidates:
        raise NothingMeasured("No trial was measured; the table above says why each one failed.")


def finished_json(finished: Finished) -> dict[str, Any]:
    """`autotune run --json`."""
    files = [{"trial": one.trial, "files": [str(path) for path in one.files], "proof": one.proof} for one in finished.exports]
    return {
        **study_json(finished.results),
        "reason": finished.reason,
        "verdicts": [one.model_dump() for one in finished.verdicts],
        "exports": files,
        "tracking": list(finished.tracking),
    }


def list_rows(store: Path) -> list[dict[str, Any]]:
    """One row a study of the store: name, trials, measured, failed, the gain in the first objective."""
    rows: list[dict[str, Any]] = []
    for folder in ledger.studies(store):
        try:
            found = results.read(folder)
        except AutotuneError as error:
            rows.append(
                {"study": folder.name, "trials": None, "measured": None, "on front": None, "gain": f"cannot be read: {error}"}
            )
            continue
        measured = sum(found.failure(record) is None for record in found.records)
        gained = tables.gain_lines(found)[:1] if found.candidates else ["nothing measured"]
        members = sum(mark == "member" for mark in found.membership.values())
        rows.append(
            {"study": found.name, "trials": len(found.records), "measured": measured, "on front": members, "gain": gained[0]}
        )
    return rows


def print_study(found: StudyResults) -> None:
    """`autotune show`: the gain and the winner first, then the front, every trial, and why the losers lost."""
    won = finalists.on_winner(found)
    for line in [*tables.gain_lines(found), *([won] if won else [])]:
        console.print(line, markup=False)
    for rows in (tables.front_rows(found), tables.trial_rows(found), tables.losers(found)):
        if rows.cells:
            console.print(table(f"\n{rows.title}", rows.columns, rows.cells))


def _engine(found: StudyResults, record: TrialRecord) -> str:
    """The trial's engine, where the study has several."""
    return f"{record.configuration.engine}: " if len(found.study.engine) > 1 else ""


def print_trial(found: StudyResults, record: TrialRecord) -> None:
    """`autotune show --trial`."""
    console.print(
        f"Trial {record.number} ({record.origin}): {found.outcome(record)}. {_engine(found, record)}"
        f"{overrides(record.configuration)}",
        markup=False,
    )
    if (failed := found.failure(record)) is not None:
        console.print(f"Failed during {failed.phase}. {failed.advice}", markup=False)
        for line in failed.evidence:
            console.print(f"  {line}", markup=False, soft_wrap=True)
    if record.measurement is not None:
        _print_rows(record)
        console.print(table("\nWhole trial", ("metric", "value"), sorted(record.measurement.totals.items())))
        if check := found.quality.check(record.configuration):
            console.print(f"\n{check}", markup=False)
    console.print(table("\nSeconds", ("phase", "s"), record.seconds.items()))
    if record.effective:
        console.print(table("\nEffective configuration", ("parameter", "value"), sorted(record.effective.items())))
    if record.command:
        console.print("\nCommand: " + " ".join(record.command), markup=False, soft_wrap=True)
    if record.folder:
        console.print(
            f"Logs: {(found.folder or '.')}/{record.folder}" if not record.folder.startswith("/") else f"Logs: {record.folder}",
            markup=False,
        )


def _print_rows(record: TrialRecord) -> None:
    assert record.measurement is not None
    rows = record.measurement.rows
    names = sorted({name for row in rows for name in row.metrics})
    labels = [level_name(row) for row in rows]
    if len(rows) > 8:
        console.print(f"{len(rows)} rows; --json shows them all.")
    shown = rows[-8:]
    console.print(
        table("\nMeasured", ("metric", *labels[-8:]), [(name, *(row.metrics.get(name) for row in shown)) for name in names])
    )
    windows = tables.window_rows(record)
    if windows.cells:
        console.print(table(f"\n{windows.title}", windows.columns, windows.cells))


def study_json(found: StudyResults) -> dict[str, Any]:
    """`autotune show --json`."""
    return {
        "study": found.name,
        "objectives": list(found.objective_names),
        "default_trial": None if found.default_candidate is None else found.default_candidate.trial,
        "gain": tables.gain_lines(found),
        "quality": [check.model_dump() for check in found.quality.checks],
        "front": [
            {"trial": one.trial, "front": found.membership[one.trial]} for one in found.feasible if one.trial in found.membership
        ],
        "trials": [record.model_dump(mode="json") for record in found.records],
    }


def print_list(rows: Sequence[Mapping[str, Any]], store: Any) -> None:
    """`autotune list`."""
    if not rows:
        console.print(f"The store {store} holds no study yet.", markup=False)
        return
    console.print(table("Studies", tuple(rows[0]), [tuple(row.values()) for row in rows]))


def print_findings(findings: Sequence[Finding]) -> None:
    """`autotune doctor`."""
    for finding in findings:
        console.print(f"{'ok  ' if finding.usable else 'none'} {finding.room:8} {finding.name:12} {finding.detail}", markup=False)
        if finding.remedy:
            console.print(f"     → {finding.remedy}", markup=False)
