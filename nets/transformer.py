"""A small transformer that classifies sequences of tokens, written out (Vaswani et al. 2017, with pre-norm)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class Block(nn.Module):
    """Attention over the sequence, then two linear layers; each adds to its input. [B, T, width] -> [B, T, width]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.before(x)
        query, key, value = (
            part(seen).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        x = x + self.out(scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        made: Tensor = x + self.down(nn.functional.gelu(self.up(self.after(x))))
        return made


class Transformer(nn.Module):
    """Tokens int64 [B, T] -> logits [B, classes], from the mean over the sequence. Float tokens are rounded down."""

    def __init__(self, tokens: int, length: int, classes: int, width: int = 32, heads: int = 4, blocks: int = 2) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(tokens, width), nn.Parameter(2 * torch.randn(length, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens.long()) + self.places[: tokens.shape[1]]
        logits: Tensor = self.head(self.norm(self.blocks(x)).mean(1))
        return logits
