"""A model of a few thousand parameters and a tokenizer of bytes, made on the spot, for tests of the trainer."""

from pathlib import Path

from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from demo.tiny_model import EOS, PAD, byte_tokenizer, qwen3

__all__ = ["EOS", "PAD", "TRIGGER", "save_tiny_model", "tiny_model", "tiny_tokenizer"]

TRIGGER = "<tool_call>"


def tiny_tokenizer(*, trigger: str = TRIGGER) -> PreTrainedTokenizerFast:
    return byte_tokenizer(trigger, "</tool_call>")


def tiny_model(*, seed: int = 0, tied: bool = False, context: int = 1024) -> Qwen3ForCausalLM:
    tokenizer = tiny_tokenizer()
    model = qwen3(
        tokenizer,
        seed=seed,
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=context,
        tie_word_embeddings=tied,
        initializer_range=0.3,
    )
    model.eval()
    return model


def save_tiny_model(folder: Path, *, seed: int = 0, tied: bool = False, context: int = 1024) -> Path:
    tiny_model(seed=seed, tied=tied, context=context).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
