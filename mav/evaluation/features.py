"""What videos are compared by: an encoder of frames and texts, with the digest of its weights.

The demo encoder is the run's own CLIP. It makes every metric computable without downloads, and its numbers are comparable between runs
of one world, never with published ones.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from mav.artifact import Folder
from mav.errors import UserError
from mav.models.clip import WEIGHTS, Clip
from mav.recipe import Recipe

DEMO_NOTE = "demo encoder: not comparable with published numbers"
FRAMES_AT_ONCE = 256


@dataclass(frozen=True)
class DemoFeatures:
    """The run's own CLIP as the only encoder."""

    clip: Clip
    sha256: str  # of its weights
    name: str = "demo encoder (the run's own CLIP)"
    note: str = DEMO_NOTE
    comparable: bool = False

    @torch.no_grad()
    def frames(self, videos: np.ndarray) -> np.ndarray:
        """uint8 (B, F, H, W, 3) to frame embeddings, float64 (B, F, d) of unit norm."""
        if videos.ndim != 5 or videos.dtype != np.uint8:
            raise ValueError(f"videos must be uint8 (B, F, H, W, 3), not {videos.dtype} {videos.shape}")
        flat = torch.from_numpy(np.ascontiguousarray(videos)).flatten(0, 1).permute(0, 3, 1, 2)
        device = next(self.clip.parameters()).device
        parts = [self.clip.encode_image(part.to(device)).cpu() for part in flat.split(FRAMES_AT_ONCE)]
        return np.asarray(torch.cat(parts).double().numpy().reshape(*videos.shape[:2], -1))

    @torch.no_grad()
    def texts(self, texts: list[str]) -> np.ndarray:
        """float64 (B, d) of unit norm."""
        device = next(self.clip.parameters()).device
        return np.asarray(self.clip.encode_text(self.clip.tokenize(texts).to(device)).cpu().double().numpy())

    @staticmethod
    def clips(frames: np.ndarray) -> np.ndarray:
        """Frame embeddings (B, F, d) to one feature a video, (B, 2d): what is seen on average, and how much it changes."""
        change = np.abs(np.diff(frames, axis=1)).mean(axis=1) if frames.shape[1] > 1 else np.zeros_like(frames[:, 0])
        return np.concatenate([frames.mean(axis=1), change], axis=1)

    def classes(self, frames: np.ndarray, sentences: list[str]) -> np.ndarray:
        """Zero-shot probabilities (B, k) of each video's class, from the mean frame embedding at CLIP's own temperature."""
        mean = frames.mean(axis=1)
        mean = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        scale = float(self.clip.model.logit_scale.detach().exp().clamp(max=100))
        logits = scale * mean @ self.texts(sentences).T
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def load_features(recipe: Recipe, clip: Folder, device: str = "cpu") -> DemoFeatures:
    """The encoder `evaluate.features` names. Raises UserError for the published ones, whose weights nobody ships."""
    if recipe.evaluate.features == "published":
        raise UserError(
            "`evaluate.features: published` needs the I3D, C3D and Inception weights, which their authors distribute and this project "
            "does not ship or load yet: set `evaluate.features: demo`."
        )
    return DemoFeatures(Clip.load(clip, device), hashlib.sha256(clip.read_bytes(WEIGHTS)).hexdigest())
