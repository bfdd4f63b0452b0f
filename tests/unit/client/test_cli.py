import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellar_client.cli import describe, report, split_cells, table
from cellar_client.schemas import Info, Run
from tests.unit.client.fake_server import LIMITS, RUN, cell

TRACEBACK = "Traceback (most recent call last):\nZeroDivisionError: division by zero\n"


def run(**changes: object) -> Run:
    return Run.model_validate({**RUN, **changes})


def test_a_file_is_split_at_the_lines_that_begin_with_the_marker() -> None:
    source = "import math\n# %% first\nx = 1\n\n# %%\n\n# %% last\n  # %% indented\nx"
    assert split_cells(source, "# %%") == ["import math\n", "x = 1\n\n", "  # %% indented\nx"]


@given(st.lists(st.from_regex(r"[a-z]{1,8}\n", fullmatch=True)))
def test_no_line_of_code_is_lost_or_moved_by_splitting(lines: list[str]) -> None:
    assert "".join(split_cells("# %%\n".join(lines), "# %%")) == "".join(lines)


def test_what_python_prints_goes_where_python_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(run(stdout="out", stderr="err\n", result="42")) == 0
    assert capsys.readouterr() == ("out\n42\n", "err\n")


def test_a_failed_cell_shows_its_traceback_and_fails_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    error = {"type": "ZeroDivisionError", "message": "division by zero", "traceback": TRACEBACK}
    assert report(run(status="error", stdout="before\n", cells=[{**cell(status="error"), "error": error}])) == 1
    assert capsys.readouterr() == ("before\n", TRACEBACK)


@pytest.mark.parametrize("status", ["timeout", "oom", "killed"])
def test_a_stopped_cell_is_named_with_its_place(capsys: pytest.CaptureFixture[str], status: str) -> None:
    cells = [cell(status="ok"), cell(status=status), cell(status="skipped")]
    assert report(run(status=status, cells=cells)) == 1
    assert capsys.readouterr() == ("", f"cell 2 of 3:\n{status}\n")


def test_a_cell_stopped_by_an_interrupt_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    error = {"type": "KeyboardInterrupt", "message": "", "traceback": "KeyboardInterrupt\n"}
    assert report(run(status="timeout", cells=[{**cell(status="timeout"), "error": error}])) == 1
    assert capsys.readouterr().err == "KeyboardInterrupt\ntimeout\n"


def test_only_a_line_feed_ends_a_line() -> None:
    assert split_cells('x = "a\u2028# %% b"', "# %%") == ['x = "a\u2028# %% b"']


def test_columns_line_up() -> None:
    assert table([["id", "status"], ["session", "ok"]]) == "id       status\nsession  ok"


def test_the_server_is_described_whole() -> None:
    isolation = {
        "tier": "warm",
        "namespaces": ["pid", "net"],
        "seccomp": "allow-list",
        "cgroup": "v2",
        "host_uid": "shared",
    }
    info = {
        "version": "1.2.3",
        "isolation": isolation,
        "limits": {**LIMITS, "output_bytes": 1_048_576},
        "max_sessions": 9,
        "runtimes": ["python"],
    }
    text = describe(Info.model_validate(info))
    for value in ["1.2.3", "warm", "pid, net", "allow-list", "v2", "shared", "9", "python", "1048576", *LIMITS]:
        assert value in text
