"""The networks that turn a video into an array for the metrics, each with the digest of its weights.

`demo` is the run's own CLIP. It computes every metric without downloads; its numbers can be compared between runs of
one world, but not with published ones. `i3d`, `c3d`, `inception` and `clip NAME` load published weights from a folder.

| network | array of one video | metrics |
|---|---|---|
| `demo`, `clip NAME` | frame embeddings of unit norm (F, d) | FID, KID, CLIPSIM (`demo`: FVD and IS too) |
| `i3d` | logits (400,) | FVD, KVD |
| `videomae` | mean token (1408,) | FVD |
| `vjepa` | what its probe's query finds (1280,) | JEDi |
| `c3d` | class probabilities (101,) | IS |
| `inception` | pooled features of each frame (F, 2048) | FID, KID |
| `dino`, `dinov2` | class tokens of each frame (F, 768) or (F, 1024) | FD |
| `aesthetic` | LAION's score of each frame, of 1 (F, 1) | aesthetic quality |
| `musiq` | MUSIQ's score of each frame, of 1 (F, 1) | imaging quality |
| `raft` | whether it moves (1,) (`networks.raft`) | dynamic degree |
| `pixels` | what is measured without a network (4,) (`networks.pixels`) | those four |

`whole NAME` is the network NAME on every frame of a video, in its own shape. Its array is one row, of the same length
for videos of every length: how consistent the frames' features are, then their mean; of `raft` and `pixels`, the same.
"""

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mav.errors import UserError
from mav.evaluation.networks import c3d, i3d, inception, musiq, pixels, raft, vit, vjepa
from mav.evaluation.networks.weights import PUBLISHED, find, load_network, read_state, unlike
from mav.models.clip import WEIGHTS, ClipModel
from mav.storage import Folder

DEMO_NOTE = "demo encoder: not comparable with published numbers"
WHOLE = "whole "  # before the name of a network that reads every frame
AESTHETIC_CLIP = "clip ViT-L-14"  # of whose embeddings the aesthetic score is made
BY_FRAME = ("inception", "dino", "dinov2", "musiq")  # give a row of each frame
MEASURES = ("pixels", "raft")  # give numbers of a video and its rate
FRAMES_AT_ONCE = 64
TEXTS_AT_ONCE = 256


@dataclass(frozen=True)
class Networks:
    """The names of networks and where their weights are. It can be pickled: each process loads its own on first use."""

    names: tuple[str, ...]
    weights_dir: str = ""
    clip: Folder | None = None  # the artifact of the demo encoder
    device: str = "cpu"

    def __post_init__(self) -> None:
        if "demo" in self.names and self.clip is None:
            raise UserError(
                "The demo encoder is a run's own CLIP: name a recipe whose `clip` stage is done with --recipe."
            )

    def describe(self) -> dict[str, dict[str, Any]]:
        """Returns name, sha256, licence and note of each. Raises UserError when weights are missing or wrong."""
        found = {name: self._describe(name.removeprefix(WHOLE)) for name in self.names}
        every = {name: f"{each['name']}, every frame" for name, each in found.items() if name.startswith(WHOLE)}
        return {name: each | ({"name": every[name]} if name in every else {}) for name, each in found.items()}

    def _describe(self, name: str) -> dict[str, Any]:
        if name == "demo":
            assert self.clip is not None
            sha256 = hashlib.sha256(self.clip.read_bytes(WEIGHTS)).hexdigest()
            name = "demo encoder (the run's own CLIP)"
            return {"name": name, "sha256": sha256, "note": DEMO_NOTE, "comparable": False}
        if name == "pixels":
            sha256 = _digest(f"pixels {pixels.VERSION}")
            return {"name": "no network", "sha256": sha256, "note": f"version {pixels.VERSION}", "comparable": True}
        path, sha256 = find(name, self.weights_dir)
        known = PUBLISHED.get(name)
        title, licence = (known.title, known.licence) if known else (name, "its authors'")
        doubt = "" if _vouched(name, sha256) else "; its digest is not one that is published"
        note = f"{path.name}; licence: {licence}{doubt}"
        if name == "aesthetic":  # the score is a function of the CLIP too
            of_clip = self._describe(AESTHETIC_CLIP)
            sha256, note = _digest(f"{sha256} {of_clip['sha256']}"), f"{note}; with {of_clip['note']}"
        return {"name": title, "sha256": sha256, "note": note, "comparable": True}

    def lacks(self, name: str, loaded: bool = True) -> list[str]:
        """Returns why a network cannot be used, one sentence for each of its files; [] = it can.

        A file with a published digest is what it says. Any other is loaded for this, if `loaded`, and serves the work.
        """
        network, found = name.removeprefix(WHOLE), []
        for part in (network, AESTHETIC_CLIP) if network == "aesthetic" else (network,):
            try:
                if part not in ("demo", "pixels") and not _vouched(part, find(part, self.weights_dir)[1]) and loaded:
                    _encoder(self._weights, part)
            except UserError as error:
                found.append(str(error))
        return list(dict.fromkeys(found))

    @property
    def _weights(self) -> "Networks":
        """The same weights, whichever of them are asked for: loaded networks are kept by this."""
        return replace(self, names=())

    @property
    def prepared(self) -> bool:
        """Whether some network reads what a protocol prepares."""
        return not all(name.startswith(WHOLE) for name in self.names)

    @property
    def whole(self) -> bool:
        """Whether some network reads every frame."""
        return any(name.startswith(WHOLE) for name in self.names)

    def __call__(self, videos: Sequence[np.ndarray]) -> dict[str, list[np.ndarray]]:
        """Returns, for each network that reads prepared videos, the float32 array of each uint8 one (F, H, W, 3).

        Their sizes may differ. Raises UserError when features are not finite, because the weights are then wrong.
        """
        names = [name for name in self.names if not name.startswith(WHOLE)]
        return {name: _finite(name, _encoder(self._weights, name)(videos)) for name in names}

    def rows(self, frames: np.ndarray, fps: float) -> dict[str, np.ndarray]:
        """Returns, for each network that reads every frame, the row of uint8 frames (F, H, W, 3); fps 0 = unknown.

        Raises as calling it does.
        """
        found = {}
        for name in (name for name in self.names if name.startswith(WHOLE)):
            inner = name.removeprefix(WHOLE)
            if inner in MEASURES:
                row = _measure(self._weights, inner)(frames, fps)
            else:
                row = _row(_encoder(self._weights, inner)([frames])[0])
            (found[name],) = _finite(inner, [row])
        return found

    def texts(self, name: str, texts: Sequence[str]) -> np.ndarray:
        """Returns the CLIP embeddings of texts, float64 (n, d) of unit norm."""
        clip, size = _clip(self._weights, name), TEXTS_AT_ONCE
        device = next(clip.parameters()).device
        parts = [clip.tokenize(list(texts[i : i + size])) for i in range(0, len(texts), size)]
        with torch.no_grad():
            return np.asarray(torch.cat([clip.encode_text(part.to(device)).cpu() for part in parts]).double().numpy())

    def temperature(self, name: str) -> float:
        """Returns the factor by which CLIP multiplies cosines before a softmax."""
        return float(_clip(self._weights, name).model.logit_scale.detach().exp().clamp(max=100))


