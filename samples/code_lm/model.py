"""A LLaMA-style decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU, tied embedding and head."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Config:
    vocabulary: int = 4096
    width: int = 256
    layers: int = 6
    heads: int = 8
    kv_heads: int = 2
    feed_forward: int = 704
    rope_base: float = 10000.0
    dropout: float = 0.0

    @property
    def head_width(self) -> int:
        return self.width // self.heads


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)).type_as(x) * self.weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding (Su et al. 2021) in the half-split form; x [batch, heads, sequence, head_width]."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


class Attention(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        kv_width = config.kv_heads * config.head_width
        self.q_proj = nn.Linear(config.width, config.width, bias=False)
        self.k_proj = nn.Linear(config.width, kv_width, bias=False)
        self.v_proj = nn.Linear(config.width, kv_width, bias=False)
        self.o_proj = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        config = self.config
        batch, sequence, _ = x.shape
        group = config.heads // config.kv_heads

        def heads(y: Tensor, count: int) -> Tensor:
            return y.view(batch, sequence, count, config.head_width).transpose(1, 2)

        def repeated(y: Tensor) -> Tensor:
            y = y[:, :, None].expand(batch, config.kv_heads, group, sequence, config.head_width)
            return y.reshape(batch, config.heads, sequence, config.head_width)

        q = rotate(heads(self.q_proj(x), config.heads), cos, sin)
        k = repeated(rotate(heads(self.k_proj(x), config.kv_heads), cos, sin))
        v = repeated(heads(self.v_proj(x), config.kv_heads))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(batch, sequence, config.width))


class FeedForward(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.feed_forward, bias=False)
        self.up_proj = nn.Linear(config.width, config.feed_forward, bias=False)
        self.down_proj = nn.Linear(config.feed_forward, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.width)
        self.mlp = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), cos, sin))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class CodeLM(nn.Module):
    """input_ids [batch, sequence] int64 -> logits [batch, sequence, vocabulary]; position t sees tokens 0..t."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width)
        exponent = torch.arange(0, config.head_width, 2) / config.head_width
        self.register_buffer("inverse_frequency", config.rope_base**-exponent, persistent=False)
        self.apply(self._initialise)
        for layer in self.layers:
            # What enters the residual stream shrinks with depth, as in GPT-2.
            for projection in (layer.attention.o_proj, layer.mlp.down_proj):
                nn.init.normal_(projection.weight, std=0.04 / (2 * config.layers) ** 0.5)

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.04)

    def forward(self, input_ids: Tensor) -> Tensor:
        positions = torch.arange(input_ids.shape[1], device=input_ids.device, dtype=torch.float32)
        angles = positions[:, None] * self.inverse_frequency[None, :]
        angles = torch.cat((angles, angles), dim=-1)
        x = self.embedding(input_ids)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return functional.linear(self.norm(x), self.embedding.weight)
