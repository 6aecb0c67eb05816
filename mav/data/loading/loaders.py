"""The sources that training reads: images with embeddings, images with captions, and clips, from WebDataset shards.

`mav.data.loading.source` defines their order and the handling of unreadable samples. Decoded pixels stay in memory
while they fit the budget.
"""

import io
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from mav.data.loading.frame_rates import clip_times, draw_fps, frame_indices, too_short
from mav.data.loading.places import INDEXING, clip_places, row_counts
from mav.data.loading.source import GROUP_SHARDS, PassedOverError, Sample, SampleSource, Shared, Tars
from mav.data.shards import index_tar, read_at, read_table, tar_names
from mav.data.videos.video_io import fit, read_squares
from mav.errors import UserError
from mav.recipes import FpsCurriculum
from mav.storage import Folder

IN_MEMORY = 1 << 30  # bytes of decoded pixels kept
KNOWN_CLIPS = 1 << 16  # clips whose metadata is kept in memory

Place = tuple[int, int]  # of a file in a tar: its first byte, its size
Tokenizer = Callable[[list[str]], torch.Tensor]


class ImageSource(SampleSource):
    """Kept images with their CLIP embeddings, as `image-embed` lists them.

    A batch holds pixels uint8 (B, 3, S, S) (unless pixels=False), image_embedding and text_embedding float32 (B, d),
    tokens int64 (B, L).
    """

    def __init__(
        self, images: Folder, embeds: Folder, size: int, seed: int, pixels: bool = True, corrupted_share: float = 0.01,
        enlarged: bool = True, selection: Folder | None = None,
    ) -> None:  # fmt: skip
        """enlarged: with the pictures that were enlarged by `image-download` too. selection: the artifact of
        `image-select`; None: all pictures."""
        self._embeds, self._enlarged, self._selection = embeds, enlarged, selection
        counted = row_counts(embeds, kind := "rows_out" if enlarged else "native")
        if selection is not None:
            counted, embedded = row_counts(selection, kind), counted
            if unknown := sorted(embedded.keys() - counted.keys()):
                raise UserError(f"{selection.url} does not know {unknown[0]} of the embeddings: rerun image-select.")
        self._names = sorted(counted, key=lambda name: f"{name}.image.npy")  # as a listing has them
        sizes = [counted[name] for name in self._names]
        if not counted:
            self._names = [name.removesuffix(".image.npy") for name in embeds.names() if name.endswith(".image.npy")]
            with ThreadPoolExecutor(INDEXING) as pool:
                sizes = list(pool.map(self._size_of, self._names))
        if not enlarged and not sum(sizes):
            raise UserError(
                f"Every picture in {embeds.url} was enlarged: lower `image_download.image_size`, or train on them with "
                "`enlarged: true`."
            )
        super().__init__(seed, sizes, embeds.url, corrupted_share)
        self._ends = np.cumsum(sizes)
        self._shard = Shared(self._open_shard, 2 * GROUP_SHARDS)
        self._pixels = _Pixels(images, size, len(self)) if pixels else None

    def _size_of(self, name: str) -> int:
        if not self._enlarged or self._selection is not None:
            return int(self._chosen(name, read_table(self._embeds, f"{name}.parquet")).sum())
        with self._embeds.open(f"{name}.parquet") as file:
            return int(pq.read_metadata(file).num_rows)

    def _chosen(self, name: str, table: pa.Table) -> np.ndarray:
        """Says for each row of a shard whether it is trained on. Older releases do not tell of enlarged pictures."""
        chosen = np.ones(len(table), bool)
        if self._selection is not None:
            selected = read_table(self._selection, f"{name}.parquet", ["key", "kept"])
            if selected.column("key") != table.column("key"):
                raise UserError(f"{self._selection.path(name)}.parquet is of other pictures: rerun image-select.")
            chosen &= selected.column("kept").to_numpy(zero_copy_only=False).astype(bool)
        if not self._enlarged and "native" in table.column_names:
            chosen &= table.column("native").to_numpy(zero_copy_only=False).astype(bool)
        return chosen

    def _open_shard(self, name: str) -> tuple[list[str], list[Place | None], dict[str, np.ndarray]]:
        """Returns keys, places in the tar, and arrays of one shard. Raises UserError when their lengths differ.

        The embeddings of older releases tell no places, so the tar's index is read for them.
        """
        table = read_table(self._embeds, f"{name}.parquet")
        keys: list[str] = table.column("key").to_pylist()
        places: list[Place | None] = [None] * len(keys)
        if "offset" in table.column_names:
            places = list(zip(table.column("offset").to_pylist(), table.column("size").to_pylist(), strict=True))
        arrays = {kind: _load_array(self._embeds, f"{name}.{kind}.npy") for kind in ("image", "text", "tokens")}
        for kind, array in arrays.items():
            if len(array) != len(keys):
                path = self._embeds.path(name)
                raise UserError(f"{path}.{kind}.npy has {len(array)} rows for {len(keys)} keys: rerun `image-embed`.")
        chosen = np.flatnonzero(self._chosen(name, table))
        if len(chosen) < len(keys):
            keys, places = [keys[row] for row in chosen], [places[row] for row in chosen]
            arrays = {kind: array[chosen] for kind, array in arrays.items()}
        return keys, places, arrays

    def read(self, index: int, number: int) -> Sample:
        shard = int(np.searchsorted(self._ends, index, side="right"))
        row = index - (int(self._ends[shard - 1]) if shard else 0)
        keys, places, arrays = self._shard(self._names[shard])
        sample = {f"{kind}_embedding": arrays[kind][row].astype(np.float32) for kind in ("image", "text")}
        sample["tokens"] = arrays["tokens"][row].astype(np.int64)
        if self._pixels is not None:
            sample["pixels"] = self._pixels.get(index, self._names[shard], keys[row], places[row])
        return sample


