"""The `cellar` command: run Python in a sandbox from the shell.

Exit codes: 0 all went well, 1 a cell failed, 2 wrong usage, 3 the server cannot be reached or refused.
"""

import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter, ValidationError

from cellar_client import __version__
from cellar_client.errors import CellarError
from cellar_client.schemas import Cell, CellOutput, Info, Run, RunEvent, Session, Tier
from cellar_client.settings import API_KEY_VARIABLE, DEFAULT_URL, URL_VARIABLE
from cellar_client.sync import Cellar

CELL_FAILED, WRONG_USAGE, NO_SERVICE = 1, 2, 3
SESSION_COLUMNS = ["id", "status", "generation", "cells", "pending", "expires"]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

Timeout = Annotated[float | None, typer.Option(metavar="SECONDS", help="Time limit of each cell.")]
Isolation = Annotated[Tier | None, typer.Option(help="Kind of sandbox; the server's own when left out.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> None:
    try:
        app()
    except CellarError as error:
        _fail(str(error), NO_SERVICE)
    except UnicodeDecodeError as error:
        _fail(f"the code or its input is not UTF-8: {error}", WRONG_USAGE)
    except ValidationError as error:
        _fail("; ".join(f"{_name(e['loc'])}: {e['msg']}" for e in error.errors()), WRONG_USAGE)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"cellar {__version__}")
        raise typer.Exit


@app.callback()
def connect(
    ctx: typer.Context,
    url: Annotated[
        str, typer.Option(envvar=URL_VARIABLE, metavar="URL", help="The Cellar server, or several: URL,URL.")
    ] = DEFAULT_URL,
    api_key: Annotated[
        str, typer.Option(envvar=API_KEY_VARIABLE, metavar="KEY", help="Needed if the server has keys.")
    ] = "",
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Run Python in an isolated sandbox on a Cellar server.

    \b
    Examples:
      cellar exec "print(6 * 7)"
      echo "print(6 * 7)" | cellar exec -
      cellar run notebook.py --timeout 10
      cellar --url https://cellar.example.org sessions

    Exit codes: 0 all went well, 1 the code failed, 2 wrong usage, 3 the server cannot be reached or refused.
    """
    try:
        ctx.obj = ctx.with_resource(Cellar(url, api_key=api_key))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--url") from error


@app.command("run")
def run_file(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="A Python file.")],
    timeout: Timeout = None,
    cell_marker: Annotated[
        str, typer.Option(metavar="TEXT", help="Lines that begin with it start a new cell.")
    ] = "# %%",
    isolation: Isolation = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print what the cells write while they run.")] = False,
) -> None:
    """Run a file in a fresh session.

    Lines that begin with "# %%" split it into cells. All cells are queued, then run in order, up to the first that
    fails. What they print goes to stdout and stderr, tracebacks to stderr, the value of the last line comes last.

    \b
    Example:
      cellar run notebook.py --timeout 10
    """
    cells = split_cells(file.read_text(encoding="utf-8-sig"), cell_marker)
    with ctx.ensure_object(Cellar).session(isolation=isolation) as session:
        if cells:
            session.queue_all(cells)
        run = follow(session.stream_run(timeout_s=timeout)) if stream else session.run(timeout_s=timeout)
    raise typer.Exit(report(run, printed=stream))


@app.command("exec")
def execute(
    ctx: typer.Context,
    code: Annotated[str, typer.Argument(metavar="CODE", help='Python code, or "-" to read it from standard input.')],
    timeout: Timeout = None,
    stdin: Annotated[bool, typer.Option("--stdin", help="Let the code read this command's standard input.")] = False,
    isolation: Isolation = None,
) -> None:
    """Run one piece of code in a session of its own.

    \b
    Examples:
      cellar exec "2 ** 100"
      cellar exec - < script.py
      seq 3 | cellar exec --stdin "import sys; print(sum(map(int, sys.stdin)))"
    """
    if stdin and code == "-":
        raise typer.BadParameter("standard input is either the code or the code's input", param_hint="--stdin")
    source = sys.stdin.read() if code == "-" else code
    given = sys.stdin.read() if stdin else ""
    run = ctx.ensure_object(Cellar).execute(source, stdin=given, timeout_s=timeout, isolation=isolation)
    raise typer.Exit(report(run))


@app.command("sessions")
def list_sessions(ctx: typer.Context, json: AsJson = False) -> None:
    """List the sessions of the server that you may see."""
    sessions = list(ctx.ensure_object(Cellar).sessions())
    if json:
        typer.echo(TypeAdapter(list[Session]).dump_json(sessions, indent=2))
    else:
        typer.echo(table([SESSION_COLUMNS, *map(_session_row, sessions)]))


@app.command("info")
def show_info(ctx: typer.Context, json: AsJson = False) -> None:
    """Show the server's version, isolation and limits."""
    info = ctx.ensure_object(Cellar).info()
    typer.echo(info.model_dump_json(indent=2) if json else describe(info))


def split_cells(source: str, marker: str) -> list[str]:
    """The pieces of `source` between lines that begin with `marker`; pieces without code are left out."""
    cells: list[list[str]] = [[]]
    for line in StringIO(source):
        if line.startswith(marker):
            cells.append([])
        else:
            cells[-1].append(line)
    return [code for code in map("".join, cells) if code.strip()]


def follow(events: Iterator[RunEvent]) -> Run:
    """Print what the cells of a run write as they write it."""
    for event in events:
        if isinstance(event, CellOutput):
            gap = "\n... [output left out] ...\n" if event.dropped else ""
            typer.echo(gap + event.text, nl=False, err=event.stream == "stderr")
        elif isinstance(event, Run):
            break
    else:
        raise AssertionError("a stream ends with the run, or raises")
    return event


def report(run: Run, *, printed: bool = False) -> int:
    """Print what a run did, as Python itself would have, and say how the command should exit.

    Of a run whose output is `printed` already, what is left to say.
    """
    if not printed:
        typer.echo(run.stdout, nl=False)
        typer.echo(run.stderr, nl=False, err=True)
    elif run.truncated:
        typer.echo("\n... [output cut] ...", err=True)
    for number, cell in enumerate(run.cells, start=1):
        if cell.status not in ("ok", "skipped"):
            typer.echo(_failure(cell, number, len(run.cells)), err=True)
    if run.result is not None:
        typer.echo(run.result if run.stdout.endswith("\n") or not run.stdout else f"\n{run.result}")
    return 0 if run.status == "ok" else CELL_FAILED


def describe(info: Info) -> str:
    isolation = info.isolation
    return table(
        [
            ["version", info.version],
            ["runtimes", ", ".join(info.runtimes)],
            ["sessions", f"at most {info.max_sessions}"],
            ["isolation", isolation.tier],
            ["  namespaces", ", ".join(isolation.namespaces) or "none"],
            ["  seccomp", isolation.seccomp],
            ["  cgroup", isolation.cgroup],
            ["  host uid", isolation.host_uid],
            ["limits", ""],
            *([f"  {name}", str(value)] for name, value in info.limits),
        ],
    )


def table(rows: list[list[str]]) -> str:
    """Columns as wide as their widest value, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _failure(cell: Cell, number: int, count: int) -> str:
    """The cell's place if there are several, its traceback, and its status unless that is a plain error."""
    place = [f"cell {number} of {count}:"] if count > 1 else []
    traceback = [cell.error.traceback.rstrip()] if cell.error else []
    status = [cell.status] if cell.status != "error" else []
    return "\n".join([*place, *traceback, *status])


def _session_row(session: Session) -> list[str]:
    expires = session.expires_at.isoformat(sep=" ", timespec="seconds")
    counts = (session.generation, session.cells_total, session.cells_pending)
    return [session.session_id, session.status, *map(str, counts), expires]


def _name(location: tuple[int | str, ...]) -> str:
    return ".".join(map(str, location))


def _fail(message: str, exit_code: int) -> None:
    """One line, whatever the message holds."""
    typer.echo(f"cellar: {' '.join(message.split())}", err=True)
    sys.exit(exit_code)
