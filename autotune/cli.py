"""The command line: parses and prints, decides nothing.

Exit codes: 0 done; 1 the study ended and nothing was measured; 2 the study or the command line is wrong; 3 a package,
engine or GPU is missing; 4 another driver holds the study; 5 the store cannot be written; 6 the machine failed trial after
trial; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from autotune.errors import AutotuneError, Interrupted, InvalidInput, Mistake
from autotune.terminal import ReaderGone, clean, write_json

_EXIT_CODES = (__doc__ or "").partition("\n\n")[2]

app = typer.Typer(
    name="autotune",
    help=f"Finds the best configuration of an LLM serving engine or RL training run by running the real thing.\n\n{_EXIT_CODES}",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _in_use(store: Path) -> Path:
    """What is asked of an engine before a trial is kept in the same store, wherever that is asked from."""
    os.environ["AUTOTUNE_STORE"] = str(store.resolve())
    return store


StoreOption = Annotated[
    Path,
    typer.Option(
        "--store",
        envvar="AUTOTUNE_STORE",
        help="Folder that holds all studies.",
        show_default=True,
        file_okay=False,
        callback=_in_use,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
StudyFile = Annotated[Path, typer.Argument(help="A study.yaml file.", metavar="STUDY.YAML")]
StudyName = Annotated[str, typer.Argument(help="The study's name, or its study.yaml.", metavar="STUDY")]
STORE = Path(".autotune")


def main() -> None:
    """Run the command line; problems a user can act on are one message and an exit code, never a traceback."""
    try:
        app()
    except AutotuneError as error:
        _report(error)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        _report(Interrupted("Interrupted; run it again to continue."))
        raise SystemExit(Interrupted.exit_code) from None
    except (ReaderGone, BrokenPipeError):
        # The reader of our output went away (`autotune list | head`); there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None


def _report(error: AutotuneError) -> None:
    if "--json" in sys.argv:
        mistakes = [vars_of(mistake) for mistake in error.mistakes] if isinstance(error, InvalidInput) else []
        write_json({"error": str(error), "kind": type(error).__name__, "mistakes": mistakes})
    else:
        typer.secho(clean(str(error)), fg="red", err=True)


def vars_of(value: Any) -> dict[str, Any]:
    """The fields of a slotted dataclass."""
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


@app.command()
def run(
    study: StudyFile,
    store: StoreOption = STORE,
    fresh: Annotated[bool, typer.Option("--fresh", help="Set aside what an earlier run measured and start anew.")] = False,
    cold: Annotated[bool, typer.Option("--cold", help="Do not start from the fronts of related studies.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a study, or continue an interrupted one. Ctrl-C once finishes the running trial, twice ends now.

    Example: autotune run studies/quickstart.yaml
    """
    from autotune import live, plan, run, view

    made = plan.confirm(plan.read(study, store))
    goals = tuple(objective.name for objective in made.study.objectives)
    bounds = tuple(constraint.name for constraint in made.study.constraints)
    reporter: live.Reporter = live.Silent() if as_json else live.Live(made.study.name, goals, bounds)
    finished = run.run(made, fresh=fresh, cold=cold, reporter=reporter)
    if as_json:
        write_json(view.finished_json(finished))
    else:
        view.print_finished(finished)


