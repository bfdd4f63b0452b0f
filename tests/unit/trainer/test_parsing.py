import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellar_trainer.rollouts.parsing import boxed_answer, parse_turn


def block(code: str, tag: str = "python") -> str:
    return f"```{tag}\n{code}\n```"


def test_blocks_are_the_closed_python_fences_in_order() -> None:
    turn = parse_turn(f"First {block('x = 1')} then {block('y = 2', 'py')} and so {block('x + y')}<tool_call>")

    assert turn.blocks == ("x = 1", "y = 2", "x + y")
    assert turn.answer is None
    assert not turn.trivial_split


def test_the_code_keeps_its_own_lines_and_indentation() -> None:
    assert parse_turn(block("for i in range(3):\n    print(i)\n\nprint()")).blocks == (
        "for i in range(3):\n    print(i)\n\nprint()",
    )


@pytest.mark.parametrize(
    "text",
    [
        "```python\nx = 1",
        "```python\nx = 1<tool_call>",
        "~~~python\nx = 1\n~~~",
        "```\nx = 1\n```",
        "```text\nx = 1\n```",
        "```pycon\n>>> x\n```",
        "```pythonic\nx\n```",
        "x = 1",
        "",
    ],
)
def test_what_is_no_closed_python_fence_is_no_block(text: str) -> None:
    assert parse_turn(text).blocks == ()


def test_a_closed_block_counts_even_if_another_is_left_open() -> None:
    assert parse_turn(f"{block('x = 1')}\n```python\ny = ").blocks == ("x = 1",)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{1} or rather \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{x : x > 0\right.}", r"\left\{x : x > 0\right."),
        (r"\boxed{a \\}", r"a \\"),
        (r"\\boxed{7}", "7"),
        (r"\boxed{ 7 }", "7"),
        (r"\boxed{}", ""),
        (r"\boxed{\boxed{5}}", "5"),
        (r"{ \boxed{5}", "5"),
        (r"\boxed{5", None),
        (r"\boxed{5} and \boxed{6", "5"),
        ("boxed{5}", None),
        ("", None),
    ],
)
def test_the_last_balanced_box_is_the_answer(text: str, answer: str | None) -> None:
    assert boxed_answer(text) == answer


def test_a_box_before_a_block_is_not_the_answer() -> None:
    assert parse_turn(r"\boxed{5} but let me check " + block("x")).answer is None


def test_a_box_after_the_last_block_is_the_answer() -> None:
    assert parse_turn(block("x") + r" gives \boxed{5}").answer == "5"


def test_a_box_that_code_would_print_is_not_the_answer() -> None:
    assert parse_turn(block(r"print(r'\boxed{5}')") + "<tool_call>").answer is None


TRIVIAL = {
    "nothing between them": block("x = 1") + "\n\n" + block("y = 2"),
    "an empty one": block("x = 1") + " and " + block(""),
    "a later one only prints": block("x = 1") + " and " + block("print(x)\npprint(x)  # look"),
    "a later one repeats": block("x = 1\ny = 2") + " and " + block("y = 2  # again"),
    "a later one repeats, spaced otherwise": block("x = 1\ny = 2") + " and " + block("x=1"),
    "a later one starts over": block("x = 1") + " and " + block("x = 1\ny = 2"),
}


@pytest.mark.parametrize("text", TRIVIAL.values(), ids=TRIVIAL.keys())
def test_blocks_that_are_one_block_cut_up_are_a_trivial_split(text: str) -> None:
    assert parse_turn(text).trivial_split


@pytest.mark.parametrize(
    "text",
    [
        block("x = 1") + " then " + block("y = x + 1"),
        block("x = 1") + " then " + block("x + 1"),
        block("print(1)") + " then " + block("print(2)"),
        block("print(1)") + " then " + block("x = 1"),
        block("x = 1"),
        "",
    ],
)
def test_blocks_that_each_add_something_are_no_trivial_split(text: str) -> None:
    assert not parse_turn(text).trivial_split


def test_the_third_block_is_compared_with_all_before_it() -> None:
    assert parse_turn(block("x = 1") + " a " + block("y = 2") + " b " + block("y = 2\nx = 1")).trivial_split


@given(st.text(alphabet="\\boxed{} `python\n1"))
def test_any_text_can_be_read(text: str) -> None:
    turn = parse_turn(text)

    assert all(code in text for code in turn.blocks)
    assert turn.answer is None or turn.answer in text


balanced = st.recursive(
    st.text("ab1", max_size=3), lambda inner: st.lists(inner, max_size=3).map(lambda xs: "{" + "".join(xs) + "}")
)


@given(balanced, st.text("ab}{1 \n"))
def test_balanced_content_comes_back_whole_whatever_stands_before_it(content: str, before: str) -> None:
    assert boxed_answer(before + r"\boxed{" + content + "}") == content