class CaptionedImages(SampleSource):
    """Downloaded images with their captions and the table's scores: the training set of the demo's CLIP.

    A batch holds pixels uint8 (B, 3, S, S), tokens int64 (B, L), punsafe and pwatermark float32 (B,), NaN if unknown.
    """

    def __init__(
        self, images: Folder, size: int, seed: int, tokenize: Tokenizer, corrupted_share: float = 0.01
    ) -> None:
        self._keys: list[tuple[str, str]] = []
        captions: list[str] = []
        scores: list[tuple[float | None, float | None]] = []
        sizes: list[int] = []
        for name in tar_names(images):
            index = index_tar(images, name)
            sizes.append(len(index))
            with images.open(name) as file:
                for key, places in index.items():
                    metadata = json.loads(read_at(file, places["json"]))
                    captions.append(read_at(file, places["txt"]).decode())
                    scores.append((metadata.get("punsafe"), metadata.get("pwatermark")))
                    self._keys.append((name.removesuffix(".tar"), key))
        super().__init__(seed, sizes, images.url, corrupted_share)
        self._tokens = tokenize(captions).numpy().astype(np.int64)
        self._scores = np.array(scores, dtype=np.float32)  # None becomes NaN
        self._pixels = _Pixels(images, size, len(self._keys))

    def read(self, index: int, number: int) -> Sample:
        punsafe, pwatermark = self._scores[index]
        pixels = self._pixels.get(index, *self._keys[index])
        return {"pixels": pixels, "tokens": self._tokens[index], "punsafe": punsafe, "pwatermark": pwatermark}


class ClipSource(SampleSource):
    """Uncaptioned clips at frame rates drawn from the curriculum.

    A batch holds pixels uint8 (B, F, 3, S, S) and fps float32 (B,), the real rate. `counts` says how many samples were
    clamped (too short for the rate drawn), slower (filmed below it), or passed over as too_short.
    """

    def __init__(
        self, shards: Folder, frames: int, size: int, seed: int, fps: FpsCurriculum, total_samples: int,
        corrupted_share: float = 0.01, selection: Folder | None = None,
    ) -> None:  # fmt: skip
        """selection: the artifact of `video-select`; None: all of all clips."""
        self._frames, self._size, self._fps, self._total = frames, size, fps, max(total_samples, 1)
        self._clips = StoredClips(shards, selection)
        super().__init__(seed, self._clips.sizes, shards.url, corrupted_share)
        self._room = IN_MEMORY
        self._longest = 0  # frames of the longest clip seen so far
        self._decoded: dict[int, np.ndarray] = {}

    def read(self, index: int, number: int) -> Sample:
        metadata = self._clips.metadata(index)
        indices, wanted, rate = self._draw(metadata, number)
        if abs(rate - wanted) > 1e-6:
            self.record("clamped" if rate > wanted else "slower")
        clip = self._decoded.get(index)
        if clip is None:
            data, first = self._clips.video(index), int(metadata.get("first", 0))
            count, box = int(metadata["frames"]), metadata.get("box")
            cost = count * 3 * self._size**2
            if not self._reserve(cost):
                return _clip_sample(read_squares(data, first + indices, self._size, box), rate)
            try:
                clip = self._decoded[index] = read_squares(data, range(first, first + count), self._size, box)
            except ValueError:
                self._reserve(-cost)
                raise
        return _clip_sample(clip[indices], rate)

    def _draw(self, metadata: dict[str, Any], number: int) -> tuple[np.ndarray, float, float]:
        """Returns the frames' indices, the rate drawn and their real rate. Raises PassedOverError when too short."""
        rng = np.random.default_rng([self.seed, 2, number])
        wanted = draw_fps(self._fps, number / self._total, rng)
        times = clip_times(metadata)
        self._longest = max(self._longest, len(times))
        if len(times) < self._frames or (self._fps.short_clips == "skip" and too_short(times, self._frames, wanted)):
            raise PassedOverError("too_short")
        indices, rate = frame_indices(times, self._frames, wanted, float(rng.uniform()))
        return indices, wanted, rate

    def misfit(self) -> str:
        if self._longest >= self._frames:
            return ""
        found = f"a sample takes {self._frames} frames and the longest clip has {self._longest}"
        return f"{found}, so lower `cascade.frames` (or the stage's own `frames`) or bring longer clips"

    def _reserve(self, cost: int) -> bool:
        """Takes this many bytes from the memory budget, or returns False when they are not left; fewer than 0: back."""
        with self._lock:
            fits = cost <= self._room
            self._room -= cost if fits else 0
            return fits


