import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cellar_trainer.data.tasks import load_tasks
from cellar_trainer.rewards import grader as rewards
from cellar_trainer.rewards.grader import Grade, Grader, GraderUnavailable
from cellar_trainer.rewards.grading_child import compare

DATA = Path(os.environ.get("CELLAR_DATA", Path(__file__).parents[4] / "shared" / "data"))
HANGS = "10^{10^{10}}"


@pytest.fixture
async def grader() -> AsyncIterator[Grader]:
    async with Grader(timeout_s=20) as grader:
        yield grader


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("0.5", r"\frac{1}{2}"),
        ("27", "27.0"),
        (r"2\sqrt{2}", r"\sqrt{8}"),
        (r"\{2, 1\}", r"\{1,2\}"),
        ("(0, 1]", "(0,1]"),
        (r"\left(3, \frac{\pi}{2}\right)", r"(3, \pi/2)"),
        ("$2n-2$", "2(n-1)"),
        ("Evelyn", r"\text{Evelyn}"),
        ("-q + p", "p - q"),
    ],
)
def test_equal_mathematics_is_correct(answer: str, expected: str) -> None:
    assert compare(answer, expected) == "correct"


@pytest.mark.parametrize(
    ("answer", "expected"), [("0.51", r"\frac{1}{2}"), ("[0,1)", "(0,1]"), (r"\{1, 3\}", r"\{1,2\}"), ("3", "-3")]
)
def test_unequal_mathematics_is_wrong(answer: str, expected: str) -> None:
    assert compare(answer, expected) == "wrong"


@pytest.mark.parametrize(
    ("answer", "expected", "outcome"),
    [
        ("evil", "live", "wrong"),
        ("evil", r"\text{live}", "wrong"),
        ("", "live", "wrong"),
        (r"\text{Live.}", "live", "correct"),
        ("$live$", r"\textbf{ live }", "correct"),
        ("two lines", r"\text{two lines}", "correct"),
        (r"\text{(E)}", "E", "correct"),
        ("yx", "xy", "correct"),
    ],
)
def test_a_word_is_no_product_of_its_letters(answer: str, expected: str, outcome: str) -> None:
    assert compare(answer, expected) == outcome


@pytest.mark.parametrize("answer", ["1 2", r"1\ 2", r"1\,2", r"1 \quad 2", "$1$ $2$", "+1 2", "1\n2"])
def test_two_numbers_side_by_side_are_no_sum(answer: str) -> None:
    assert compare(answer, "3") == "unparsed"
    assert compare(answer, answer) == "correct"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [(r"\frac 1 2", "0.5"), (r"\log_2 8", "3"), ("x^2 3", "3x^2"), ("1, 2", "1,2"), (r"1 \frac{1}{2}", "1.5")],
)
def test_numbers_that_something_joins_are_read(answer: str, expected: str) -> None:
    assert compare(answer, expected) == "correct"


@pytest.mark.parametrize("answer", ["", "@@", "}{"])
def test_what_is_no_mathematics_is_told_from_a_wrong_answer(answer: str) -> None:
    assert compare(answer, "2") == "unparsed"


@pytest.mark.skipif(not DATA.is_dir(), reason="no benchmark files; point CELLAR_DATA at their folder")
@pytest.mark.parametrize("name", ["aime24", "aime25", "amc23", "hmmt25", "math500", "olympiad"])
def test_every_ground_truth_equals_itself(name: str) -> None:
    answers = sorted({task.answer for task in load_tasks(DATA / f"{name}.parquet")})

    assert [answer for answer in answers if compare(answer, answer) != "correct"] == []


async def test_grades_come_from_a_child_process_and_are_counted(grader: Grader) -> None:
    assert await grader.grade("0.5", r"\frac{1}{2}") == Grade(True, "correct")
    assert await grader.grade("0.5", "2") == Grade(False, "wrong")
    assert await grader.grade("@@", "2") == Grade(False, "unparsed")
    assert await grader.grade(None, "2") == Grade(False, "no_answer")
    assert grader.counts == {"correct": 1, "wrong": 1, "unparsed": 1, "no_answer": 1}


async def test_grades_asked_for_at_once_do_not_mix() -> None:
    async with Grader(workers=2, timeout_s=20) as grader:
        grades = await asyncio.gather(*(grader.grade(str(i % 3), "1") for i in range(12)))

    assert [grade.correct for grade in grades] == [i % 3 == 1 for i in range(12)]


