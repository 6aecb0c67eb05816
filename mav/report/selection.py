"""What `video-select` and `image-select` keep and drop, as a contact sheet for each reason."""

import io
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image

from mav.data.images.pictures import FORMATS
from mav.data.shards import index_tar, read_at, read_table
from mav.data.videos.video_io import read_frames
from mav.report.collect import data_url
from mav.report.templates import rendered
from mav.storage import Artifact, Folder
from mav.storage.ledger import ledgers

Row = tuple[str, str]  # the shard and the key of a clip or a picture
SHARDS = 32  # looked through for examples
EXAMPLES = 6  # of each reason
FRAMES, HEIGHT = 4, 64  # of a clip on its sheet; of all that is on a sheet, pixels
WIDEST = 8  # times the height; of what is wider, such as a banner, the middle is shown
WIDTH = 400  # of a sheet, where it holds several in a line
GAP = 2


def sheets(shards: Artifact | None, selection: Artifact | None) -> list[dict[str, Any]]:
    """Returns {"reason", "rows", "sheet"} for each reason of the dropped rows, and for kept ones as reason "kept"."""
    if shards is None or selection is None:
        return []
    counts = selection.manifest.counts
    wanted = {"kept": counts.get("rows_out", 0), **counts.get("dropped", {})}
    chosen: dict[str, list[tuple[Row, ...]]] = {reason: [] for reason, number in wanted.items() if number}
    for name in [name for name in selection.files(".parquet") if not ledgers([name])][:SHARDS]:
        for row in read_table(selection.folder, name, ["key", "reason"]).to_pylist():
            example = ((name.removesuffix(".parquet"), row["key"]),)
            examples = chosen.get(row["reason"] or "kept", [])
            if len(examples) < EXAMPLES and example not in examples:  # a clip may have several shots
                examples.append(example)
    return contact_sheets(shards.folder, chosen, wanted)


def parts(selection: Artifact | None) -> dict[str, Any]:
    """Returns what `video-select` counts of "shots" (found, kept and short) and how many clips it has "cropped".

    None stands for what the recipe did not ask for.
    """
    counts = selection.manifest.counts if selection else {}
    return {name: counts.get(name) for name in ("shots", "cropped")}


def contact_sheets(
    shards: Folder, chosen: Mapping[str, Sequence[tuple[Row, ...]]], counts: Mapping[str, int]
) -> list[dict[str, Any]]:
    """Returns {"reason", "rows", "sheet"}, the sheet as an address, for each reason that has examples.

    An example is one row, or several that belong beside each other. shards: the folder of the tars. counts: the rows of
    each reason.
    """
    shown = _shown(shards, {row for examples in chosen.values() for example in examples for row in example})
    found = []
    for reason, examples in chosen.items():
        strips = [np.concatenate([shown[row] for row in example], axis=1) for example in examples]
        if strips:
            found.append({"reason": reason, "rows": counts[reason], "sheet": _sheet(strips)})
    return found


def sweep_page(recipe: str, key: str, what: str, values: Mapping[str, list[dict[str, Any]]]) -> bytes:
    """Returns the page of `mav sweep`, with what `contact_sheets` returned for each value of the threshold.

    what: "clips" or "pictures".
    """
    context = {"recipe": recipe, "key": key, "what": what, "values": values}
    return rendered("sweep.html", context)


def _shown(shards: Folder, rows: Iterable[Row]) -> dict[Row, np.ndarray]:
    """Returns what is shown of each row: a picture, or frames of a clip from its first to its last."""
    found = {}
    for shard, group in itertools.groupby(sorted(rows), key=lambda row: row[0]):
        index = index_tar(shards, f"{shard}.tar")
        with shards.open(f"{shard}.tar") as file:
            for row in group:
                files = index[row[1]]
                if "jpg" in files:
                    with Image.open(io.BytesIO(read_at(file, files["jpg"])), formats=FORMATS) as picture:
                        found[row] = _strip(np.asarray(picture.convert("RGB"))[None])
                    continue
                place = next(place for extension, place in files.items() if extension != "json")
                metadata = json.loads(read_at(file, files["json"]))
                first, last = metadata.get("first", 0), metadata.get("first", 0) + metadata["frames"] - 1
                spread = np.linspace(first, last, FRAMES).round().astype(int)
                found[row] = _strip(read_frames(read_at(file, place), spread))
    return found


def _strip(frames: np.ndarray) -> np.ndarray:
    height, width = frames.shape[1:3]
    cut = max(width - WIDEST * height, 0) // 2
    size = max(round((width - 2 * cut) * HEIGHT / height), 1), HEIGHT
    frames = frames[:, :, cut : width - cut]
    return np.concatenate([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames], axis=1)


def _sheet(strips: Sequence[np.ndarray]) -> str:
    """Returns the address of a picture with these, as many in a line as there is room for."""
    lines: list[list[np.ndarray]] = []
    left = 0
    for strip in strips:
        left -= strip.shape[1] + GAP
        if left < 0 or not lines:
            lines.append([])
            left = WIDTH - strip.shape[1]
        lines[-1].append(np.pad(strip, ((0, GAP), (0, GAP), (0, 0)), constant_values=255))
    rows = [np.concatenate(line, axis=1)[:, :-GAP] for line in lines]
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(padded)).save(buffer, "JPEG", quality=80)
    return data_url("image/jpeg", buffer.getvalue())