@app.command()
def check(
    study: StudyFile,
    store: StoreOption = STORE,
    offline: Annotated[bool, typer.Option("--offline", help="Check the file alone; ask no installed engine.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say everything that can be known before a GPU second is spent: mistakes, command lines, first trials, cost.

    Example: autotune check studies/quickstart.yaml
    """
    from autotune import plan, preview, view

    made = plan.read(study, store)
    if not offline:
        made = plan.confirm(made)
    shown = preview.preview(made)
    write_json(shown.model_dump(mode="json")) if as_json else view.print_preview(shown)


@app.command()
def show(
    study: StudyName,
    store: StoreOption = STORE,
    trial: Annotated[int | None, typer.Option("--trial", help="Show one trial in full.")] = None,
    page: Annotated[Path | None, typer.Option("--page", help="Write the report as one HTML page to this file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show a study: the gain over the default, the front, every trial, and why the losers lost.

    Example: autotune show quickstart --trial 3
    """
    from autotune import results, view

    found = results.load(name_of(study), store)
    if page is not None:
        from autotune import report

        report.write_page(found, page)
        typer.echo(f"The report was written to {page}.", err=as_json)
    if trial is not None:
        record = found.record(trial)
        write_json(record.model_dump(mode="json")) if as_json else view.print_trial(found, record)
    else:
        write_json(view.study_json(found)) if as_json else view.print_study(found)


@app.command(name="list")
def list_studies(store: StoreOption = STORE, as_json: JsonOption = False) -> None:
    """List the studies of a store.

    Example: autotune list --json
    """
    from autotune import view

    rows = view.list_rows(store)
    write_json(rows) if as_json else view.print_list(rows, store)


@app.command()
def export(
    study: StudyName,
    to: Annotated[str, typer.Option("--to", help="The format: shell, vllm_yaml, compose, kubernetes, ...")],
    store: StoreOption = STORE,
    trial: Annotated[int | None, typer.Option("--trial", help="Export this trial.")] = None,
    pick: Annotated[str | None, typer.Option("--pick", help="winner (the default), or knee or best:METRIC of the front.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to write to; the study's own export folder if not given.")
    ] = None,
    prove: Annotated[bool, typer.Option("--prove/--no-prove", help="Have the target's own parser read the files.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Turn a measured trial into files that launch it.

    Example: autotune export quickstart --pick best:output_tokens_per_s --to vllm_yaml
    """
    from autotune import export, results

    if trial is not None and pick is not None:
        raise InvalidInput([Mistake("--pick", "Both --trial and --pick say which trial to export; give one of them.")])
    found = results.load(name_of(study), store)
    written = export.export(found, to, store=store, trial=trial, pick=pick or "winner", out=out, prove=prove)
    if as_json:
        write_json({"trial": written.trial, "files": [str(path) for path in written.files], "proof": written.proof})
        return
    for path in written.files:
        typer.echo(str(path))
    typer.echo(written.proof, err=True)


@app.command()
def ui(store: StoreOption = STORE, port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 5000) -> None:
    """Open MLflow on the store's own tracking database, on this machine only.

    Example: autotune ui --port 5001
    """
    from autotune import ledger, ports, tracking
    from autotune.errors import NotFound

    if not ledger.studies(store) and not (store / "mlflow.db").exists():
        raise NotFound(f"The store {store} holds no study yet.")
    if ports.listener_inodes(port):
        # MLflow itself would say so among its own lines, and start its worker again and again.
        raise AutotuneError(f"The port {port} is in use; choose another one with --port.")
    command = tracking.ui_command(store, port=port)
    typer.echo(f"MLflow opens on http://127.0.0.1:{port}; end it with Ctrl-C.")
    # Its queue of background jobs, which a store has none of, would leave a folder in /dev/shm each time.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    os.execv(command[0], command)


@app.command()
def init(
    out: Annotated[Path, typer.Argument(help="The file to write.", metavar="STUDY.YAML")] = Path("study.yaml"),
    engine: Annotated[str, typer.Option("--engine", help="vllm, sglang, trl, verl, ...")] = "vllm",
    model: Annotated[
        str | None, typer.Option("--model", help="synthetic:NAME, a path or a hub name; a small synthetic one if not given.")
    ] = None,
    use: Annotated[str, typer.Option("--use", help="chat, offline, code-completion or shared-prefix.")] = "chat",
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Write a commented study for this machine and model.

    Example: autotune init my-study.yaml --engine vllm --model synthetic:llama-3.1-8b --use chat
    """
    from autotune import starter

    starter.write(out, engine=engine, model=model, use=use, force=force)
    typer.echo(f"Wrote {out}. Next: autotune check {out}")


@app.command()
def doctor(store: StoreOption = STORE, as_json: JsonOption = False) -> None:
    """Say what is installed, which engines and GPUs are usable, and the line that installs what is missing.

    Example: autotune doctor
    """
    from autotune import doctor, view

    findings = doctor.examine(store)
    write_json([vars_of(finding) for finding in findings]) if as_json else view.print_findings(findings)
    raise typer.Exit(0 if any(finding.usable and finding.room == "engine" for finding in findings) else 3)


def name_of(study: str) -> str:
    """A study's name, given as such or as its file."""
    if study.endswith((".yaml", ".yml")):
        from autotune import study as studies

        return studies.load(Path(study))[0].name
    return study


if __name__ == "__main__":
    main()
