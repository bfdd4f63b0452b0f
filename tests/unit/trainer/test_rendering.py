import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cellar_client.schemas import CellError, Run, RunStatus
from cellar_trainer.rollouts.rendering import DEFAULT_PROMPT, Renderer, RenderingOptions
from cellar_trainer.types import Task

TRIGGER = "<tool_call>"
CHAT = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}{{ '<think>' if enable_thinking }}"


def tokenizer(*, normalizer: normalizers.Normalizer | None = None) -> PreTrainedTokenizerFast:
    """Bytes, two special tokens, and a trigger that, as in Qwen, is not marked as special."""
    alphabet = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    core.normalizer = normalizer
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<|im_start|>", "<|im_end|>", "§"])
    core.add_tokens(
        [AddedToken(t, special=False, normalized=normalizer is not None) for t in (TRIGGER, "</tool_call>")]
    )
    core.add_tokens(["}"])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", chat_template=CHAT)


TOKENIZER = tokenizer()
CONTROL = {TOKENIZER.convert_tokens_to_ids(t) for t in ("<|im_start|>", "<|im_end|>", "§", TRIGGER)}
CLOSE = TOKENIZER.convert_tokens_to_ids("</tool_call>")


def run(
    stdout: str = "", *, status: RunStatus = "ok", result: str | None = None, error: CellError | None = None
) -> Run:
    return Run(
        run_id="r",
        session_id="s",
        generation=1,
        status=status,
        cells=[],
        stdout=stdout,
        stderr="a warning",
        result=result,
        error=error,
        duration_s=0.1,
        queue_s=0.0,
    )


def shown(outcome: Run, **options: object) -> str:
    """The output within the frame."""
    renderer = Renderer(TOKENIZER, RenderingOptions(observation="[{output}]", **options))  # type: ignore[arg-type]  # tests
    return renderer.observation_text(outcome)[1:-1]


DIVISION = CellError(
    type="ZeroDivisionError", message="division by zero", traceback="Traceback\nZeroDivisionError: division by zero\n"
)
SILENT = CellError(type="Exit", message="bye", traceback="")


@pytest.mark.parametrize(
    ("outcome", "text"),
    [
        (run("10\n"), "10"),
        (run("  a\n b\n\n"), "  a\n b"),
        (run(result="42"), "42"),
        (run("10\n", result="42"), "10\n42"),
        (run(), ""),
        (run("10\n", status="error", error=DIVISION), "ZeroDivisionError: division by zero"),
        (run(status="error", error=SILENT), "Exit: bye"),
        (run("so far\n", status="timeout"), "interpreter timeout"),
        (run(status="oom"), "interpreter out of memory"),
        (run(status="killed"), "interpreter killed"),
        (run(status="lost"), "interpreter lost"),
    ],
)
def test_an_observation_shows_what_a_notebook_would(outcome: Run, text: str) -> None:
    assert shown(outcome) == text


def test_what_a_failing_run_printed_is_shown_when_wanted() -> None:
    failed = run("10\n", status="error", error=DIVISION)
    assert shown(failed, output_of_failed=True) == "10\nZeroDivisionError: division by zero"
    assert shown(run("so far\n", status="timeout"), output_of_failed=True) == "so far\ninterpreter timeout"


def test_a_warning_hides_the_output_when_wanted() -> None:
    assert shown(run("10\n"), warnings_hide_output=True) == "a warning"
    assert (
        shown(run("10\n", status="error", error=DIVISION), warnings_hide_output=True)
        == DIVISION.traceback.split("\n")[1]
    )


def test_long_output_keeps_its_head_and_its_tail() -> None:
    text = shown(run("a" * 600 + "b" * 600), observation_chars=100)
    notice = "\n..._This content has been truncated to stay below 100 characters_...\n"

    assert text == "a" * 50 + notice + "b" * 50
    assert shown(run("abcdef"), observation_chars=4, observation_notice="<{limit}>") == "ab<4>ef"


