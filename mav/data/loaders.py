"""Sources: what training reads. Batch by sample number, a pure function of seed and number.

Sample number s belongs to epoch s // n, whose order is a seeded permutation; nothing else decides what comes, so any number of
workers and any resume see the same samples. The only state is the number itself. A sample that cannot be read gives way to the
next one of its epoch, and is counted; a set without any is an error. Decoded pixels stay in memory while they fit the budget.
"""

from __future__ import annotations

import functools
import io
import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from mav.artifact import Folder
from mav.data.clips import draw_fps, frame_indices
from mav.data.shards import Index, index_tar, read_at, tar_names
from mav.errors import UserError
from mav.recipe import FpsCurriculum

IN_MEMORY = 1 << 30  # bytes of decoded pixels kept
OPEN_TARS = 16

Batch = dict[str, torch.Tensor]
Sample = dict[str, Any]  # arrays and numbers


class Source(ABC):
    """Training samples by number."""

    def __init__(self, seed: int, count: int, what: str) -> None:
        if count == 0:
            raise UserError(
                f"There is nothing to train on in {what}: every row was dropped or failed; look at the counts of the stages before."
            )
        self.seed, self.count, self.what = seed, count, what
        self.unreadable: dict[int, str] = {}  # index -> reason
        self._order = functools.lru_cache(maxsize=2)(self._permutation)

    def __len__(self) -> int:
        return self.count

    def batch(self, first: int, count: int) -> Batch:
        """Samples number first .. first + count - 1."""
        samples = [self._sample(number) for number in range(first, first + count)]
        return {name: torch.from_numpy(np.stack([sample[name] for sample in samples])) for name in samples[0]}

    def _sample(self, number: int) -> Sample:
        epoch, place = divmod(number, self.count)
        order = self._order(epoch)
        for step in range(self.count):
            index = int(order[(place + step) % self.count])
            if index in self.unreadable:
                continue
            try:
                return self.read(index, number)
            except ValueError as error:
                self.unreadable[index] = str(error)
        reason = next(iter(self.unreadable.values()))
        raise UserError(f"None of the {self.count} samples in {self.what} can be read ({reason}): rerun the stage that made them.")

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, 1, epoch]).permutation(self.count)

    @abstractmethod
    def read(self, index: int, number: int) -> Sample:
        """Sample `index` of the set for training sample `number`. Raises ValueError when it cannot be read."""


class ImageSource(Source):
    """Kept images with their CLIP embeddings, as `image-embed` lists them.

    A batch holds pixels uint8 (B, 3, S, S) (unless pixels=False), image_embedding and text_embedding float32 (B, d), tokens int64 (B, L).
    """

    def __init__(self, images: Folder, embeds: Folder, size: int, seed: int, pixels: bool = True) -> None:
        import pyarrow.parquet as pq

        names = [name.removesuffix(".image.npy") for name in embeds.names() if name.endswith(".image.npy")]
        self._keys: list[tuple[str, str]] = []  # (shard, key)
        self._arrays: dict[str, list[np.ndarray]] = {"image": [], "text": [], "tokens": []}
        for name in names:
            with embeds.open(f"{name}.parquet") as file:
                keys = pq.read_table(file, columns=["key"]).column("key").to_pylist()
            self._keys += [(name, key) for key in keys]
            for kind, arrays in self._arrays.items():
                array = _load_array(embeds, f"{name}.{kind}.npy")
                if len(array) != len(keys):
                    raise UserError(f"{embeds.path(name)}.{kind}.npy has {len(array)} rows for {len(keys)} keys: rerun `image-embed`.")
                arrays.append(array)
        super().__init__(seed, len(self._keys), embeds.url)
        self._ends = list(itertools.accumulate(len(a) for a in self._arrays["image"]))
        self._pixels = _Pixels(images, size, len(self._keys)) if pixels else None

    def read(self, index: int, number: int) -> Sample:
        shard = int(np.searchsorted(self._ends, index, side="right"))
        row = index - (self._ends[shard - 1] if shard else 0)
        arrays = {kind: arrays[shard][row] for kind, arrays in self._arrays.items()}
        sample = {
            "image_embedding": arrays["image"].astype(np.float32),
            "text_embedding": arrays["text"].astype(np.float32),
            "tokens": arrays["tokens"].astype(np.int64),
        }
        if self._pixels is not None:
            sample["pixels"] = self._pixels.get(index, *self._keys[index])
        return sample


class CaptionedImages(Source):
    """Downloaded images with their captions and the table's scores: what the demo's CLIP is trained on.

    A batch holds pixels uint8 (B, 3, S, S), tokens int64 (B, L), punsafe and pwatermark float32 (B,), NaN where the table knows none.
    """

    def __init__(self, images: Folder, size: int, seed: int, tokenize: Callable[[list[str]], torch.Tensor]) -> None:
        self._keys: list[tuple[str, str]] = []
        captions: list[str] = []
        scores: list[tuple[float, float]] = []
        for name in tar_names(images):
            index = index_tar(images, name)
            with images.open(name) as file:
                for key, places in index.items():
                    facts = json.loads(read_at(file, places["json"]))
                    captions.append(read_at(file, places["txt"]).decode())
                    scores.append((_or_nan(facts.get("punsafe")), _or_nan(facts.get("pwatermark"))))
                    self._keys.append((name[: -len(".tar")], key))
        super().__init__(seed, len(self._keys), images.url)
        self._tokens = tokenize(captions).numpy().astype(np.int64)
        self._scores = np.array(scores, dtype=np.float32)
        self._pixels = _Pixels(images, size, len(self._keys))

    def read(self, index: int, number: int) -> Sample:
        punsafe, pwatermark = self._scores[index]
        pixels = self._pixels.get(index, *self._keys[index])
        return {"pixels": pixels, "tokens": self._tokens[index], "punsafe": punsafe, "pwatermark": pwatermark}


