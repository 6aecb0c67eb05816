"""`image-screen` and `image-embed`: CLIP over downloaded images, one shard a call.

`image-screen` embeds every picture once, estimates the scores that its table lacks, and screens again with them.
`image-embed` keeps the embeddings of the rows that pass and adds what the prior reads: tokens and text embeddings.
"""

import functools
import io
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image, UnidentifiedImageError

from mav.data.images.pictures import FORMATS
from mav.data.shards import (
    ShardOutput,
    index_tar,
    read_array,
    read_at,
    read_table,
    read_tar,
    write_array,
    write_table,
)  # fmt: skip
from mav.errors import UserError
from mav.models.clip import HEADS, ClipModel
from mav.recipes import Screening
from mav.storage import Folder

SCORE_REASONS = {"punsafe": "nsfw", "pwatermark": "watermark"}  # why a row at or above a score's threshold is dropped


@functools.cache
def load_clip(url: str, device: str) -> ClipModel:
    """Loads the CLIP of this artifact, once a process."""
    return ClipModel.load(Folder(url), device)


@dataclass(frozen=True)
class ScreenWork:
    """The shard work of `image-screen`: writes NAME.image.npy (float16 (n, d), every row of the tar) and NAME.parquet.

    The columns are key; punsafe and pwatermark, from the table or estimated; scored, whether one was estimated; kept;
    reason (null when kept).
    """

    images: Folder
    clip: Folder
    out: Folder
    screening: Screening
    batch_size: int = 256
    device: str = "cpu"

    def __call__(self, name: str) -> ShardOutput:
        # Embed the pictures batch by batch, with the scores that are taken from pixels.
        clip, estimate = load_clip(self.clip.url, self.device), self.screening.unknown_scores == "score"
        keys: list[str] = []
        known, embedded = [np.zeros((0, len(HEADS)))], [np.zeros((0, clip.dim), np.float32)]
        from_pixels: dict[str, list[np.ndarray]] = {head: [np.zeros(0)] for head in clip.pixel_heads}
        for rows in _batches(read_tar(self.images, f"{name}.tar"), self.batch_size):
            keys += [key for key, _ in rows]
            metadata = [json.loads(files["json"]) for _, files in rows]
            known.append(np.array([[row.get(head) for head in HEADS] for row in metadata], np.float64))
            wanted = np.asarray(np.isnan(known[-1]).any(axis=1) & (bool(clip.pixel_heads) and estimate))
            embedding, scores = _embed(clip, [(f"{name}.tar: {key}", files["jpg"]) for key, files in rows], wanted)
            embedded.append(embedding)
            for head, values in scores.items():
                from_pixels[head].append(values)
        # Estimate the scores that the table does not have, and screen again.
        embedding, score = np.concatenate(embedded), np.concatenate(known)
        unknown = np.isnan(score)
        if estimate:
            found = clip.scores(torch.from_numpy(embedding).to(self.device))
            estimates = {head: values.double().cpu().numpy() for head, values in found.items()}
            estimates |= {head: np.concatenate(values) for head, values in from_pixels.items()}
            for column, head in enumerate(HEADS):
                if head in estimates:
                    score[:, column] = np.where(unknown[:, column], estimates[head], score[:, column])
        scored = (unknown & ~np.isnan(score)).any(axis=1)
        reasons = [self._reason(row) for row in score]
        # Write the embeddings and the table.
        heads = {head: pa.array(score[:, i], pa.float32(), mask=np.isnan(score[:, i])) for i, head in enumerate(HEADS)}
        kept = pa.array([reason is None for reason in reasons], pa.bool_())
        columns = {"key": pa.array(keys, pa.string()), **heads, "scored": pa.array(scored), "kept": kept}
        write_array(self.out, f"{name}.image.npy", embedding.astype(np.float16))
        write_table(self.out, f"{name}.parquet", pa.table({**columns, "reason": pa.array(reasons, pa.string())}))
        dropped = {reason: reasons.count(reason) for reason in sorted({r for r in reasons if r})}
        counts = {"rows_in": len(keys), "rows_out": reasons.count(None), "dropped": dropped, "failed": {}}
        return ShardOutput(counts | {"scored": int(scored.sum())}, (f"{name}.image.npy", f"{name}.parquet"))

    def _reason(self, score: np.ndarray) -> str | None:
        """Returns why a row is dropped, or None. An unknown score drops it too, unless `unknown_scores` is `keep`."""
        thresholds = (self.screening.punsafe_threshold, self.screening.pwatermark_threshold)
        for head, value, threshold in zip(HEADS, score, thresholds, strict=True):
            if value >= threshold:
                return SCORE_REASONS[head]
        return "unknown_score" if np.isnan(score).any() and self.screening.unknown_scores != "keep" else None


