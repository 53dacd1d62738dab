"""Where the seconds of a study's trials went, by how their engine was launched.

    python benchmarks/phases.py STUDY_FOLDER [STUDY_FOLDER ...] [--out FILE]

Trials are put together that started alike: with the engine's process forked or not, in an interpreter that had imported
ahead or not, with a compile cache that held their shapes or not. Each row is the median of its trials, in seconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median

from autotune import results
from autotune.trial import TrialRecord

How = tuple[str, str, str, str]
"""Study, how the engine's process began, where the imports happened, compile cache."""


def how(study: str, record: TrialRecord) -> How:
    """How a trial's engine was launched, as its record tells."""
    measurement = record.measurement
    told = measurement.facts.get("start") if measurement is not None else None
    facts = told if isinstance(told, Mapping) else {}
    process = "forked" if record.environment.get("AUTOTUNE_FORK") == "1" else "spawned"
    return study, process, "ahead" if facts.get("standby") else "in the launch", str(facts.get("compile_cache", "unknown"))


def grouped(studies: Iterable[tuple[str, Iterable[TrialRecord]]]) -> dict[How, list[Mapping[str, float]]]:
    """Seconds by phase of every measured trial, by how it was launched; slowest start first."""
    found: dict[How, list[Mapping[str, float]]] = {}
    for name, records in studies:
        for record in records:
            if record.measurement is not None:
                found.setdefault(how(name, record), []).append(record.seconds)
    return dict(sorted(found.items(), key=lambda item: -median(one["start"] for one in item[1])))


def table(groups: Mapping[How, Sequence[Mapping[str, float]]]) -> str:
    """The groups as Markdown; a phase that no trial of a group tells is left empty."""
    phases = list(dict.fromkeys(name for group in groups.values() for one in group for name in one if name.startswith("start.")))
    columns = [*phases, "start", "measure", "stop"]
    head = [
        "study",
        "process",
        "imports",
        "compile cache",
        "trials",
        *(name.removeprefix("start.") for name in columns),
        "measuring",
    ]
    lines = ["| " + " | ".join(head) + " |", "|---" * 5 + "|---:" * (len(head) - 5) + "|"]
    for launched, group in groups.items():
        middle = [median(known) if (known := [one[name] for one in group if name in one]) else None for name in columns]
        share = median(one["measure"] / sum(one[name] for name in ("start", "measure", "stop")) for one in group)
        cells = [*launched, str(len(group)), *("" if value is None else f"{value:.1f}" for value in middle), f"{share:.0%}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    text = table(grouped((folder.name, results.read(folder).records) for folder in arguments.folders))
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
