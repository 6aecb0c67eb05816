"""`image-screen` and `image-embed`: CLIP over downloaded images, one shard a call.

`image-screen` embeds every downloaded picture once, estimates the scores its table did not have, and screens again with them.
`image-embed` keeps the survivors' image embeddings and adds what the prior reads: tokens and text embeddings.
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

from mav.data.shards import ShardOutput, read_array, read_table, read_tar, tar_names, write_array, write_table
from mav.errors import UserError
from mav.models.clip import HEADS, ClipModel
from mav.recipes import Screening
from mav.storage import Folder

REASONS = {"punsafe": "nsfw", "pwatermark": "watermark"}  # score -> why a row at or above its threshold is dropped


def shard_names(images: Folder) -> list[str]:
    """Names of image-download's shards, sorted, without `.tar`."""
    return sorted(name.removesuffix(".tar") for name in tar_names(images))


@functools.cache
def load_clip(url: str, device: str) -> ClipModel:
    """The CLIP at this artifact, loaded once a process."""
    return ClipModel.load(Folder(url), device)


@dataclass(frozen=True)
class ScreenWork:
    """Shard work of `image-screen`: NAME.image.npy (float16 (n, d), every row of the tar) and NAME.parquet.

    Columns: key; punsafe and pwatermark, the table's or estimated; scored, whether one was estimated; kept; reason (null when kept).
    """

    images: Folder
    clip: Folder
    out: Folder
    screening: Screening
    batch_size: int = 256
    device: str = "cpu"

    def __call__(self, name: str) -> ShardOutput:
        clip = load_clip(self.clip.url, self.device)
        keys, known = [], []
        embeddings = [np.zeros((0, clip.dim), np.float32)]
        of_pixels: dict[str, list[np.ndarray]] = {}
        for rows in _batches(read_tar(self.images, f"{name}.tar"), self.batch_size):
            facts = [json.loads(files["json"]) for _, files in rows]
            keys += [key for key, _ in rows]
            known.append(np.array([[fact.get(head) for head in HEADS] for fact in facts], np.float64))
            asked = bool(clip.pixel_heads) and self.screening.unknown_scores == "score"
            wanted = np.asarray(np.isnan(known[-1]).any(axis=1) & asked)
            embedded, scores = _embed(clip, [(f"{name}.tar: {key}", files["jpg"]) for key, files in rows], wanted)
            embeddings.append(embedded)
            for head, values in scores.items():
                of_pixels.setdefault(head, []).append(values)
        embedding = np.concatenate(embeddings)
        score = np.concatenate([np.zeros((0, len(HEADS))), *known])
        unknown = np.isnan(score)
        if self.screening.unknown_scores == "score":
            estimates = {
                head: values.double().cpu().numpy()
                for head, values in clip.scores(torch.from_numpy(embedding).to(self.device)).items()
            }
            estimates |= {head: np.concatenate(values) for head, values in of_pixels.items()}
            for column, head in enumerate(HEADS):
                if head in estimates:
                    score[:, column] = np.where(unknown[:, column], estimates[head], score[:, column])
        scored = (unknown & ~np.isnan(score)).any(axis=1)
        reasons = [self._reason(row) for row in score]
        table = pa.table(
            {
                "key": pa.array(keys, pa.string()),
                **{
                    head: pa.array(score[:, i], pa.float32(), mask=np.isnan(score[:, i]))
                    for i, head in enumerate(HEADS)
                },
                "scored": pa.array(scored),
                "kept": pa.array([reason is None for reason in reasons], pa.bool_()),
                "reason": pa.array(reasons, pa.string()),
            }
        )
        write_array(self.out, f"{name}.image.npy", embedding.astype(np.float16))
        write_table(self.out, f"{name}.parquet", table)
        dropped = {reason: reasons.count(reason) for reason in sorted({r for r in reasons if r})}
        counts = {
            "rows_in": len(keys),
            "rows_out": reasons.count(None),
            "dropped": dropped,
            "failed": {},
            "scored": int(scored.sum()),
        }
        return ShardOutput(counts, (f"{name}.image.npy", f"{name}.parquet"))

    def _reason(self, score: np.ndarray) -> str | None:
        """Why a row goes, or None. A score that stays unknown goes too, unless the recipe keeps such rows."""
        thresholds = (self.screening.punsafe_threshold, self.screening.pwatermark_threshold)
        for head, value, threshold in zip(HEADS, score, thresholds, strict=True):
            if value >= threshold:
                return REASONS[head]
        return "unknown_score" if np.isnan(score).any() and self.screening.unknown_scores != "keep" else None


@dataclass(frozen=True)
class EmbedWork:
    """Shard work of `image-embed`, kept rows only, in the tar's order.

    NAME.parquet (key), NAME.image.npy and NAME.text.npy (float16 (n, d), unit norm), NAME.tokens.npy (uint16 (n, context)).
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
        captions = {key: files["txt"].decode() for key, files in read_tar(self.images, f"{name}.tar")}
        missing = [key for key in keys if key not in captions]
        if missing:
            raise UserError(
                f"{self.images.path(name)}.tar lacks {missing[0]}, which image-screen kept: rerun image-screen."
            )
        tokens = [np.zeros((0, clip.context), np.uint16)]
        text = [np.zeros((0, clip.dim), np.float32)]
        for part in _batches(keys, self.batch_size):
            batch = clip.tokenize([captions[key] for key in part])
            tokens.append(batch.numpy().astype(np.uint16))
            text.append(clip.encode_text(batch.to(self.device)).cpu().numpy())
        arrays = {"image": image, "text": np.concatenate(text).astype(np.float16), "tokens": np.concatenate(tokens)}
        for kind, array in arrays.items():
            write_array(self.out, f"{name}.{kind}.npy", array)
        write_table(self.out, f"{name}.parquet", pa.table({"key": pa.array(keys, pa.string())}))
        files = (*(f"{name}.{kind}.npy" for kind in arrays), f"{name}.parquet")
        # What image-screen dropped is accounted for there: here every row that comes in goes out.
        return ShardOutput({"rows_in": len(keys), "rows_out": len(keys), "dropped": {}, "failed": {}}, files)


def decode_rgb(data: bytes, what: str) -> np.ndarray:
    """uint8 (H, W, 3) RGB. Raises UserError naming `what` when it is not a picture."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return np.asarray(picture.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"{what} is not a readable picture ({error}): rerun image-download.") from None


def _embed(
    clip: ClipModel, pictures: list[tuple[str, bytes]], wanted: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """float32 (n, d) in the order given, and for the `wanted` rows the scores taken from pixels (NaN elsewhere); pictures of one size share
    a forward."""
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
