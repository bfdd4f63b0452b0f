"""A Qwen3-shaped model of half a million parameters, and its tokenizer, made and warm-started on the spot."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from demo.arithmetic import PHRASES, TRIGGER, Problem, trace

EOS, PAD = "<|im_end|>", "<|endoftext|>"
IGNORED = -100


def byte_tokenizer(*phrases: str) -> PreTrainedTokenizerFast:
    """Bytes, so that any text can be read, plus one token for each of `phrases`."""
    alphabet = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([PAD, EOS])
    tokenizer.add_tokens([AddedToken(phrase, normalized=False) for phrase in phrases])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD)


def qwen3(tokenizer: PreTrainedTokenizerFast, *, seed: int, **shape: Any) -> Qwen3ForCausalLM:
    """Fresh weights of float32; `shape` goes to `Qwen3Config`, two layers with heads of 32 if it does not say."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **{"num_hidden_layers": 2, "head_dim": 32} | shape,
    )
    model: Qwen3ForCausalLM = Qwen3ForCausalLM(config).float()
    return model


def make_tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer(TRIGGER, *PHRASES)


def make_model(tokenizer: PreTrainedTokenizerFast, *, seed: int) -> Qwen3ForCausalLM:
    model = qwen3(
        tokenizer,
        seed=seed,
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=128,
        intermediate_size=256,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        initializer_range=0.08,
    )
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model


def warm_start(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    problems: list[Problem],
    *,
    steps: int,
    seed: int,
    on_step: Callable[[int, float], None],
    batch_size: int = 64,
) -> None:
    """Imitation of undecided traces (`arithmetic.trace`); `on_step(step, loss)` is told of progress."""
    rng = random.Random(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=2e-3, total_steps=steps)
    model.train()
    for step in range(steps):
        rows = [_encode(problem, tokenizer, rng) for problem in rng.choices(problems, k=batch_size)]
        loss = _imitation_loss(model, rows, tokenizer.pad_token_id)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        on_step(step, loss.item())


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _encode(problem: Problem, tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> tuple[list[int], list[int]]:
    """Token ids of one trace that ends in EOS, and its labels: `IGNORED` where nothing is to be imitated."""
    ids: list[int] = []
    labels: list[int] = []
    for piece in trace(problem, rng):
        piece_ids = tokenizer.encode(piece.text, add_special_tokens=False)
        ids += piece_ids
        labels += piece_ids if piece.learned else [IGNORED] * len(piece_ids)
    ended_by_trigger = ids[-1] == tokenizer.convert_tokens_to_ids(TRIGGER)
    return (ids, labels) if ended_by_trigger else ([*ids, tokenizer.eos_token_id], [*labels, tokenizer.eos_token_id])


def _imitation_loss(model: Qwen3ForCausalLM, rows: list[tuple[list[int], list[int]]], pad_id: int) -> torch.Tensor:
    width = max(len(ids) for ids, _ in rows)
    ids_BT = torch.tensor([ids + [pad_id] * (width - len(ids)) for ids, _ in rows])
    labels_BT = torch.tensor([labels + [IGNORED] * (width - len(labels)) for _, labels in rows])
    logits_BTV = model(input_ids=ids_BT[:, :-1]).logits
    return F.cross_entropy(logits_BTV.flatten(0, 1), labels_BT[:, 1:].flatten(), ignore_index=IGNORED)
