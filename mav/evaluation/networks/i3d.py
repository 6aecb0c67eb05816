"""I3D (Carreira and Zisserman 2017), RGB, Kinetics-400: the network of the Frechet video distance.

Written for the published weights: TensorFlow's SAME padding, which depends on the input's size and puts the odd pixel last; pools that
pad with zeros; batch norm without scale and with epsilon 1e-3.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = 224  # side of the input, reached by bilinear interpolation without antialiasing, as the published distances do
CLASSES = 400
EPSILON = 1e-3
# name -> channels of the branches: 1x1; 1x1 then 3x3x3; 1x1 then 3x3x3; 3x3x3 max pool then 1x1
MIXED = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}


def _same(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    """Zero padding such that each side becomes ceil(side / stride)."""
    pad: list[int] = []
    for side, k, s in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        total = max((-(-side // s) - 1) * s + k - side, 0)
        pad += [total // 2, total - total // 2]
    return F.pad(x, pad) if any(pad) else x


class Unit(nn.Module):
    """Convolution, batch norm, ReLU. (B, c, T, H, W) to (B, C, ceil(T / s), ceil(H / s), ceil(W / s))."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = (kernel,) * 3, (stride,) * 3
        self.conv3d = nn.Conv3d(channels, out, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(out, eps=EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel[0] == 1:  # a matrix product over channels; free of copies where channels lie last
            y = F.linear(x.permute(0, 2, 3, 4, 1), self.conv3d.weight.flatten(1), self.conv3d.bias).permute(
                0, 4, 1, 2, 3
            )
        elif self.stride[0] == 1:  # odd kernels pad evenly, which the convolution does itself
            y = F.conv3d(x, self.conv3d.weight, self.conv3d.bias, padding=self.kernel[0] // 2)
        else:
            y = self.conv3d(_same(x, self.kernel, self.stride))
        return F.relu(self.bn(y), inplace=True)


class Pool(nn.Module):
    """Max pool with SAME padding by zeros; what it pools is never negative, so that zeros are as good as minus infinity.

    Space first, as pictures, then time: the same maximum, several times faster on a CPU than a pool over all three at once.
    """

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, frames, height, width = x.shape
        pictures = x.transpose(1, 2).reshape(batch * frames, channels, height, width)
        # What SAME pads before is padded; what it pads after, windows may stick out into.
        sides = zip((height, width), self.kernel[1:], self.stride[1:], strict=True)
        before = [max((-(-side // s) - 1) * s + k - side, 0) // 2 for side, k, s in sides]
        flat = F.max_pool2d(pictures, self.kernel[1:], self.stride[1:], padding=before, ceil_mode=True)
        y = flat.reshape(batch, frames, *flat.shape[1:]).transpose(1, 2)
        if self.kernel[0] == 1:
            return y
        y = _same(y, (self.kernel[0], 1, 1), (self.stride[0], 1, 1))
        count = (y.shape[2] - self.kernel[0]) // self.stride[0] + 1
        shifted = [y[:, :, i : i + (count - 1) * self.stride[0] + 1 : self.stride[0]] for i in range(self.kernel[0])]
        return functools.reduce(torch.maximum, shifted)


class Mixed(nn.Module):
    """An inception block."""

    def __init__(self, channels: int, out: tuple[int, ...]) -> None:
        super().__init__()
        self.b0 = Unit(channels, out[0], 1)
        self.b1a, self.b1b = Unit(channels, out[1], 1), Unit(out[1], out[2], 3)
        self.b2a, self.b2b = Unit(channels, out[3], 1), Unit(out[3], out[4], 3)
        self.b3a, self.b3b = Pool((3, 3, 3), (1, 1, 1)), Unit(channels, out[5], 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))], dim=1)


class I3D(nn.Module):
    """(B, 3, T, 224, 224) in [-1, 1], T >= 9, to logits (B, 400)."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Unit(3, 64, 7, 2)
        self.MaxPool3d_2a_3x3 = Pool((1, 3, 3), (1, 2, 2))
        self.Conv3d_2b_1x1 = Unit(64, 64, 1)
        self.Conv3d_2c_3x3 = Unit(64, 192, 3)
        self.MaxPool3d_3a_3x3 = Pool((1, 3, 3), (1, 2, 2))
        for name in ("Mixed_3b", "Mixed_3c"):
            self.add_module(name, Mixed(*MIXED[name]))
        self.MaxPool3d_4a_3x3 = Pool((3, 3, 3), (2, 2, 2))
        for name in ("Mixed_4b", "Mixed_4c", "Mixed_4d", "Mixed_4e", "Mixed_4f"):
            self.add_module(name, Mixed(*MIXED[name]))
        self.MaxPool3d_5a_2x2 = Pool((2, 2, 2), (2, 2, 2))
        for name in ("Mixed_5b", "Mixed_5c"):
            self.add_module(name, Mixed(*MIXED[name]))
        self.logits = nn.ModuleDict({"conv3d": nn.Conv3d(1024, CLASSES, 1)})

    def forward(self, x: Tensor) -> Tensor:
        for name, part in self.named_children():
            if name != "logits":
                x = part(x)
        pooled = F.avg_pool3d(x, (2, SIZE // 32, SIZE // 32), stride=1)  # (B, 1024, T', 1, 1)
        return torch.flatten(self.logits["conv3d"](pooled).mean(dim=2), 1)


def prepare(video: Tensor) -> Tensor:
    """uint8 (F, H, W, 3) to (1, 3, F, 224, 224) in [-1, 1]: bilinear without antialiasing, so that a shrunk frame aliases as published."""
    x = video.permute(0, 3, 1, 2).float()
    x = F.interpolate(x, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    return (x.mul_(2 / 255).sub_(1)).permute(1, 0, 2, 3)[None]
