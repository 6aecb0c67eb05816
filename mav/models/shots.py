"""TransNetV2 (Soucek and Lokoc 2020), a learned detector of changes of the shot, and the reader of its published file.

Its authors' repository is soCzech/TransNetV2; a script in `inference-pytorch` there writes the state dict that is read
here, `transnetv2-pytorch-weights.pth`. Of its two heads the first is used, which marks one frame of each change.
"""

import functools
from collections.abc import Mapping
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mav.errors import UserError
from mav.models.heads import read_state

HEIGHT, WIDTH = 27, 48  # pixels of the frames
WINDOW, MARGIN = 100, 25  # frames read at once; on each side, those of which nothing is taken
CHANNELS = (64, 128, 256)  # of the stages
DILATIONS = (1, 2, 4, 8)  # frames
SIMILAR = 50  # frames on each side that a frame is compared with
WHERE = "inference-pytorch/convert_weights.py of the repository soCzech/TransNetV2 makes transnetv2-pytorch-weights.pth"


class DilatedBlock(nn.Module):
    """Convolutions over space, then over time at four dilations beside each other, and a normalisation."""

    def __init__(self, before: int, channels: int) -> None:
        super().__init__()
        width = channels // len(DILATIONS)
        self.spatial = nn.Conv3d(before, 2 * channels, (1, 3, 3), padding=(0, 1, 1), bias=False)
        self.temporal = nn.ModuleList(
            nn.Conv3d(2 * width, width, (3, 1, 1), padding=(step, 0, 0), dilation=(step, 1, 1), bias=False)
            for step in DILATIONS
        )
        self.norm = nn.BatchNorm3d(channels, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.spatial(x).chunk(len(DILATIONS), dim=1)
        normed: Tensor = self.norm(torch.cat([conv(part) for conv, part in zip(self.temporal, parts, strict=True)], 1))
        return normed


class Stage(nn.Module):
    """Two blocks, the second beside a shortcut, and a mean over 2 x 2 pixels."""

    def __init__(self, before: int, channels: int) -> None:
        super().__init__()
        self.first, self.second = DilatedBlock(before, channels), DilatedBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        return F.avg_pool3d(F.relu(self.second(x)) + x, (1, 2, 2))


class Similarity(nn.Module):
    """Features (B, T, d) to (B, T, 128): the cosines of each frame with those around it, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2 * SIMILAR + 1, 128)

    def forward(self, x: Tensor) -> Tensor:
        x = F.normalize(x, dim=2)
        cosines = F.pad(x @ x.transpose(1, 2), (SIMILAR, SIMILAR))  # 0 beyond the window
        frames = torch.arange(x.shape[1], device=x.device)[:, None]
        around = frames + torch.arange(2 * SIMILAR + 1, device=x.device)
        return F.relu(self.fc(cosines[:, frames, around]))


class TransNetV2(nn.Module):
    """The network, in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            Stage(before, channels) for before, channels in zip((3, *CHANNELS), CHANNELS, strict=False)
        )
        self.projection = nn.Linear(sum(CHANNELS), 128)
        self.feature_similarity, self.colour_similarity = Similarity(), Similarity()
        self.hidden = nn.Linear(2 * 128 + CHANNELS[-1] * (HEIGHT // 8) * (WIDTH // 8), 1024)
        self.head = nn.Linear(1024, 1)
        self.eval()

    def forward(self, frames: Tensor) -> Tensor:
        """RGB frames, uint8 (B, T, 27, 48, 3), to the logits (B, T) that a shot ends with a frame."""
        x = frames.permute(0, 4, 1, 2, 3).to(self.head.weight.dtype) / 255
        means = []
        for stage in self.stages:
            x = stage(x)
            means.append(x.mean(dim=(3, 4)))
        features = self.projection(torch.cat(means, dim=1).transpose(1, 2))
        similar = self.colour_similarity(histograms(frames).to(x.dtype)), self.feature_similarity(features)
        x = torch.cat([*similar, x.permute(0, 2, 3, 4, 1).flatten(2)], dim=2)
        logits: Tensor = self.head(F.relu(self.hidden(x)))
        return logits[..., 0]

    @torch.inference_mode()
    def probabilities(self, frames: Tensor) -> Tensor:
        """Returns for each frame of a clip the probability that a shot ends with it, (T,). frames: as in `forward`.

        Windows overlap, and before the clip and after it its first and its last frame are repeated, as published.
        """
        step = WINDOW - 2 * MARGIN
        places = torch.arange(-MARGIN, -(-len(frames) // step) * step + MARGIN).clamp(0, len(frames) - 1)
        windows = [self(frames[part][None])[0, MARGIN:-MARGIN] for part in places.unfold(0, WINDOW, step)]
        return torch.cat(windows)[: len(frames)].sigmoid()

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Self:
        """Builds the network from the published names. Raises KeyError or RuntimeError when it is of another one."""
        ours = {}
        for stage in range(len(CHANNELS)):
            for number, block in enumerate(("first", "second")):
                theirs, name = f"SDDCNN.{stage}.DDCNN.{number}", f"stages.{stage}.{block}"
                convs = [f"{theirs}.Conv3D_{step}.layers" for step in DILATIONS]
                ours[f"{name}.spatial.weight"] = torch.cat([state[f"{conv}.0.weight"] for conv in convs])
                ours |= {f"{name}.temporal.{i}.weight": state[f"{conv}.1.weight"] for i, conv in enumerate(convs)}
                for part in ("weight", "bias", "running_mean", "running_var"):
                    ours[f"{name}.norm.{part}"] = state[f"{theirs}.bn.{part}"]
                ours[f"{name}.norm.num_batches_tracked"] = torch.tensor(0)
        layers = {
            "frame_sim_layer.projection": "projection", "frame_sim_layer.fc": "feature_similarity.fc",
            "color_hist_layer.fc": "colour_similarity.fc", "fc1": "hidden", "cls_layer1": "head",
        }  # fmt: skip
        for theirs, name in layers.items():
            ours |= {f"{name}.{part}": state[f"{theirs}.{part}"] for part in ("weight", "bias")}
        network = cls()
        network.load_state_dict(ours)
        return network.requires_grad_(False)


def histograms(frames: Tensor) -> Tensor:
    """Returns how many pixels of each frame have each of 512 colours, (B, T, 512): three bits of R, G and B."""
    bits = frames.long() >> 5
    colours = (bits[..., 0] * 64 + bits[..., 1] * 8 + bits[..., 2]).flatten(2)
    return torch.zeros(*colours.shape[:2], 512).scatter_add_(2, colours, torch.ones(colours.shape))


@functools.lru_cache(1)
def read_shot_network(path: str) -> TransNetV2:
    """Reads TransNetV2's published state dict. Raises UserError that says where it is."""
    key = "video_shards.shot_weights"
    try:
        return TransNetV2.from_state(read_state(path, key))
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"`{key}` ({path}) is no state dict of TransNetV2: {reason}. {WHERE}.") from None
