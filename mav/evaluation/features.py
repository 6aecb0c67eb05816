"""What videos are compared by: networks that turn a video into an array, each with the digest of its weights.

`demo` is the run's own CLIP: it makes every metric computable without downloads, and its numbers are comparable between runs of one
world, never with published ones. `i3d`, `c3d`, `inception` and `clip NAME` load published weights from a folder.

| network | array of one video | metrics |
|---|---|---|
| `demo`, `clip NAME` | frame embeddings of unit norm (F, d) | FID, KID, CLIPSIM (`demo`: FVD and IS too) |
| `i3d` | logits (400,) | FVD, KVD |
| `c3d` | class probabilities (101,) | IS |
| `inception` | pooled features of each frame (F, 2048) | FID, KID |
"""

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mav.errors import UserError
from mav.evaluation.networks import c3d, i3d, inception
from mav.evaluation.networks.weights import PUBLISHED, find, load_network, read_state
from mav.models.clip import WEIGHTS, ClipModel
from mav.storage import Folder

DEMO_NOTE = "demo encoder: not comparable with published numbers"
FRAMES_AT_ONCE = 256


@dataclass(frozen=True)
class Networks:
    """Which networks, and where their weights are. Picklable: each process loads its own on first use."""

    names: tuple[str, ...]
    weights_dir: str = ""
    clip: Folder | None = None  # the demo encoder's artifact
    device: str = "cpu"

    def __post_init__(self) -> None:
        if "demo" in self.names and self.clip is None:
            raise UserError(
                "The demo encoder is a run's own CLIP: name a recipe whose `clip` stage is done with --recipe."
            )

    def facts(self) -> dict[str, dict[str, Any]]:
        """Name, sha256, licence and note of each. Raises UserError when weights are missing, saying how to get them."""
        return {name: self._facts(name) for name in self.names}

    def _facts(self, name: str) -> dict[str, Any]:
        if name == "demo":
            assert self.clip is not None
            digest = hashlib.sha256(self.clip.read_bytes(WEIGHTS)).hexdigest()
            return {
                "name": "demo encoder (the run's own CLIP)",
                "sha256": digest,
                "note": DEMO_NOTE,
                "comparable": False,
            }
        path, digest = find(name, self.weights_dir)
        known = PUBLISHED.get(name)
        title, licence = (known.title, known.licence) if known else (name, "its authors'")
        vouched = "" if known and digest in known.files.values() else "; its digest is not one that is published"
        return {
            "name": title,
            "sha256": digest,
            "note": f"{path.name}; licence: {licence}{vouched}",
            "comparable": True,
        }

    def __call__(self, videos: Sequence[np.ndarray]) -> dict[str, list[np.ndarray]]:
        """uint8 videos (F, H, W, 3), sizes may differ, to each network's float32 array of each video.

        Raises UserError when features come out that are not finite: then the weights are not what they should be.
        """
        found = {name: _encoder(self, name)(videos) for name in self.names}
        for name, arrays in found.items():
            if not all(np.isfinite(array).all() for array in arrays):
                raise UserError(
                    f"The features of {name} are not finite: check its weights, then remove the folder of kept features."
                )
        return found

    def texts(self, name: str, texts: Sequence[str]) -> np.ndarray:
        """CLIP embeddings of texts, float64 (n, d) of unit norm."""
        clip = _clip(self, name)
        device = next(clip.parameters()).device
        with torch.no_grad():
            parts = [
                clip.encode_text(clip.tokenize(list(texts[i : i + 256])).to(device)).cpu()
                for i in range(0, len(texts), 256)
            ]
        return np.asarray(torch.cat(parts).double().numpy())

    def temperature(self, name: str) -> float:
        """What CLIP multiplies cosines with before a softmax."""
        return float(_clip(self, name).model.logit_scale.detach().exp().clamp(max=100))


Encoder = Callable[[Sequence[np.ndarray]], list[np.ndarray]]


@functools.cache
def _clip(networks: Networks, name: str) -> ClipModel:
    if name == "demo":
        assert networks.clip is not None
        return ClipModel.load(networks.clip, networks.device)
    path, _ = find(name, networks.weights_dir)
    architecture = name.removeprefix("clip ")
    if path.name in (PUBLISHED[name].files if name in PUBLISHED else ()):
        architecture += "-quickgelu"  # OpenAI's own weights were trained with it
    clip = ClipModel(architecture=architecture)
    state = {
        n: v.float()
        for n, v in read_state(path).items()
        if n not in ("input_resolution", "context_length", "vocab_size")
    }
    try:
        clip.model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"{path} does not hold the weights of {architecture}: {' '.join(str(error).split())[:160]}..."
        ) from None
    return clip.eval().to(networks.device)


@functools.cache
def _encoder(networks: Networks, name: str) -> Encoder:
    if name == "demo" or name.startswith("clip "):
        return functools.partial(_clip_frames, _clip(networks, name))
    if name not in PUBLISHED:
        raise UserError(
            f"There is no network {name!r}: protocols may name demo, {', '.join(PUBLISHED)} or clip and an open_clip name."
        )
    module, _ = load_network(name, networks.weights_dir, networks.device)
    prepare = {"i3d": i3d.prepare, "c3d": c3d.prepare, "inception": inception.prepare}[name]
    return functools.partial(_through, module, prepare, networks.device, name == "inception")


@torch.inference_mode()
def _through(
    module: torch.nn.Module,
    prepare: Callable[[Tensor], Tensor],
    device: str,
    by_frame: bool,
    videos: Sequence[np.ndarray],
) -> list[np.ndarray]:
    """All videos in one batch. What a network gives for each row goes back to its video."""
    inputs = [prepare(torch.from_numpy(np.ascontiguousarray(video))) for video in videos]
    batch = torch.cat(inputs).to(device)
    layout = torch.channels_last if batch.dim() == 4 else torch.channels_last_3d
    rows = module(batch.contiguous(memory_format=layout)).float().cpu().numpy()
    ends = np.cumsum([len(part) for part in inputs])
    return [part if by_frame else part[0] for part in np.split(rows, ends[:-1])]


@torch.no_grad()
def _clip_frames(clip: ClipModel, videos: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Frame embeddings of unit norm, float32 (F, d), of each video."""
    device = next(clip.parameters()).device
    found = []
    for video in videos:
        flat = torch.from_numpy(np.ascontiguousarray(video)).permute(0, 3, 1, 2)
        parts = [clip.encode_image(part.to(device)).float().cpu() for part in flat.split(FRAMES_AT_ONCE)]
        found.append(np.asarray(torch.cat(parts).numpy()))
    return found


def describe_clips(frames: np.ndarray) -> np.ndarray:
    """Frame embeddings (B, F, d) to one feature a video, (B, 2d): what is seen on average, and how much it changes."""
    change = np.abs(np.diff(frames, axis=1)).mean(axis=1) if frames.shape[1] > 1 else np.zeros_like(frames[:, 0])
    return np.concatenate([frames.mean(axis=1), change], axis=1)


def zero_shot(frames: np.ndarray, texts: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities (B, k) of each video's class, from frame embeddings (B, F, d) and those of k class sentences (k, d)."""
    mean = frames.mean(axis=1)
    mean = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    logits = temperature * mean @ texts.T
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))
