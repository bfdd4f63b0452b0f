"""Hidden states and control tokens."""

import pytest
import torch

from cellar_trainer.model import ModelUnusable, control_tokens, hidden_states, output_weight, score
from tests.tiny_model import TRIGGER, tiny_model, tiny_tokenizer


@pytest.mark.parametrize("tied", [False, True])
def test_hidden_states_and_the_output_weight_give_the_models_logits(tied: bool) -> None:
    model = tiny_model(tied=tied)
    inputs_BT = torch.randint(0, 200, (2, 7))
    hidden_BTD = hidden_states(model, inputs_BT, torch.ones_like(inputs_BT))
    torch.testing.assert_close(hidden_BTD @ output_weight(model).T, model(inputs_BT).logits)


def test_padding_on_the_right_changes_no_hidden_state() -> None:
    model = tiny_model()
    inputs_BT = torch.randint(0, 200, (1, 6))
    padded_BT = torch.nn.functional.pad(inputs_BT, (0, 3))
    mask_BT = torch.nn.functional.pad(torch.ones_like(inputs_BT), (0, 3))
    torch.testing.assert_close(
        hidden_states(model, padded_BT, mask_BT)[:, :6], hidden_states(model, inputs_BT, torch.ones_like(inputs_BT))
    )


def test_a_score_is_the_log_probability_of_each_token_after_the_first() -> None:
    model, ids = tiny_model(), [3, 1, 4]
    with torch.no_grad():
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    assert score(model, ids) == pytest.approx([float(logprobs[0, 1]), float(logprobs[1, 4])], abs=1e-6)


def test_control_tokens_are_found() -> None:
    tokenizer = tiny_tokenizer()
    tokens = control_tokens(tokenizer, TRIGGER)
    assert tokenizer.decode([tokens.trigger_id]) == TRIGGER
    assert (tokens.eos_id, tokens.pad_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


def test_a_trigger_of_several_tokens_is_refused_with_the_remedy() -> None:
    with pytest.raises(ModelUnusable, match=r"'<run>' is 5 tokens.*add_tokens"):
        control_tokens(tiny_tokenizer(), "<run>")
