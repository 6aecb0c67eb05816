"""C3D (Tran et al. 2015) fine-tuned on UCF-101: the network of the video inception score (Saito et al., TGAN)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE, FRAMES, CLASSES = 112, 16, 101
RESIZED = (128, 171)  # height and width of the frames and of the mean cube, in pixels,
ROWS, COLUMNS = slice(8, 120), slice(29, 141)  # of which the central square is seen
CONVOLUTIONS = {
    "conv1a": (3, 64), "conv2a": (64, 128), "conv3a": (128, 256), "conv3b": (256, 256),
    "conv4a": (256, 512), "conv4b": (512, 512), "conv5a": (512, 512), "conv5b": (512, 512),
}  # fmt: skip
POOL_AFTER = {"conv1a": (1, 2, 2), "conv2a": (2, 2, 2), "conv3b": (2, 2, 2), "conv4b": (2, 2, 2), "conv5b": (2, 2, 2)}


class C3D(nn.Module):
    """Maps BGR pixels 0 to 255 (B, 3, 16, 112, 112) to class probabilities (B, 101). It subtracts the mean."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, (channels, out) in CONVOLUTIONS.items():
            self.add_module(name, nn.Conv3d(channels, out, 3, padding=1))
        self.fc6, self.fc7, self.fc8 = nn.Linear(512 * 4 * 4, 4096), nn.Linear(4096, 4096), nn.Linear(4096, CLASSES)
        self.register_buffer("mean", torch.zeros(3, FRAMES, SIZE, SIZE))

    def forward(self, x: Tensor) -> Tensor:
        x = x - self.mean
        for name in CONVOLUTIONS:
            x = F.relu(self.get_submodule(name)(x))
            if name in POOL_AFTER:
                x = F.max_pool3d(x, POOL_AFTER[name], ceil_mode=True)  # as in Caffe, 7 becomes 4
        x = F.relu(self.fc7(F.relu(self.fc6(x.flatten(1)))))
        return torch.softmax(self.fc8(x), dim=1)


def prepare(video: Tensor) -> Tensor:
    """Turns uint8 RGB (16, H, W, 3) into BGR (1, 3, 16, 112, 112), 0 to 255.

    Frames become 128 x 171 pixels, with aligned corners, as those of which the mean cube was made; the window is cut
    from both at the same place.
    """
    if len(video) != FRAMES:
        raise ValueError(f"C3D takes {FRAMES} frames, not {len(video)}")
    x = video.flip(-1).permute(0, 3, 1, 2).float()
    x = F.interpolate(x, size=RESIZED, mode="bilinear", align_corners=True)[..., ROWS, COLUMNS]
    return x.permute(1, 0, 2, 3)[None]