@dataclass(frozen=True)
class EmbedWork:
    """The shard work of `image-embed`, on kept rows only, in the tar's order.

    NAME.parquet holds the keys, offset and size of their pictures in the tar, and whether a picture is native: not
    enlarged by `image-download`. NAME.image.npy and NAME.text.npy are float16 (n, d) of unit norm, NAME.tokens.npy is
    uint16 (n, context).
    """

    images: Folder
    screen: Folder
    clip: Folder
    out: Folder
    batch_size: int = 256
    device: str = "cpu"

    def __call__(self, name: str) -> ShardOutput:
        clip = load_clip(self.clip.url, self.device)
        screened = read_table(self.screen, f"{name}.parquet", ["key", "kept"])
        kept = screened.column("kept").to_numpy(zero_copy_only=False).astype(bool)
        image = read_array(self.screen, f"{name}.image.npy")[kept]
        keys = screened.column("key").to_numpy(zero_copy_only=False)[kept].tolist()
        index = index_tar(self.images, f"{name}.tar")
        with self.images.open(f"{name}.tar") as file:
            captions = {key: read_at(file, files["txt"]).decode() for key, files in index.items()}
            native = {key: _is_native(json.loads(read_at(file, files["json"]))) for key, files in index.items()}
        if missing := [key for key in keys if key not in captions]:
            path = self.images.path(name)
            raise UserError(f"{path}.tar lacks {missing[0]}, which image-screen kept: rerun image-screen.")
        tokens, text = [np.zeros((0, clip.context), np.uint16)], [np.zeros((0, clip.dim), np.float32)]
        for part in _batches(keys, self.batch_size):
            batch = clip.tokenize([captions[key] for key in part])
            tokens.append(batch.numpy().astype(np.uint16))
            text.append(clip.encode_text(batch.to(self.device)).cpu().numpy())
        arrays = {"image": image, "text": np.concatenate(text).astype(np.float16), "tokens": np.concatenate(tokens)}
        for kind, array in arrays.items():
            write_array(self.out, f"{name}.{kind}.npy", array)
        places = np.array([index[key]["jpg"] for key in keys], np.uint64).reshape(-1, 2)
        columns: dict[str, Any] = {
            "key": pa.array(keys, pa.string()),
            "offset": places[:, 0],
            "size": places[:, 1].astype(np.uint32),
        }
        columns["native"] = pa.array([native[key] for key in keys], pa.bool_())
        write_table(self.out, f"{name}.parquet", pa.table(columns))
        files = (*(f"{name}.{kind}.npy" for kind in arrays), f"{name}.parquet")
        # `image-screen` counts the rows it dropped: here every row that comes in goes out.
        counts = {"rows_in": len(keys), "rows_out": len(keys), "dropped": {}, "failed": {}}
        return ShardOutput(counts | {"native": sum(native[key] for key in keys)}, files)


def _is_native(metadata: dict[str, Any]) -> bool:
    """Says whether a picture was at least as large before `image-download` brought it to size."""
    sides = [(metadata.get(f"original_{side}"), metadata.get(side)) for side in ("width", "height")]
    return all(before is None or after is None or before >= after for before, after in sides)


def decode_rgb(data: bytes, what: str) -> np.ndarray:
    """Returns uint8 (H, W, 3) RGB. Raises UserError naming `what` when the bytes are not a picture."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            return np.asarray(picture.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"{what} is not a readable picture ({error}): rerun image-download.") from None


def _embed(
    clip: ClipModel, pictures: list[tuple[str, bytes]], wanted: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns embeddings float32 (n, d), and for the `wanted` rows the scores taken from pixels (NaN elsewhere).

    Pictures of one size share a forward pass.
    """
    pixels = [torch.from_numpy(decode_rgb(data, what).copy()).permute(2, 0, 1) for what, data in pictures]
    embedding = np.zeros((len(pixels), clip.dim), np.float32)
    scores = {head: np.full(len(pixels), np.nan) for head in clip.pixel_heads}
    for shape in sorted({tuple(p.shape) for p in pixels}):
        rows = np.array([i for i, p in enumerate(pixels) if tuple(p.shape) == shape])
        batch = torch.stack([pixels[i] for i in rows]).to(clip.device)
        embedding[rows] = clip.encode_image(batch).cpu().numpy()
        asked = np.flatnonzero(wanted[rows])
        if len(asked):
            for head, values in clip.pixel_scores(batch[torch.from_numpy(asked).to(clip.device)]).items():
                scores[head][rows[asked]] = values.double().cpu().numpy()
    return embedding, scores


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
