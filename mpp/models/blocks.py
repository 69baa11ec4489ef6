"""The parts of a Vision Transformer's encoder: a block, its attention and its MLP. Parameters have timm's names."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from mpp.models.positions import RelativePositions

MANY_ON_A_CPU = 1 << 24  # attention logits (64 MiB): storing more no longer pays
_SHORT_ROW = 32  # bf16 numbers in a vector register: softmax of fewer is 2 to 8 times as fast in fp32


class Block(nn.Module):
    """One pre-norm encoder block: x + MSA(LN(x)), then x + MLP(LN(x)). Shapes: (B, T, D) -> (B, T, D).

    With `at` (B, K), it computes only these tokens, which attend to all tokens: -> (B, K, D).
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        mlp_ratio: float,
        dropout: float,
        drop_path: float,
        relative_grid: tuple[int, int] | None,
        layer_scale: bool = False,
        qkv_bias: bool = True,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.attn = Attention(embed_dim, num_heads, dropout, relative_grid, qkv_bias)
        self.ls1 = LayerScale(embed_dim) if layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.mlp = Mlp(embed_dim, round(mlp_ratio * embed_dim), dropout)
        self.ls2 = LayerScale(embed_dim) if layer_scale else nn.Identity()
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, x: Tensor, at: Tensor | None = None) -> Tensor:
        attended = self.ls1(self.attn(self.norm1(x), at))
        x = (x if at is None else gather(x, at)) + self.drop_path(attended)
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


class LayerScale(nn.Module):
    """A learnt factor for each channel. (B, T, D) -> (B, T, D)."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(embed_dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection to queries, keys and values. (B, T, D) -> (B, T, D)."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float,
        relative_grid: tuple[int, int] | None = None,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        self.relative = None if relative_grid is None else RelativePositions(relative_grid, embed_dim // num_heads)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, at: Tensor | None = None) -> Tensor:
        """Every token, or only those `at` (B, K), attends to all tokens: (B, T, D) -> (B, T or K, D)."""
        if at is None:
            q, k, v = split_heads(self.qkv(x), 3, self.num_heads)
        else:
            weight, bias, dim = self.qkv.weight, self.qkv.bias, x.shape[-1]
            q = F.linear(gather(x, at), weight[:dim], None if bias is None else bias[:dim])
            (q,) = split_heads(q, 1, self.num_heads)
            kv = F.linear(x, weight[dim:], None if bias is None else bias[dim:])
            k, v = split_heads(kv, 2, self.num_heads)
        x = attend(q, k, v, None if self.relative is None else self.relative(q, at))
        return self.drop(self.proj(rearrange(x, "b h t d -> b t (h d)")))


def split_heads(projected: Tensor, parts: int, num_heads: int) -> Tensor:
    """Queries, keys and values from one projection: (B, T, parts D) -> (parts, B, h, T, d).

    A CPU's products of matrices copy each of them into this order; one copy of all takes a tenth less of attention.
    """
    heads = rearrange(projected, "b t (parts h d) -> parts b h t d", parts=parts, h=num_heads)
    return heads.contiguous() if heads.device.type == "cpu" else heads


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v, of queries (B, h, Q, d), keys and values (B, h, T, d) -> (B, h, Q, d).

    Uses torch's fused attention, except for short sequences on a CPU: there, three separate steps take 0.9 of its time
    in fp32 and 0.2 to 0.4 in bf16, because the fused bf16 backward pass does not use the chip's bf16 units. What is
    exported for any batch size is fused too: the choice depends on the batch.
    """
    if torch.compiler.is_exporting():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    logits_in_all = q.shape[:-1].numel() * k.shape[-2]  # B h Q T
    if q.device.type != "cpu" or logits_in_all > MANY_ON_A_CPU:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    logits = (q * q.shape[-1] ** -0.5) @ rearrange(k, "b h t d -> b h d t")  # (B, h, Q, T)
    logits = logits if bias is None else logits + bias
    if k.shape[-2] < _SHORT_ROW:
        return logits.float().softmax(-1).to(v.dtype) @ v
    return logits.softmax(-1) @ v


class Mlp(nn.Module):
    """Two linear layers with a GELU between. (B, T, D) -> (B, T, D)."""

    def __init__(self, embed_dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden)
        self.fc2 = nn.Linear(hidden, embed_dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))


def gather(tokens: Tensor, places: Tensor) -> Tensor:
    """Take tokens by place: (B, T, D), (B, K) -> (B, K, D)."""
    batch, count, _ = tokens.shape
    rows = places + torch.arange(0, batch * count, count, device=places.device)[:, None]  # in (B T, D)
    taken = rearrange(tokens, "b t d -> (b t) d").index_select(0, rows.flatten())  # 3 x as fast as torch.gather
    return rearrange(taken, "(b k) d -> b k d", b=batch)