def let_go() -> None:
    """Frees the networks that this process has loaded: others do the work."""
    for load in (_clip, _measure, _encoder):
        load.cache_clear()


Encoder = Callable[[Sequence[np.ndarray]], list[np.ndarray]]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _vouched(network: str, sha256: str) -> bool:
    """Says whether a digest is that of the network's published file."""
    return network in PUBLISHED and sha256 in PUBLISHED[network].files.values()


def _finite(name: str, arrays: list[np.ndarray]) -> list[np.ndarray]:
    if not all(np.isfinite(array).all() for array in arrays):
        remedy = "get its weights again, or take them away and run without"
        raise UserError(f"The features of {name} are not finite: {remedy}.")
    return arrays


def _row(frames: np.ndarray) -> np.ndarray:
    """Returns the consistency of frame features (F, d), then their mean, as (1 + d,).

    The consistency is VBench's: the mean, over all frames but the first, of the cosines with the first frame and the
    one before, where a negative cosine counts as 0.
    """
    unit = frames / np.maximum(np.linalg.norm(frames, axis=1, keepdims=True), 1e-12)
    before, first = (unit[1:] * unit[:-1]).sum(axis=1), unit[1:] @ unit[0]
    consistency = (np.maximum(before, 0).mean() + np.maximum(first, 0).mean()) / 2
    return np.concatenate([[consistency], frames.mean(axis=0)]).astype(np.float32)


@functools.cache
def _clip(networks: Networks, name: str) -> ClipModel:
    """Loads a CLIP. Raises UserError when the file has the weights of another architecture."""
    if name == "demo":
        assert networks.clip is not None
        return ClipModel.load(networks.clip, networks.device)
    path, _ = find(name, networks.weights_dir)
    architecture = name.removeprefix("clip ")
    if name in PUBLISHED and path.name in PUBLISHED[name].files:
        architecture += "-quickgelu"  # OpenAI's own weights were trained with it
    clip, sizes = ClipModel(architecture=architecture), ("input_resolution", "context_length", "vocab_size")
    state = {name: value for name, value in read_state(path).items() if name not in sizes}
    own = clip.model.state_dict()
    wrong = [f"{name!r} {why}" for name in own if name in state and (why := unlike(state[name], own[name]))]
    wrong += [f"{name!r} is missing" for name in own if name not in state]
    wrong += [f"{name!r} is none of its names" for name in state if name not in own]
    if wrong:
        raise UserError(f"{path} does not hold the weights of {architecture} ({wrong[0]}): get the file again.")
    clip.model.load_state_dict({name: value.float() for name, value in state.items()})
    return clip.eval().to(networks.device)


