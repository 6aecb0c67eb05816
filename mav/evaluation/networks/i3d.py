"""I3D (Carreira and Zisserman 2017), RGB, Kinetics-400: the network of the Frechet video distance.

It fits the published weights: the padding is TensorFlow's SAME, which depends on the size of the input and puts the odd
pixel last, pools pad with zeros, and batch norms have no scale and an epsilon of 1e-3.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE, CLASSES, EPSILON = 224, 400, 1e-3
# Name -> input channels, and channels of the branches: 1x1; 1x1 then 3x3x3; 1x1 then 3x3x3; 3x3x3 max pool then 1x1.
MIXED = {
    "3b": (192, (64, 96, 128, 16, 32, 32)), "3c": (256, (128, 128, 192, 32, 96, 64)),
    "4b": (480, (192, 96, 208, 16, 48, 64)), "4c": (512, (160, 112, 224, 24, 64, 64)),
    "4d": (512, (128, 128, 256, 24, 64, 64)), "4e": (512, (112, 144, 288, 32, 64, 64)),
    "4f": (528, (256, 160, 320, 32, 128, 128)), "5b": (832, (256, 160, 320, 32, 128, 128)),
    "5c": (832, (384, 192, 384, 48, 128, 128)),
}  # fmt: skip
# Name of a block -> name, kernel and stride of the pool before it.
POOLS = {
    "3b": ("3a_3x3", (1, 3, 3), (1, 2, 2)), "4b": ("4a_3x3", (3, 3, 3), (2, 2, 2)),
    "5b": ("5a_2x2", (2, 2, 2), (2, 2, 2)),
}  # fmt: skip


def _same(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    """Pads with zeros so that each side becomes ceil(side / stride) under the kernel."""
    pad: list[int] = []
    for side, k, s in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        total = max((-(-side // s) - 1) * s + k - side, 0)
        pad += [total // 2, total - total // 2]
    return F.pad(x, pad) if any(pad) else x


class Unit(nn.Module):
    """Convolution, batch norm and ReLU, from (B, c, T, H, W) to (B, C, ceil(T / s), ceil(H / s), ceil(W / s))."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = (kernel,) * 3, (stride,) * 3
        self.conv3d = nn.Conv3d(channels, out, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(out, eps=EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.conv3d.weight, self.conv3d.bias
        if self.kernel[0] == 1:  # a matrix product over channels, without copies in the channels-last layout
            y = F.linear(x.permute(0, 2, 3, 4, 1), weight.flatten(1), bias).permute(0, 4, 1, 2, 3)
        elif self.stride[0] == 1:  # odd kernels pad evenly, which the convolution does itself
            y = F.conv3d(x, weight, bias, padding=self.kernel[0] // 2)
        else:
            y = self.conv3d(_same(x, self.kernel, self.stride))
        return F.relu(self.bn(y), inplace=True)


class Pool(nn.Module):
    """Max pool with SAME padding by zeros. Its input is never negative, so zeros pad as well as minus infinity.

    It pools over space and then over time, which is several times faster on a CPU than over all three axes at once.
    """

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, frames, *size = x.shape
        pictures = x.transpose(1, 2).reshape(batch * frames, channels, *size)
        # The padding before is explicit; for the padding after, windows may extend over the border (ceil_mode).
        sides = zip(size, self.kernel[1:], self.stride[1:], strict=True)
        before = [max((-(-side // s) - 1) * s + k - side, 0) // 2 for side, k, s in sides]
        flat = F.max_pool2d(pictures, self.kernel[1:], self.stride[1:], padding=before, ceil_mode=True)
        y = flat.reshape(batch, frames, *flat.shape[1:]).transpose(1, 2)
        if self.kernel[0] == 1:
            return y
        y = _same(y, (self.kernel[0], 1, 1), (self.stride[0], 1, 1))
        count = (y.shape[2] - self.kernel[0]) // self.stride[0] + 1
        end = (count - 1) * self.stride[0] + 1
        shifted = [y[:, :, i : i + end : self.stride[0]] for i in range(self.kernel[0])]
        return functools.reduce(torch.maximum, shifted)


class Mixed(nn.Module):
    """An inception block of four branches."""

    def __init__(self, channels: int, out: tuple[int, ...]) -> None:
        super().__init__()
        self.b0 = Unit(channels, out[0], 1)
        self.b1a, self.b1b = Unit(channels, out[1], 1), Unit(out[1], out[2], 3)
        self.b2a, self.b2b = Unit(channels, out[3], 1), Unit(out[3], out[4], 3)
        self.b3a, self.b3b = Pool((3, 3, 3), (1, 1, 1)), Unit(channels, out[5], 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))], dim=1)


class I3D(nn.Module):
    """Maps clips (B, 3, T, 224, 224) in [-1, 1] with T >= 9 to logits (B, 400)."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Unit(3, 64, 7, 2)
        self.MaxPool3d_2a_3x3 = Pool((1, 3, 3), (1, 2, 2))
        self.Conv3d_2b_1x1 = Unit(64, 64, 1)
        self.Conv3d_2c_3x3 = Unit(64, 192, 3)
        for name, (channels, out) in MIXED.items():
            if name in POOLS:
                pool, kernel, stride = POOLS[name]
                self.add_module(f"MaxPool3d_{pool}", Pool(kernel, stride))
            self.add_module(f"Mixed_{name}", Mixed(channels, out))
        self.logits = nn.ModuleDict({"conv3d": nn.Conv3d(1024, CLASSES, 1)})

    def forward(self, x: Tensor) -> Tensor:
        for name, part in self.named_children():
            if name != "logits":
                x = part(x)
        pooled = F.avg_pool3d(x, (2, SIZE // 32, SIZE // 32), stride=1)  # (B, 1024, T', 1, 1)
        return torch.flatten(self.logits["conv3d"](pooled).mean(dim=2), 1)


def prepare(video: Tensor) -> Tensor:
    """Turns uint8 (F, H, W, 3) into (1, 3, F, 224, 224) in [-1, 1] by bilinear resizing without antialiasing.

    The published distances are made without it, so smaller frames must show the same aliasing.
    """
    x = video.permute(0, 3, 1, 2).float()
    x = F.interpolate(x, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    return (x.mul_(2 / 255).sub_(1)).permute(1, 0, 2, 3)[None]
