"""Where the samples of an artifact's tars are, known without opening the tars.

`video-shards` leaves the places of a shard's clips in its row of the stage's ledger, 24 bytes a clip, so that 41,400
tars in a bucket take one read. The processes of a machine share what one of them has read. Artifacts of older releases
have no places; their tars' headers are read instead, which is slow on an object store.
"""

import fcntl
import functools
import hashlib
import json
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mav.data.shards import Index, index_tar, tar_names
from mav.errors import UserError
from mav.storage import MANIFEST, Artifact, Folder
from mav.storage.ledger import Columns, json_object, ledger_rows, ledgers

INDEXING = 16  # tars whose headers are read at a time: on an object store this is waiting, not work
PLACE = np.dtype([("video", "<u8"), ("size", "<u4"), ("json", "<u8"), ("json_size", "<u4")])
# What is trained on of a clip, by its number in its tar: first and last frame, and left, top, right and bottom of what
# is used of the picture, in 255ths of its width and height.
PART = np.dtype([("clip", "<u4"), ("first", "<u4"), ("last", "<u4"), ("box", "u1", 4)])
BOX = (0, 0, 255, 255)  # the whole picture
PLACE_OF_SHARD = np.dtype([("shard", "<u4"), *((name, PLACE[name]) for name in PLACE.names or ())])


@dataclass(frozen=True)
class ClipPlaces:
    """The tars of an artifact (sorted), the number of samples in each, and the place of each clip (PLACE_OF_SHARD).

    chosen: what `video-select` keeps of the clips (PART), by their number in `where`, which processes share; None: all
    of each. Then `sizes` counts these, of the tars that have any: a clip may give several samples.
    """

    names: list[str]
    sizes: list[int]
    where: np.ndarray
    chosen: np.ndarray | None = None

    def place(self, index: int) -> np.void:
        """Returns the place of the clip of sample `index`."""
        found: np.void = self.where[index if self.chosen is None else self.chosen["clip"][index]]
        return found

    def part(self, index: int) -> np.void | None:
        """Returns what is used of the clip of sample `index`; None: all of it."""
        return None if self.chosen is None else self.chosen[index]


def pack_places(index: Index) -> bytes:
    """Returns the places of a tar's clips as an array of PLACE, in its order. Raises ValueError for half a clip."""
    rows = []
    for key, files in index.items():
        video = next((place for extension, place in files.items() if extension != "json"), None)
        if video is None or "json" not in files:
            raise ValueError(f"holds no whole clip {key}")
        rows.append((*video, *files["json"]))
    return np.array(rows, PLACE).tobytes()


def clip_places(shards: Folder, selection: Folder | None = None) -> ClipPlaces:
    """Returns the places of an artifact's clips, which remote storage is asked for once on each machine.

    selection: the artifact of `video-select`; what it dropped is left out.
    """
    found = _shared_places(shards, _manifest_ledgers(shards))
    return found if selection is None else _selected(found, selection)


def _selected(found: ClipPlaces, selection: Folder) -> ClipPlaces:
    """Leaves out what `video-select` dropped."""
    read: Columns = {"shard": "{}.tar".format, "places": functools.partial(np.frombuffer, dtype=PART)}
    kept = {tar: parts for name in _manifest_ledgers(selection) for tar, parts in ledger_rows(selection, read, name)}
    chosen, sizes, first = [np.zeros(0, PART)], [], 0
    for name, size in zip(found.names, found.sizes, strict=True):
        if name not in kept:
            raise UserError(f"{selection.url} does not know {name} of the clips' shards: rerun video-select.")
        if kept[name] is not None and len(kept[name]):
            chosen.append(kept[name].copy())
            chosen[-1]["clip"] += np.uint32(first)
            sizes.append(len(chosen[-1]))
        first += size
    return ClipPlaces(found.names, sizes, found.where, np.concatenate(chosen))


def _shared_places(shards: Folder, known: dict[str, str]) -> ClipPlaces:
    if not known or shards.local:
        return _places(shards, list(known))
    digest = hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]
    own = Path(tempfile.gettempdir(), f"mav-places-{os.getuid()}")
    own.mkdir(mode=0o700, exist_ok=True)
    if own.stat().st_uid != os.getuid():
        raise UserError(f"{own} belongs to another user: remove it, or name another temporary folder in TMPDIR.")
    place = own / digest
    with open(own / f"{digest}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the others wait for the first
        with suppress(FileNotFoundError):  # nobody has read them, or the system has cleared some away
            return _kept_places(place)
        found = _places(shards, list(known))
        half = Path(tempfile.mkdtemp(dir=own))
        np.save(half / "where.npy", found.where)
        (half / "shards.json").write_text(json.dumps([found.names, found.sizes]))
        shutil.rmtree(place, ignore_errors=True)
        half.rename(place)
        return _kept_places(place)


def _kept_places(place: Path) -> ClipPlaces:
    names, sizes = json.loads((place / "shards.json").read_text())
    return ClipPlaces(names, sizes, np.load(place / "where.npy", mmap_mode="r"))


def row_counts(folder: Folder, kind: str) -> dict[str, int]:
    """Returns the rows of this kind (a name of the counts) of each shard; empty where no ledger has counted them."""
    counted = {
        shard: counts.get(kind)
        for name in _manifest_ledgers(folder)
        for shard, counts in ledger_rows(folder, {"shard": str, "counts": json_object}, name)
    }
    return {} if None in counted.values() else counted


def _places(shards: Folder, names: list[str]) -> ClipPlaces:
    read: Columns = {"shard": "{}.tar".format, "places": functools.partial(np.frombuffer, dtype=PLACE)}
    found = {tar: where for name in names for tar, where in ledger_rows(shards, read, name)}
    if not found or any(where is None for where in found.values()):
        tars = tar_names(shards)
        with ThreadPoolExecutor(INDEXING) as pool:
            found = dict(zip(tars, pool.map(functools.partial(_read_tar, shards), tars), strict=True))
    ordered = sorted(found)  # as a listing has them, which is the order of samples
    where = np.empty(sum(map(len, found.values())), PLACE_OF_SHARD)
    at = 0
    for number, name in enumerate(ordered):
        part = found.pop(name)
        rows = where[at : at + len(part)]
        rows["shard"] = number
        for field in PLACE.names or ():
            rows[field] = part[field]
        at += len(part)
        found[name] = part[:0]
    sizes = np.bincount(where["shard"], minlength=len(ordered))
    return ClipPlaces(ordered, sizes.tolist(), where)


def _read_tar(shards: Folder, name: str) -> np.ndarray:
    try:
        return np.frombuffer(pack_places(index_tar(shards, name)), dtype=PLACE)
    except ValueError as error:
        raise UserError(f"{shards.path(name)} {error}: rerun the stage that made it.") from None


def _manifest_ledgers(folder: Folder) -> dict[str, str]:
    """Returns the artifact's ledgers with their digests; none where there is no manifest."""
    if not folder.exists(MANIFEST):
        return {}
    files = Artifact.open(folder).manifest.files
    return {name: str(files[name]["sha256"]) for name in ledgers(files)}
