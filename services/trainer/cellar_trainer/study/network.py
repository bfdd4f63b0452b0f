"""A small transformer that can be either policy: one softmax, or a gate and a softmax below it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cellar_trainer.learning.head import scalars_from_logits
from cellar_trainer.learning.objectives.eh_grpo import explicit_logprobs
from cellar_trainer.study.task import LENGTH, SYMBOLS, TRIGGER

Cache = list[tuple[Tensor, Tensor]]
"""Keys and values of each block, [N, heads, T, width of a head]."""


class Network(nn.Module):
    """Both policies have all parameters, so that they can start alike; an implicit one never reads its gate."""

    def __init__(self, *, explicit: bool, width: int = 64, heads: int = 4, blocks: int = 2) -> None:
        super().__init__()
        self.explicit = explicit
        self.embedding = nn.Embedding(len(SYMBOLS), width)
        self.positions = nn.Embedding(LENGTH, width)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, len(SYMBOLS), bias=False)
        self.gate = nn.Linear(width, 1)

    def hidden(self, symbols_NT: Tensor, cache: Cache | None = None) -> Tensor:
        """Hidden states [N, T, D]. A cache is read and extended: `symbols_NT` are then those that it does not hold."""
        start = cache[0][0].shape[2] if cache else 0
        hidden_NTD = self.embedding(symbols_NT) + self.positions.weight[start : start + symbols_NT.shape[1]]
        for index, block in enumerate(self.blocks):
            hidden_NTD = block(hidden_NTD, cache, index)
        return self.norm(hidden_NTD)  # type: ignore[no-any-return]  # torch's

    def gate_logits(self, hidden: Tensor) -> Tensor:
        """Log-odds of going on against the trigger, for hidden states of any leading shape."""
        if self.explicit:
            return self.gate(hidden)[..., 0]  # type: ignore[no-any-return]  # torch's
        logits = self.head(hidden)
        scalars = scalars_from_logits(logits, torch.zeros_like(logits[..., 0], dtype=torch.long), TRIGGER)
        return scalars.log_z_N - scalars.trigger_logit_N

    def logprobs(self, hidden: Tensor) -> Tensor:
        """Of every symbol, the trigger among them."""
        logits = self.head(hidden)
        if self.explicit:
            return explicit_logprobs(logits, self.gate_logits(hidden), TRIGGER)
        return logits.log_softmax(-1)  # type: ignore[no-any-return]  # torch's


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project_in, self.project_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, hidden: Tensor, cache: Cache | None, index: int) -> Tensor:
        hidden = hidden + self._attend(self.attention_norm(hidden), cache, index)
        return hidden + self.mlp(self.mlp_norm(hidden))  # type: ignore[no-any-return]  # torch's

    def _attend(self, hidden: Tensor, cache: Cache | None, index: int) -> Tensor:
        count, length, width = hidden.shape
        heads = self.project_in(hidden).view(count, length, 3, self._heads, width // self._heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        if cache is not None:
            if index < len(cache):
                assert length == 1, "a cache is extended symbol by symbol"
                key, value = torch.cat([cache[index][0], key], 2), torch.cat([cache[index][1], value], 2)
                cache[index] = (key, value)
            else:
                cache.append((key, value))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=length > 1)
        return self.project_out(mixed.transpose(1, 2).reshape(count, length, width))  # type: ignore[no-any-return]