class ClipSource(Source):
    """Uncaptioned clips at frame rates drawn from the curriculum.

    A batch holds pixels uint8 (B, F, 3, S, S) and fps float32 (B,), the rate the frames really have. `clamped` counts samples read so far
    whose clip was too short, or filmed too slowly, for the rate drawn.
    """

    def __init__(self, shards: Folder, frames: int, size: int, seed: int, fps: FpsCurriculum, total_samples: int) -> None:
        self._shards, self._frames, self._size, self._fps, self._total = shards, frames, size, fps, max(total_samples, 1)
        self._tars = _Tars(shards)
        self._keys = [(name, key) for name in tar_names(shards) for key in self._tars.index(name)]
        super().__init__(seed, len(self._keys), shards.url)
        self.clamped = 0
        self._room = IN_MEMORY
        self._decoded: dict[int, np.ndarray] = {}
        self._known: dict[int, dict[str, Any]] = {}

    def read(self, index: int, number: int) -> Sample:
        from mav.data.video_io import read_frames

        name, key = self._keys[index]
        facts = self._facts(index)
        rng = np.random.default_rng([self.seed, 2, number])
        wanted = draw_fps(self._fps, number / self._total, rng)
        indices, rate = frame_indices(facts["fps"], facts["frames"], self._frames, wanted, float(rng.uniform()))
        self.clamped += abs(rate - wanted) > 1e-6
        clip = self._decoded.get(index)
        if clip is None:
            data = self._tars.read(name, key, "mp4")
            cost = facts["frames"] * 3 * self._size**2
            if cost <= self._room:
                self._room -= cost
                clip = self._decoded[index] = fit(read_frames(data), self._size)
            else:
                return _clip_sample(fit(read_frames(data, indices), self._size), rate)
        if indices[-1] >= len(clip):
            raise ValueError(f"{key} has {len(clip)} frames, not {facts['frames']} as its json says")
        return _clip_sample(clip[indices], rate)

    def _facts(self, index: int) -> dict[str, Any]:
        if index not in self._known:
            facts = json.loads(self._tars.read(*self._keys[index], "json"))
            self._known[index] = {"fps": float(facts["fps"]), "frames": int(facts["frames"])}
        return self._known[index]


def _clip_sample(frames: np.ndarray, rate: float) -> Sample:
    return {"pixels": np.ascontiguousarray(frames.transpose(0, 3, 1, 2)), "fps": np.float32(rate)}


def fit(frames: np.ndarray, size: int) -> np.ndarray:
    """uint8 (F, H, W, 3) to (F, size, size, 3): the central square, averaged down (or cubic up)."""
    import cv2

    height, width = frames.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = frames[:, top : top + side, left : left + side]
    if side == size:
        return np.ascontiguousarray(square)
    how = cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
    return np.stack([cv2.resize(np.ascontiguousarray(frame), (size, size), interpolation=how) for frame in square])


class _Tars:
    """Random access into an artifact's tars; indexes are kept, and a few open files."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._indexes: dict[str, Index] = {}
        self._file = functools.lru_cache(maxsize=OPEN_TARS)(folder.open)

    def index(self, name: str) -> Index:
        if name not in self._indexes:
            self._indexes[name] = index_tar(self._folder, name)
        return self._indexes[name]

    def read(self, name: str, key: str, extension: str) -> bytes:
        """Raises ValueError when the tar has no such file."""
        place = self.index(name).get(key, {}).get(extension)
        if place is None:
            raise ValueError(f"{name} holds no {key}.{extension}")
        return read_at(self._file(name), place)


class _Pixels:
    """Decoded square images, uint8 (3, S, S), kept while the set fits in memory."""

    def __init__(self, images: Folder, size: int, count: int) -> None:
        self._tars, self._size = _Tars(images), size
        self._kept: dict[int, np.ndarray] | None = {} if count * 3 * size * size <= IN_MEMORY else None

    def get(self, index: int, shard: str, key: str) -> np.ndarray:
        if self._kept is not None and index in self._kept:
            return self._kept[index]
        pixels = decode_image(self._tars.read(f"{shard}.tar", key, "jpg"), self._size)
        if self._kept is not None:
            self._kept[index] = pixels
        return pixels


def decode_image(data: bytes, size: int) -> np.ndarray:
    """uint8 (3, size, size) RGB of an encoded picture's central square. Raises ValueError when it is none."""
    import cv2

    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if picture is None:
        raise ValueError("not a decodable image")
    return np.ascontiguousarray(fit(picture[None, :, :, ::-1], size)[0].transpose(2, 0, 1))


def _load_array(folder: Folder, name: str) -> np.ndarray:
    """An array of an artifact; mapped, not read, where the storage is a disk."""
    try:
        if folder.local:
            array: np.ndarray = np.load(folder.path(name), mmap_mode="r", allow_pickle=False)
            return array
        return np.asarray(np.load(io.BytesIO(folder.read_bytes(name)), allow_pickle=False))
    except FileNotFoundError:
        raise UserError(f"{folder.path(name)} is missing: rerun `image-embed`.") from None
    except (ValueError, EOFError):
        raise UserError(f"{folder.path(name)} is not a whole array: rerun `image-embed`.") from None


def _or_nan(score: float | None) -> float:
    return float("nan") if score is None else float(score)