async def test_a_comparison_that_hangs_is_killed_and_the_next_one_is_answered() -> None:
    async with Grader(timeout_s=1) as grader:
        stuck = grader._workers[0]._process
        assert stuck is not None
        assert await grader.grade(HANGS, "1") == Grade(False, "timeout")
        assert stuck.returncode == -9
        assert await grader.grade("1", "1") == Grade(True, "correct")


async def test_a_grade_that_is_given_up_leaves_no_answer_behind_for_the_next(grader: Grader) -> None:
    given_up = asyncio.create_task(grader.grade(HANGS, "1"))
    await asyncio.sleep(0.2)
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up

    assert (await grader.grade("1", "1")).correct


async def test_a_child_that_dies_of_something_else_does_not_make_an_answer_wrong(grader: Grader) -> None:
    process = grader._workers[0]._process
    assert process is not None
    process.kill()
    await process.wait()

    assert await grader.grade("1", "1") == Grade(True, "correct")


async def test_an_answer_that_ends_two_children_is_at_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fragile = tmp_path / "child.py"
    fragile.write_text(
        "import sys\nprint('ready', flush=True)\nopen(sys.argv[0] + '.starts', 'a').write('x')\n"
        "for line in sys.stdin:\n    sys.exit() if 'bomb' in line else print('\"correct\"', flush=True)"
    )
    monkeypatch.setattr(rewards, "_CHILD", fragile)
    async with Grader(timeout_s=20) as grader:
        assert await grader.grade("bomb", "1") == Grade(False, "unparsed")
        assert await grader.grade("1", "1") == Grade(True, "correct")
    assert (tmp_path / "child.py.starts").read_text() == "xxx"


HOSTILE = {
    "deep parentheses": "(" * 1900 + "1" + ")" * 1900,
    "nested boxes": r"\boxed{" * 400 + "2" + "}" * 400,
    "null bytes": "1\x00",
    "half a surrogate pair": "\ud800",
    "a request of its own": '"]\n["1", "1"]',
    "code": "__import__('os').abort()",
    "a power tower": "9**9**9**9",
    "a factorial of a factorial": "(((10!)!)!)",
    "too long": "1+" * rewards.MAX_ANSWER_CHARS + "1",
    "out of its box": r"2}\boxed{3",
}


async def test_hostile_answers_are_never_correct_and_break_nothing() -> None:
    async with Grader(workers=2, timeout_s=1.0) as grader:
        grades = await asyncio.gather(*(grader.grade(answer, "1") for answer in HOSTILE.values()))
        assert await grader.grade(" 1 ", "1") == Grade(True, "correct")

    assert [name for name, grade in zip(HOSTILE, grades, strict=True) if grade.correct] == []
    assert grader.counts.total() == len(HOSTILE) + 1


def test_a_child_that_is_stuck_ends_by_itself_when_its_parent_is_gone() -> None:
    request = json.dumps([HANGS, "1"]) + "\n"

    child = subprocess.run([sys.executable, "-I", rewards._CHILD, "1"], input=request, capture_output=True, text=True)

    assert child.returncode == -signal.SIGALRM
    assert child.stdout == "ready\n"


async def test_the_child_has_a_memory_limit_and_none_of_our_environment(grader: Grader) -> None:
    process = grader._workers[0]._process
    assert process is not None
    with open(f"/proc/{process.pid}/limits") as limits, open(f"/proc/{process.pid}/environ") as environment:  # noqa: ASYNC230
        assert f"Max address space         {2**30} " in limits.read()
        assert environment.read() == ""


async def test_leaving_ends_every_child() -> None:
    async with Grader(workers=2) as grader:
        processes = [worker._process for worker in grader._workers]

    assert [process is not None and process.returncode for process in processes] == [-9, -9]


async def test_a_grader_that_cannot_start_is_a_fault_and_not_a_wrong_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "child.py"
    broken.write_text("raise SystemExit(1)")
    monkeypatch.setattr(rewards, "_CHILD", broken)

    grader = Grader()
    with pytest.raises(GraderUnavailable):
        await grader.__aenter__()
    with pytest.raises(GraderUnavailable):  # and so is every grade after it
        await grader._workers[0].compare("1", "1")


async def test_a_child_that_the_machine_cannot_start_is_a_fault(
    grader: Grader, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(*_: object, **__: object) -> None:
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refused)
    await grader._workers[0].stop()
    with pytest.raises(GraderUnavailable, match="temporarily unavailable"):
        await grader._workers[0].compare("1", "1")
