"""The vision transformers of DINO (Caron et al. 2021), DINOv2 (Oquab et al. 2023) and VideoMAE V2 (Wang et al. 2023).

| network | patches | width | blocks | heads | reads | feature |
|---|---|---|---|---|---|---|
| DINO ViT-B/16 | 16 | 768 | 12 | 12 | a picture whose shorter side is 224 | its class token, after a norm |
| DINOv2 ViT-L/14 | 14 | 1024 | 24 | 16 | a picture of 224 x 224 | the same |
| VideoMAE V2 ViT-g/14 | 14, of 2 frames | 1408 | 40 | 16 | 16 frames of 224 x 224 | the mean token, normed |

The parameters have the names of the published files. DINOv2 scales what each half of a block adds, and its table of
positions is of pictures of 518 pixels a side; both tables are interpolated as their authors' code does it. VideoMAE V2,
fine-tuned on Something-Something V2, is the network of the content-debiased FVD (Ge et al. 2024), whose preparation is
used here: no antialiasing, and pixels from 0 to 1.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 224
OFFSET = 0.1  # of the number of patches, so that rounding does not lose one when positions are interpolated


@dataclass(frozen=True)
class Sizes:
    """The sizes of a vision transformer."""

    patch: int
    width: int
    blocks: int
    heads: int
    positions: int  # patches of a side in the table of positions
    scaled: bool  # whether a block scales what it adds
    hidden: int  # of the linear layers


DINO = Sizes(16, 768, 12, 12, 14, scaled=False, hidden=3072)
DINOV2 = Sizes(14, 1024, 24, 16, 37, scaled=True, hidden=4096)
VIDEOMAE = Sizes(14, 1408, 40, 16, 16, scaled=False, hidden=6144)
FRAMES, TUBE = 16, 2  # of VideoMAE: frames of a clip, and of a patch


class Scale(nn.Module):
    """Multiplies each channel by a learned factor."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Attention(nn.Module):
    """Attention of all tokens to all."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers, wider between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """A block with the norms ahead of attention and of the linear layers."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(sizes.width, eps=1e-6) for _ in range(2))
        self.attn, self.mlp = Attention(sizes.width, sizes.heads), Mlp(sizes.width, sizes.hidden)
        self.ls1, self.ls2 = (Scale(sizes.width) if sizes.scaled else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class VisionTransformer(nn.Module):
    """Maps pictures (B, 3, H, W), standardised by ImageNet's mean and deviation, to features (B, width)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, sizes.width, sizes.patch, sizes.patch)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, sizes.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + sizes.positions**2, sizes.width))
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.blocks))
        self.norm = nn.LayerNorm(sizes.width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch_embed["proj"](x)
        tokens = patches.flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], dim=1)
        tokens = tokens + self._positions(patches.shape[-2], patches.shape[-1])
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)[:, 0]

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Returns the positions (1, 1 + rows * columns, width) of a picture of so many patches."""
        side = self.sizes.positions
        if (rows, columns) == (side, side):
            return self.pos_embed
        table = self.pos_embed[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
        scale = ((rows + OFFSET) / side, (columns + OFFSET) / side)
        grid = F.interpolate(table, scale_factor=scale, mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


class VideoMae(nn.Module):
    """Maps clips (B, 3, 16, 224, 224) from 0 to 1 to features (B, width)."""

    positions: Tensor

    def __init__(self, sizes: Sizes = VIDEOMAE) -> None:
        super().__init__()
        patch = (TUBE, sizes.patch, sizes.patch)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv3d(3, sizes.width, patch, patch)})
        self.register_buffer("positions", waves(FRAMES // TUBE * sizes.positions**2, sizes.width), persistent=False)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.blocks))
        self.fc_norm = nn.LayerNorm(sizes.width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch_embed["proj"](x).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            tokens = block(tokens)
        return self.fc_norm(tokens.mean(dim=1))


def waves(count: int, width: int) -> Tensor:
    """Returns sines in even channels and cosines in odd ones, (count, width), as in the first transformer."""
    rates = 10_000.0 ** (-2 * (torch.arange(width, dtype=torch.float64) // 2) / width)
    angles = torch.arange(count, dtype=torch.float64)[:, None] * rates
    return torch.where(torch.arange(width) % 2 == 0, angles.sin(), angles.cos()).float()


def prepare_videomae(video: Tensor) -> Tensor:
    """Turns uint8 (16, H, W, 3) into (1, 3, 16, 224, 224) from 0 to 1. Raises ValueError for other lengths."""
    if len(video) != FRAMES:
        raise ValueError(f"VideoMAE takes {FRAMES} frames, not {len(video)}")
    x = F.interpolate(video.permute(0, 3, 1, 2).float() / 255, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    return x.permute(1, 0, 2, 3)[None]


def prepare_dino(video: Tensor) -> Tensor:
    """Turns uint8 (F, H, W, 3) into standardised (F, 3, h, w) whose shorter side is 224 (bilinear, antialiased)."""
    height, width = video.shape[1:3]
    scale = SIDE / min(height, width)
    return standardised(video, (round(height * scale), round(width * scale)), "bilinear")


def prepare_dinov2(video: Tensor) -> Tensor:
    """Turns uint8 (F, H, W, 3) into standardised (F, 3, 224, 224) (bicubic, antialiased)."""
    return standardised(video, (SIDE, SIDE), "bicubic")


def standardised(video: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Turns uint8 (F, H, W, 3) into standardised (F, 3, h, w) of that size, with antialiasing."""
    x = F.interpolate(video.permute(0, 3, 1, 2).float(), size=size, mode=mode, antialias=True).clamp(0, 255) / 255
    return (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
