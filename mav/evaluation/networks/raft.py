"""Whether a video moves, by RAFT (Teed and Deng 2020), with which VBench measures the dynamic degree.

The network is torchvision's, whose modules have other names than the authors' file. As VBench does it, both frames are
padded to whole multiples of 8 pixels by repeating their edges, the flow is refined 20 times, and the flow of what was
padded counts too. Two things are not VBench's. RAFT's coarsest correlations need sides of 128 pixels, so that smaller
frames are made larger by a whole factor and, where that would be too long, padded further. And frames longer than 1,024
pixels are made smaller, since the memory of the correlations grows with the fourth power of the sides.
"""

import functools
import re

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.optical_flow import RAFT, raft_large

from mav.evaluation.networks.pixels import moves

UPDATES = 20
MULTIPLE = 8  # pixels that become one of RAFT's features
LEAST_SIDE, MOST_SIDE = 128, 1024  # pixels of the shorter side, of the longer

# What the authors' file calls them, and torchvision; a name passes all of these in turn.
NAMES = tuple((re.compile(theirs), torchvisions) for theirs, torchvisions in (
    (r"^fnet\.", "feature_encoder."),
    (r"^cnet\.", "context_encoder."),
    (r"^(\w+_encoder)\.conv1\.", r"\1.convnormrelu.0."),
    (r"^(\w+_encoder)\.norm1\.", r"\1.convnormrelu.1."),
    (r"^(\w+_encoder)\.conv2\.", r"\1.conv."),
    (r"(layer\d\.\d)\.conv(\d)\.", r"\1.convnormrelu\2.0."),
    (r"(layer\d\.\d)\.norm([12])\.", r"\1.convnormrelu\2.1."),
    (r"^update_block\.encoder\.convc(\d)\.", r"update_block.motion_encoder.convcorr\1.0."),
    (r"^update_block\.encoder\.convf(\d)\.", r"update_block.motion_encoder.convflow\1.0."),
    (r"^update_block\.encoder\.conv\.", "update_block.motion_encoder.conv.0."),
    (r"^update_block\.gru\.(conv[zrq])(\d)\.", r"update_block.recurrent_block.convgru\2.\1."),
    (r"^update_block\.mask\.0\.", "mask_predictor.convrelu.0."),
    (r"^update_block\.mask\.2\.", "mask_predictor.conv."),
))  # fmt: skip


def torchvision_name(name: str) -> str:
    """Returns what torchvision calls a tensor of the authors' file; its own names stay."""
    return functools.reduce(lambda named, pair: pair[0].sub(pair[1], named), NAMES, name)


def network() -> RAFT:
    """Returns the network without weights."""
    return raft_large(weights=None)


def measure(flows: RAFT, frames: np.ndarray, fps: float = 0.0) -> np.ndarray:
    """Returns whether uint8 frames (F, H, W, 3) at a rate move, as float32 (1,): 1, 0, or nan for a flow that is not
    finite. A rate of 0 is unknown."""
    device = next(flows.parameters()).device

    def flow(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return optical_flow(flows, *(prepare(frame).to(device) for frame in (first, second)))

    return np.asarray([moves(np.stack([scaled(frame) for frame in frames]), fps, flow)], np.float32)


@torch.inference_mode()
def optical_flow(flows: RAFT, first: Tensor, second: Tensor) -> np.ndarray:
    """Returns the flow from one frame (1, 3, H, W) in [-1, 1] to another, (H, W, 2) in pixels, x before y."""
    return np.asarray(flows(first, second, num_flow_updates=UPDATES)[-1][0].permute(1, 2, 0).cpu().numpy())


def scaled(frame: np.ndarray) -> np.ndarray:
    """Returns a frame (H, W, 3) of a size that RAFT can take, but for the padding."""
    short, long = sorted(frame.shape[:2])
    if long > MOST_SIDE:
        height, width = (max(round(side * MOST_SIDE / long), 1) for side in frame.shape[:2])
        return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
    factor = max(min(-(-LEAST_SIDE // short), MOST_SIDE // long), 1)
    return cv2.resize(frame, None, None, factor, factor, cv2.INTER_CUBIC) if factor > 1 else frame


def prepare(frame: np.ndarray) -> Tensor:
    """Turns a uint8 frame (H, W, 3) into (1, 3, h, w) in [-1, 1], padded around, the odd pixel last."""
    below, right = (max(LEAST_SIDE - side, -side % MULTIPLE) for side in frame.shape[:2])
    x = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None].float() / 127.5 - 1
    return F.pad(x, (right // 2, right - right // 2, below // 2, below - below // 2), mode="replicate")
