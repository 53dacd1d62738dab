#!/usr/bin/env python3
"""Keep a finished study as a small folder that everything can be read from again, with a page that shows it.

    python scripts/keep_result.py .autotune/NAME studies/results/NAME --command "autotune run studies/NAME.yaml"

The folder gets study.yaml, ledger.jsonl, front.svg and README.md. Of the ledger, numbers keep six digits and the folders of this
machine are shortened to their names; nothing else is changed. What a result means is for its owner to add to the page.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from autotune import figures, finalists, ledger, results, tables
from autotune.results import StudyResults
from autotune.trial import TrialJob

WIDTH, HEIGHT, EDGE = 720, 420, 60


def rounded(value: Any, shorten: Sequence[str]) -> Any:
    """Six digits of every number, and paths without the folders of this machine."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if abs(value) < 1e9 else value
    if isinstance(value, dict):
        return {key: rounded(one, shorten) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one, shorten) for one in value]
    if isinstance(value, str):
        for prefix in shorten:
            value = value.replace(prefix, "")
        return re.sub(r"/tmp/autotune-[\w-]+/[\w-]+", "SCRATCH", value)
    return value


def markdown(rows: tables.Rows) -> list[str]:
    def text(cell: object) -> str:
        return "" if cell is None else f"{cell:.5g}" if isinstance(cell, float) else str(cell).replace("|", "\\|")

    head = ["| " + " | ".join(rows.columns) + " |", "|---" * len(rows.columns) + "|"]
    return [*head, *("| " + " | ".join(map(text, row)) + " |" for row in rows.cells)]


def svg(found: StudyResults) -> str:
    """All measured configurations over the two first objectives, in the colours of the report; numbers are trials."""
    up, across = found.study.objectives[0], found.study.objectives[1]
    xs, ys = ([found.mean(one, objective) for one in found.candidates] for objective in (across, up))

    def place(value: float, values: Sequence[float], size: int) -> float:
        low, high = min(values), max(values)
        return EDGE + (value - low) / ((high - low) or 1.0) * (size - 2 * EDGE)

    def drawn() -> Iterator[str]:
        yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">'
        yield f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
        yield f'<path d="M{EDGE - 20} 20V{HEIGHT - EDGE + 20}H{WIDTH - 20}" fill="none" stroke="#888"/>'
        yield f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">{figures.axis(across.name)}</text>'
        yield f'<text transform="translate(14 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">{figures.axis(up.name)}</text>'
        for share in (0.0, 0.5, 1.0):
            x, y = min(xs) + share * (max(xs) - min(xs)), min(ys) + share * (max(ys) - min(ys))
            yield f'<text x="{place(x, xs, WIDTH):.0f}" y="{HEIGHT - 25}" text-anchor="middle" fill="#666">{x:.3g}</text>'
            yield f'<text x="{EDGE - 24}" y="{HEIGHT - place(y, ys, HEIGHT) + 4:.0f}" text-anchor="end" fill="#666">{y:.3g}</text>'
        for one, x, y in zip(found.candidates, xs, ys, strict=True):
            mark = "default" if one is found.default_candidate else found.membership.get(one.trial, "beaten")
            left, top = place(x, xs, WIDTH), HEIGHT - place(y, ys, HEIGHT)
            yield f'<circle cx="{left:.0f}" cy="{top:.0f}" r="5" fill="{figures.COLOURS[mark]}"/>'
            yield f'<text x="{left + 8:.0f}" y="{top + 4:.0f}">{one.trial}</text>'
        for index, mark in enumerate(("member", "contender", "beaten", "default")):
            yield f'<circle cx="{EDGE + 150 * index}" cy="12" r="5" fill="{figures.COLOURS[mark]}"/>'
            yield f'<text x="{EDGE + 150 * index + 9}" y="16">{figures.NAMES[mark]}</text>'
        yield "</svg>"

    return "\n".join(drawn()) + "\n"


def page(found: StudyResults, command: str) -> str:
    engines = [note.payload for note in found.notes if note.kind == "engines"]
    jobs = [TrialJob.model_validate(job) for note in found.notes if note.kind == "finalists" for job in note.payload["jobs"]]
    said = [f"- {line}" for line in (*tables.gain_lines(found), *finalists.verdicts(found, jobs))]
    versions = [
        f"{name} {one['version']} on {one['device']}, Python {one['python']}, "
        + ", ".join(f"{package} {version}" for package, version in one["packages"].items() if package != name)
        for name, one in engines[-1].items()
    ]
    started = datetime.datetime.fromtimestamp(found.records[0].started_at or 0, datetime.UTC).date()
    lines = [f"# {found.name}", "", f"{started}; {'; '.join(versions)}.", "", found.study.about, "", f"    {command}", ""]
    lines += ["![front](front.svg)", "", *said, ""]
    for rows in (tables.front_rows(found), tables.trial_rows(found), tables.losers(found)):
        lines += [f"## {rows.title}", "", *markdown(rows), ""]
    lines += ["`ledger.jsonl` is the study's own ledger, its numbers to six digits and its paths shortened.", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="the study's folder in its store")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--command", required=True)
    parser.add_argument("--shorten", nargs="*", default=[], metavar="PREFIX", help="what to cut from the front of paths")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    shorten = [*given.shorten, f"{given.study.resolve().parent}/", f"{Path.cwd()}/"]
    with (given.study / ledger.FILE).open() as source, (given.folder / ledger.FILE).open("w") as kept:
        kept.writelines(json.dumps(rounded(json.loads(line), shorten), separators=(",", ":")) + "\n" for line in source)
    shutil.copy(given.study / ledger.STUDY, given.folder / ledger.STUDY)
    found = results.read(given.folder)
    (given.folder / "front.svg").write_text(svg(found))
    (given.folder / "README.md").write_text(page(found, given.command))


if __name__ == "__main__":
    main()