def test_the_error_survives_long_output() -> None:
    failed = run("x" * 5000, status="error", error=DIVISION)
    assert shown(failed, output_of_failed=True).endswith("ZeroDivisionError: division by zero")


def test_the_default_frame_is_the_reference_format() -> None:
    assert Renderer(TOKENIZER).observation_text(run("10\n")) == "\nCode execution result: 10\n</tool_call>\n"


def test_ids_say_what_the_text_says() -> None:
    renderer = Renderer(TOKENIZER)

    assert renderer.text(renderer.observation_ids(run("10 {é}\n"))) == renderer.observation_text(run("10 {é}\n"))


def test_the_token_limit_cuts_the_output_and_never_the_frame() -> None:
    renderer = Renderer(TOKENIZER, RenderingOptions(observation_tokens=40))

    ids = renderer.observation_ids(run("7" * 500))

    assert len(ids) == 40
    assert renderer.text(ids).endswith("777\n</tool_call>\n")


@pytest.mark.parametrize(
    "printed", [TRIGGER, f"a{TRIGGER}b", "<|im_end|><|im_start|>", "</tool_call>", "<<tool_call>tool_call>"]
)
def test_printed_control_text_is_shown_but_never_a_control_token(printed: str) -> None:
    renderer = Renderer(TOKENIZER)

    ids = renderer.observation_ids(run(printed))

    assert not CONTROL & set(ids)
    assert ids.count(CLOSE) == 1, "the frame's own"
    assert printed in renderer.text(ids)


def test_a_control_token_of_one_character_is_left_out() -> None:
    renderer = Renderer(TOKENIZER)

    assert "ab" in renderer.text(renderer.observation_ids(run("a§b")))


def test_a_tokenizer_that_normalises_cannot_be_talked_into_a_control_token() -> None:
    normalising = tokenizer(normalizer=normalizers.NFKC())
    full_width = "".join(chr(ord(c) + 0xFEE0) for c in TRIGGER)
    trigger_id = normalising.convert_tokens_to_ids(TRIGGER)
    assert trigger_id in normalising.encode(full_width), "else this proves nothing"

    assert trigger_id not in Renderer(normalising).observation_ids(run(full_width))


@given(
    st.lists(st.sampled_from([TRIGGER, "<|im_end|>", "<", "tool_call", ">", "<|", "im_", "end|>", "/", "§", "x", "}"]))
)
def test_no_text_becomes_a_control_token(pieces: list[str]) -> None:
    ids = Renderer(TOKENIZER).observation_ids(run("".join(pieces)))

    assert not CONTROL & set(ids)
    assert ids.count(CLOSE) == 1


def test_the_prompt_holds_the_problem_and_the_real_trigger_in_the_chat_template() -> None:
    renderer = Renderer(TOKENIZER)
    task = Task("t", r"Let $S = \{x\}$ and {problem}", "1")

    ids = renderer.prompt_ids(task)

    assert renderer.text(ids) == f"<|im_start|>{DEFAULT_PROMPT.replace('{problem}', task.problem)}<|im_end|>"
    assert TOKENIZER.convert_tokens_to_ids(TRIGGER) in ids


def test_thinking_is_asked_for_only_when_wanted() -> None:
    task = Task("t", "1+1", "2")

    assert (
        Renderer(TOKENIZER, RenderingOptions(enable_thinking=True))
        .text(Renderer(TOKENIZER, RenderingOptions(enable_thinking=True)).prompt_ids(task))
        .endswith("<think>")
    )


def test_without_a_chat_template_the_prompt_is_encoded_as_it_is() -> None:
    renderer = Renderer(TOKENIZER, RenderingOptions(prompt="{problem} = ", chat_template=False))

    assert renderer.text(renderer.prompt_ids(Task("t", "{1}+1", "2"))) == "{1}+1 = "
