"""Inception v3 as TensorFlow shipped it on 2015-12-05: the network of the Frechet inception distance.

It differs from torchvision's in its pools: averages leave the padding out, and the last block pools by maximum. Frames
are resized as in clean-fid (Parmar et al. 2022), by Pillow's antialiased bicubic filter on float channels.
"""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.models import inception as torchvisions

SIZE = 299


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class BlockA(torchvisions.InceptionA):
    def _forward(self, x: Tensor) -> list[Tensor]:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return [self.branch1x1(x), self.branch5x5_2(self.branch5x5_1(x)), double, self.branch_pool(_average(x))]


class BlockC(torchvisions.InceptionC):
    def _forward(self, x: Tensor) -> list[Tensor]:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return [self.branch1x1(x), single, double, self.branch_pool(_average(x))]


class BlockE(torchvisions.InceptionE):
    maximum = False  # the last block pools by maximum

    def _forward(self, x: Tensor) -> list[Tensor]:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.maximum else _average(x)
        parts = [self.branch1x1(x), self.branch3x3_2a(single), self.branch3x3_2b(single)]
        return [*parts, self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(pooled)]


class Inception(torchvisions.Inception3):
    """Maps frames (B, 3, 299, 299) in [-1, 1] to pooled features (B, 2048)."""

    def __init__(self) -> None:
        t = torchvisions
        blocks = [t.BasicConv2d, BlockA, t.InceptionB, BlockC, t.InceptionD, BlockE, t.InceptionAux]
        super().__init__(aux_logits=False, inception_blocks=blocks, init_weights=False)
        self.Mixed_7c.maximum = True
        self.fc = nn.Identity()  # the classes are not needed


def clean_resize(frame: np.ndarray) -> np.ndarray:
    """Resizes a uint8 frame (H, W, 3) to float32 (299, 299, 3), 0 to 255, without rounding."""
    channels = [Image.fromarray(frame[..., c].astype(np.float32)) for c in range(3)]
    resized = [np.asarray(c.resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for c in channels]
    return np.stack(resized, axis=-1).clip(0, 255)


def prepare(video: Tensor) -> Tensor:
    """Turns uint8 (F, H, W, 3) into (F, 3, 299, 299) in [-1, 1], scaled as in TensorFlow by (x - 128) / 128."""
    frames = np.stack([clean_resize(frame) for frame in video.numpy()])
    return (torch.from_numpy(frames).permute(0, 3, 1, 2) - 128) / 128
