"""Hidden states and control tokens."""

import pytest
import torch

from cellar_trainer.learning.model import (
    ModelUnusable,
    checkpoint_activations,
    control_tokens,
    decoder_layers,
    hidden_states,
    output_weight,
    score,
)
from tests.tiny_model import TRIGGER, tiny_model, tiny_tokenizer


@pytest.mark.parametrize("tied", [False, True])
def test_hidden_states_and_the_output_weight_give_the_models_logits(tied: bool) -> None:
    model = tiny_model(tied=tied)
    inputs_BT = torch.randint(0, 200, (2, 7))
    hidden_BTD = hidden_states(model, inputs_BT, torch.arange(7).expand(2, 7))
    torch.testing.assert_close(hidden_BTD @ output_weight(model).T, model(inputs_BT).logits)


def test_sequences_of_a_row_do_not_see_each_other_nor_the_padding_behind_them() -> None:
    model = tiny_model()
    first_T, second_T = torch.randint(0, 200, (2, 5))
    row_BT = torch.cat([first_T, second_T, torch.zeros(2, dtype=torch.long)])[None]
    positions_BT = torch.tensor([[*range(5), *range(7)]])
    packed_TD = hidden_states(model, row_BT, positions_BT)[0]
    for packed, alone_T in ((packed_TD[:5], first_T), (packed_TD[5:10], second_T)):
        torch.testing.assert_close(packed, hidden_states(model, alone_T[None], torch.arange(5)[None])[0])


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


def test_checkpointing_leaves_everything_within_the_layers_in_evaluation_mode() -> None:
    model = tiny_model()
    model.model.layers[0].self_attn.attention_dropout = 0.5
    inputs_BT = torch.randint(0, 200, (1, 9))
    expected = hidden_states(model, inputs_BT, torch.arange(9)[None])
    checkpoint_activations(model)
    assert [layer.training for layer in decoder_layers(model)] == [True, True]
    assert not model.model.layers[0].self_attn.training
    assert torch.equal(hidden_states(model, inputs_BT, torch.arange(9)[None]), expected)


def test_layers_that_drop_out_by_themselves_are_refused_for_checkpointing() -> None:
    model = tiny_model()
    model.model.layers[1].resid_dropout = 0.1
    with pytest.raises(ModelUnusable, match="Qwen3DecoderLayer has dropout"):
        checkpoint_activations(model)


def test_a_model_without_known_layers_is_refused() -> None:
    with pytest.raises(ModelUnusable, match="no layers"):
        decoder_layers(torch.nn.Linear(2, 2))  # type: ignore[arg-type]
