"""MUSIQ (Ke et al. 2021), trained on SPAQ: the network of VBench's imaging quality.

A picture is seen three times, with its longer side at 224 pixels, at 384, and as it is, each time in square patches of
32 pixels. Every patch passes a few convolutions by itself and becomes one token. Where it lies is said on a grid of
10 x 10 places, whatever the picture's size: several patches share a place, or some places have none. A class token
that attends to all patches of all three becomes the score.

Modules and parameters have the names of pyiqa's file. Its code fills the patches of the two smaller pictures up to 49
and 144 and masks what is filled; here nothing is filled, which gives the same score. It pads and resizes as that code
does: zeros around, the odd pixel last, as TensorFlow's SAME; bicubic without antialiasing.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mav.evaluation.networks.vit import Mlp

PATCH, WIDTH, HIDDEN, BLOCKS, HEADS = 32, 384, 1152, 14, 6
CHANNELS = (64, 256)  # of the convolutions: the first, the last
STRIDE = 4  # of them all
LONGER_SIDES = (224, 384)  # pixels; the picture's own size comes third
PLACES = 10  # of a side of the grid
MOST_SIDE = 512  # pixels of the longer side above which VBench makes frames smaller
PATCHES_AT_ONCE = 1024  # through the convolutions, so that memory does not grow with the number of frames


class StandardisedConv(nn.Conv2d):
    """A convolution without bias, each of whose filters is shifted and scaled to mean 0 and deviation 1."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1) -> None:
        super().__init__(channels, out, kernel, stride, bias=False)
        padding = kernel - stride  # in all, as SAME has it for sides that the stride divides
        self.sides = (padding // 2, padding - padding // 2) * 2

    def forward(self, x: Tensor) -> Tensor:
        shifted = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        filters = shifted / (shifted.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(F.pad(x, self.sides), filters, stride=self.stride)


class Bottleneck(nn.Module):
    """Three convolutions beside a projection."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv1, self.gn1 = StandardisedConv(channels, channels, 1), nn.GroupNorm(32, channels, eps=1e-4)
        self.conv2, self.gn2 = StandardisedConv(channels, channels, 3), nn.GroupNorm(32, channels, eps=1e-4)
        self.conv3, self.gn3 = StandardisedConv(channels, out, 1), nn.GroupNorm(32, out, eps=1e-4)
        self.conv_proj, self.gn_proj = StandardisedConv(channels, out, 1), nn.GroupNorm(32, out, eps=1e-4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.gn2(self.conv2(F.relu(self.gn1(self.conv1(x))))))
        return F.relu(self.gn3(self.conv3(y)) + self.gn_proj(self.conv_proj(x)))


class Attention(nn.Module):
    """Attention of all tokens to all."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (self.query, self.key, self.value))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A block with the norms ahead of attention and of the linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(WIDTH, eps=1e-6) for _ in range(2))
        self.attention, self.mlp = Attention(), Mlp(WIDTH, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Encoder(nn.Module):
    """Maps tokens (B, N, 384), their places (N,) on the grid and their scales (N,) to the class token (B, 384)."""

    def __init__(self) -> None:
        super().__init__()
        self.posembed_input = nn.ParameterDict({"position_emb": torch.zeros(1, PLACES**2, WIDTH)})
        self.scaleembed_input = nn.ParameterDict({"scale_emb": torch.zeros(len(LONGER_SIDES) + 1, WIDTH)})
        self.cls = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.transformer = nn.ModuleDict({f"encoderblock_{number}": Block() for number in range(BLOCKS)})
        self.encoder_norm = nn.LayerNorm(WIDTH, eps=1e-6)

    def forward(self, tokens: Tensor, places: Tensor, scales: Tensor) -> Tensor:
        where = self.posembed_input["position_emb"][0, places] + self.scaleembed_input["scale_emb"][scales]
        x = torch.cat([self.cls.expand(len(tokens), -1, -1), tokens + where], dim=1)
        for block in self.transformer.values():
            x = block(x)
        return self.encoder_norm(x)[:, 0]


class Musiq(nn.Module):
    """Maps pictures (B, 3, H, W) in [-1, 1], of any size, to their quality (B, 1): about 0 to 1, higher is better.

    The published scores are a hundred times these, as VBench divides them.
    """

    def __init__(self) -> None:
        super().__init__()
        first, last = CHANNELS
        self.conv_root, self.gn_root = StandardisedConv(3, first, 7, 2), nn.GroupNorm(32, first, eps=1e-6)
        self.block1 = Bottleneck(first, last)
        self.embedding = nn.Linear(last * (PATCH // STRIDE) ** 2, WIDTH)
        self.transformer_encoder = Encoder()
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        tokens, places, scales = [], [], []
        for scale, picture in enumerate(pyramid(x)):
            patches, grid = cut(picture)
            parts = [self._tokens(part) for part in patches.flatten(0, 1).split(PATCHES_AT_ONCE)]
            tokens.append(torch.cat(parts).unflatten(0, patches.shape[:2]))
            places.append(grid)
            scales.append(torch.full_like(grid, scale))
        found = self.transformer_encoder(torch.cat(tokens, dim=1), torch.cat(places), torch.cat(scales))
        return self.head(found) / 100

    def _tokens(self, patches: Tensor) -> Tensor:
        """Maps patches (N, 3, 32, 32) to tokens (N, 384)."""
        x = F.relu(self.gn_root(self.conv_root(patches)))
        x = F.max_pool2d(x, 3, 2, ceil_mode=True)  # SAME: one row and column after, which no maximum can come from
        return self.embedding(self.block1(x).permute(0, 2, 3, 1).flatten(1))  # channels last, as TensorFlow has them


def pyramid(x: Tensor) -> list[Tensor]:
    """Returns pictures (B, 3, H, W) with their longer side at 224 pixels, at 384, and as they are."""
    sides = x.shape[-2:]
    smaller = [[max(round(side * (longer / max(sides))), 1) for side in sides] for longer in LONGER_SIDES]
    return [*(F.interpolate(x, size=size, mode="bicubic", align_corners=False) for size in smaller), x]


def cut(x: Tensor) -> tuple[Tensor, Tensor]:
    """Cuts pictures (B, 3, H, W), padded, into patches (B, N, 3, 32, 32), row by row, and says their places (N,)."""
    rows, columns = (-(-side // PATCH) for side in x.shape[-2:])
    below, right = rows * PATCH - x.shape[-2], columns * PATCH - x.shape[-1]
    padded = F.pad(x, (right // 2, right - right // 2, below // 2, below - below // 2))
    patches = padded.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).permute(0, 2, 3, 1, 4, 5)
    grid = torch.arange(float(PLACES), device=x.device)[None, None]
    down, across = (F.interpolate(grid, size=count, mode="nearest")[0, 0].long() for count in (rows, columns))
    return patches.flatten(1, 2), (down[:, None] * PLACES + across).flatten()


def prepare(video: Tensor) -> Tensor:
    """Turns uint8 (F, H, W, 3) into (F, 3, h, w) in [-1, 1], a side at most 512 pixels (bilinear, no antialiasing)."""
    x = video.permute(0, 3, 1, 2).float()
    longer = max(x.shape[-2:])
    if longer > MOST_SIDE:  # rounded down, as VBench does it
        size = [max(int(MOST_SIDE / longer * side), 1) for side in x.shape[-2:]]
        x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
    return x / 127.5 - 1