def _clip_sample(frames: np.ndarray, rate: float) -> Sample:
    return {"pixels": np.ascontiguousarray(frames.transpose(0, 3, 1, 2)), "fps": np.float32(rate)}


class StoredClips:
    """The clips of an artifact: their places, so that ten million of them fit beside the networks, and their bytes.

    metadata: fps, frames, times and first of a sample, as in `mav.data.videos.transcode.Converted`, but of what is used
    of its clip alone; box: the part of the picture that is used (`mav.data.loading.places.PART`).
    """

    def __init__(self, shards: Folder, selection: Folder | None) -> None:
        self._tars, self._places = Tars(shards), clip_places(shards, selection)
        self.sizes = self._places.sizes
        self.metadata: Shared[int, dict[str, Any]] = Shared(self._metadata, KNOWN_CLIPS)

    def video(self, index: int) -> bytes:
        return self._bytes(index, "video", "size")

    def _metadata(self, index: int) -> dict[str, Any]:
        metadata: dict[str, Any] = json.loads(self._bytes(index, "json", "json_size"))
        part = self._places.part(index)
        if part is None:
            return metadata
        first, end = int(part["first"]), int(part["last"]) + 1
        used = {"first": int(metadata.get("first", 0)) + first, "frames": end - first, "box": part["box"].tolist()}
        return metadata | used | ({"times": metadata["times"][first:end]} if "times" in metadata else {})

    def _bytes(self, index: int, offset: str, size: str) -> bytes:
        place = self._places.place(index)
        return self._tars.bytes_at(self._places.names[place["shard"]], int(place[offset]), int(place[size]))


class _Pixels:
    """Decoded square images, uint8 (3, S, S), kept in memory when the whole set fits."""

    def __init__(self, images: Folder, size: int, count: int) -> None:
        self._tars, self._size = Tars(images), size
        self._kept: dict[int, np.ndarray] = {}
        self._keep = count * 3 * size * size <= IN_MEMORY

    def get(self, index: int, shard: str, key: str, place: Place | None = None) -> np.ndarray:
        if index in self._kept:
            return self._kept[index]
        tar = f"{shard}.tar"
        data = self._tars.read(tar, key, "jpg") if place is None else self._tars.bytes_at(tar, *place)
        pixels = decode_image(data, self._size)
        if self._keep:
            self._kept[index] = pixels
        return pixels


def decode_image(data: bytes, size: int) -> np.ndarray:
    """Returns an encoded picture's central square, uint8 (3, size, size) RGB. Raises ValueError when there is none."""
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if picture is None:
        raise ValueError("not a decodable image")
    return np.ascontiguousarray(fit(picture[None, :, :, ::-1], size)[0].transpose(2, 0, 1))


_one_header = threading.Lock()  # numpy parses headers with `ast`, which is not thread-safe in Python 3.11


def _load_array(folder: Folder, name: str) -> np.ndarray:
    """Loads an array of an artifact; on a disk it is mapped into memory, not read."""
    try:
        source = folder.path(name) if folder.local else io.BytesIO(folder.read_bytes(name))
        with _one_header:
            array: np.ndarray = np.load(source, mmap_mode="r" if folder.local else None, allow_pickle=False)
        return array
    except FileNotFoundError:
        raise UserError(f"{folder.path(name)} is missing: rerun `image-embed`.") from None
    except (ValueError, EOFError):
        raise UserError(f"{folder.path(name)} is not a whole array: rerun `image-embed`.") from None
