"""V-JEPA's ViT-H/16 (Bardes et al. 2024) with the pooler of its SSv2 probe: the features of JEDi (Luo et al. 2025).

A clip of 16 frames of 224 x 224 becomes 1,568 tokens, patches of 16 x 16 pixels and 2 frames. The feature is what one
learned query finds among them, before the probe's linear layer. The parameters have the names of the published files,
which hold the table of positions too. The pooler's norms have PyTorch's epsilon and its attention no output layer, as
in the authors' code, whose layer of that name is never used. JEDi's code takes frames that already have 224 x 224
pixels; here they become so bilinearly, with antialiasing.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mav.evaluation.networks.vit import FRAMES, SIDE, TUBE, Block, Mlp, Sizes, standardised

VJEPA = Sizes(16, 1280, 32, 16, 14, scaled=False, hidden=5120)


class VJepa(nn.Module):
    """Maps clips (B, 3, 16, 224, 224), standardised by ImageNet's mean and deviation, to features (B, width)."""

    def __init__(self, sizes: Sizes = VJEPA) -> None:
        super().__init__()
        patch, places = (TUBE, sizes.patch, sizes.patch), FRAMES // TUBE * sizes.positions**2
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv3d(3, sizes.width, patch, patch)})
        self.pos_embed = nn.Parameter(torch.zeros(1, places, sizes.width))
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.blocks))
        self.norm = nn.LayerNorm(sizes.width, eps=1e-6)
        self.pooler = Pooler(sizes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch_embed["proj"](x).flatten(2).transpose(1, 2) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens)
        return self.pooler(self.norm(tokens))


class Pooler(nn.Module):
    """Maps tokens (B, n, width) to what a learned query finds among them (B, width)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.query_tokens = nn.Parameter(torch.zeros(1, 1, sizes.width))
        self.cross_attention_block = nn.ModuleDict(
            {
                "norm1": nn.LayerNorm(sizes.width),
                "xattn": Lookup(sizes.width, sizes.heads),
                "norm2": nn.LayerNorm(sizes.width),
                "mlp": Mlp(sizes.width, sizes.hidden),
            }
        )

    def forward(self, tokens: Tensor) -> Tensor:
        block = self.cross_attention_block
        query = self.query_tokens.expand(len(tokens), -1, -1)
        query = query + block["xattn"](query, block["norm1"](tokens))
        return (query + block["mlp"](block["norm2"](query)))[:, 0]


class Lookup(nn.Module):
    """Attention of queries (B, q, width) to tokens (B, n, width), without an output layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)

    def forward(self, query: Tensor, tokens: Tensor) -> Tensor:
        q = self.q(query).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(tokens).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def prepare(video: Tensor) -> Tensor:
    """Turns uint8 (16, H, W, 3) into standardised (1, 3, 16, 224, 224). Raises ValueError for other lengths."""
    if len(video) != FRAMES:
        raise ValueError(f"V-JEPA takes {FRAMES} frames, not {len(video)}")
    return standardised(video, (SIDE, SIDE), "bilinear").transpose(0, 1)[None]
