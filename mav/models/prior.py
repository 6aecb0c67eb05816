"""The prior P: CLIP image embedding from text (Make-A-Video section 3.1, unCLIP section 2.2).

P is a causal transformer over [BPE tokens, CLIP text embedding, noise step, noised image embedding, query]. Its output
at the query is the clean image embedding. Inside, embeddings are scaled from unit norm by sqrt(d), so that their
entries are about as large as the noise.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mav.models.pseudo3d import SelfAttention, sinusoid
from mav.recipes import PriorConfig

EXTRA_TOKENS = 4  # text embedding, noise step, noised image embedding, query


class Block(nn.Module):
    """Pre-norm causal attention, then a two-layer network that is four times wider inside."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = SelfAttention(width, width // heads, zero_output=False)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x), causal=True))
        return x + self.dropout(self.narrow(F.gelu(self.widen(self.norm2(x)))))


class Prior(nn.Module):
    """The transformer that the module's docstring describes. `config` is enough to build it again."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        width, length = config.width, config.text_context + EXTRA_TOKENS
        self.token = nn.Embedding(config.vocabulary, width)
        self.position = nn.Parameter(torch.randn(length, width) * 0.02)
        self.text = nn.Linear(config.embedding_dim, width)
        self.step = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.noised = nn.Linear(config.embedding_dim, width)
        self.query = nn.Parameter(torch.randn(width) * 0.02)
        self.null_token = nn.Parameter(torch.randn(width) * 0.02)
        self.null_text = nn.Parameter(torch.randn(width) * 0.02)
        blocks = [Block(width, config.heads, config.dropout) for _ in range(config.depth)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, config.embedding_dim)
        nn.init.normal_(self.token.weight, std=0.02)
        # The deeper the network, the smaller its residual branches start, as in GPT-2.
        for block in blocks:
            for layer in (block.attention.output, block.narrow):
                nn.init.normal_(layer.weight, std=0.02 / (2 * config.depth) ** 0.5)

    def forward(
        self, x: Tensor, t: Tensor, *, tokens: Tensor, text_embedding: Tensor, keep: Tensor | None = None
    ) -> Tensor:
        """Predicts the clean image embedding, (B, d).

        x: (B, d) noised image embedding. t: (B,) noise step in 0..1000. tokens: (B, L), CLIP's BPE tokens.
        text_embedding: (B, d) of unit norm. keep: (B,) bool, False where the text is dropped.
        """
        width, dtype = self.config.width, self.query.dtype
        words = self.token(tokens)
        text = self.text((text_embedding * text_embedding.shape[-1] ** 0.5).to(dtype))
        if keep is not None:
            words = torch.where(keep[:, None, None], words, self.null_token)
            text = torch.where(keep[:, None], text, self.null_text)
        step = self.step(sinusoid(t, width).to(dtype))
        extra = torch.stack([text, step, self.noised(x), self.query.expand(len(x), -1)], dim=1)
        h = torch.cat([words, extra], dim=1) + self.position
        for block in self.blocks:
            h = block(h)
        return self.output(self.norm(h[:, -1]))


def to_scale(embedding: Tensor) -> Tensor:
    """Scales embeddings (B, d) from unit norm to the size that diffusion works on, with entries of about one."""
    return F.normalize(embedding.float(), dim=-1) * embedding.shape[-1] ** 0.5


def from_scale(embedding: Tensor) -> Tensor:
    """Scales embeddings back to unit norm."""
    return F.normalize(embedding.float(), dim=-1)
