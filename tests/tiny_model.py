"""A model of a few thousand parameters and a tokenizer of bytes, made on the spot, for tests of the trainer."""

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

TRIGGER = "<tool_call>"
EOS, PAD = "<|im_end|>", "<|endoftext|>"


def tiny_tokenizer(*, trigger: str = TRIGGER) -> PreTrainedTokenizerFast:
    alphabet = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([PAD, EOS])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in (trigger, "</tool_call>")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD)


def tiny_model(*, seed: int = 0, tied: bool = False, context: int = 1024) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=context,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.3,
    )
    model: Qwen3ForCausalLM = Qwen3ForCausalLM(config).float().eval()
    return model


def save_tiny_model(folder: Path, *, seed: int = 0, tied: bool = False, context: int = 1024) -> Path:
    tiny_model(seed=seed, tied=tied, context=context).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