@functools.cache
def _measure(networks: Networks, name: str) -> Callable[..., np.ndarray]:
    """Returns the function from frames and their rate to numbers, of a network that measures a video as a whole."""
    if name == "pixels":
        return pixels.measure
    return functools.partial(raft.measure, load_network(name, networks.weights_dir, networks.device)[0])


@functools.cache
def _encoder(networks: Networks, name: str) -> Encoder:
    """Loads a network and returns the function from videos to arrays. Raises UserError for an unknown name."""
    if name == "demo" or name.startswith("clip "):
        return functools.partial(_clip_frames, _clip(networks, name))
    if name in MEASURES:
        measure = _measure(networks, name)
        return lambda videos: [measure(video) for video in videos]
    if name not in PUBLISHED:
        known = f"demo, pixels, {', '.join(PUBLISHED)} or clip and an open_clip name"
        raise UserError(f"There is no network {name!r}: protocols may name {known}.")
    if name == "aesthetic":
        head = _head(find(name, networks.weights_dir)[0])
        return functools.partial(_aesthetic, _clip(networks, AESTHETIC_CLIP), head)
    module, _ = load_network(name, networks.weights_dir, networks.device)
    prepare = {
        "i3d": i3d.prepare, "c3d": c3d.prepare, "inception": inception.prepare, "dino": vit.prepare_dino,
        "dinov2": vit.prepare_dinov2, "videomae": vit.prepare_videomae, "vjepa": vjepa.prepare,
        "musiq": musiq.prepare,
    }[name]  # fmt: skip
    return functools.partial(_batched, module, prepare, networks.device, name in BY_FRAME)


def _head(path: Path) -> dict[str, np.ndarray]:
    """Reads the aesthetic head. Raises UserError when the file holds another one."""
    state, own = read_state(path), {"weight": torch.zeros(1, 768), "bias": torch.zeros(1)}
    if state.keys() != own.keys() or any(unlike(state[name], own[name]) for name in own):
        raise UserError(f"{path} is no linear head on CLIP ViT-L/14: get the file again.")
    return {name: value.float().numpy() for name, value in state.items()}


@torch.inference_mode()
def _batched(
    module: nn.Module, prepare: Callable[[Tensor], Tensor], device: str, by_frame: bool, videos: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Runs all videos in one batch and returns the rows of each video."""
    inputs = [prepare(torch.from_numpy(np.ascontiguousarray(video))) for video in videos]
    batch = torch.cat(inputs).to(device)
    layout = torch.channels_last if batch.dim() == 4 else torch.channels_last_3d
    parts = batch.contiguous(memory_format=layout).split(FRAMES_AT_ONCE)
    rows = torch.cat([module(part) for part in parts]).float().cpu().numpy()
    ends = np.cumsum([len(part) for part in inputs])
    return [part if by_frame else part[0] for part in np.split(rows, ends[:-1])]


@torch.no_grad()
def _clip_frames(clip: ClipModel, videos: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns the frame embeddings of each video, float32 (F, d) of unit norm."""
    device = next(clip.parameters()).device
    found = []
    for video in videos:
        frames = torch.from_numpy(np.ascontiguousarray(video)).permute(0, 3, 1, 2)
        parts = [clip.encode_image(part.to(device)).float().cpu() for part in frames.split(FRAMES_AT_ONCE)]
        found.append(np.asarray(torch.cat(parts).numpy()))
    return found


def _aesthetic(clip: ClipModel, head: Mapping[str, np.ndarray], videos: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns LAION's aesthetic score of each frame, divided by 10 as in VBench, float32 (F, 1)."""
    return [(frames @ head["weight"].T + head["bias"]) / 10 for frames in _clip_frames(clip, videos)]


def describe_clips(frames: np.ndarray) -> np.ndarray:
    """Turns frame embeddings (B, F, d) into one feature (B, 2d) of each video: their mean and their mean change."""
    change = np.abs(np.diff(frames, axis=1)).mean(axis=1) if frames.shape[1] > 1 else np.zeros_like(frames[:, 0])
    return np.concatenate([frames.mean(axis=1), change], axis=1)


def zero_shot(frames: np.ndarray, texts: np.ndarray, temperature: float) -> np.ndarray:
    """Returns class probabilities (B, k) from frame embeddings (B, F, d) and embeddings of k class sentences (k, d)."""
    mean = frames.mean(axis=1)
    mean = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    logits = temperature * mean @ texts.T
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))
