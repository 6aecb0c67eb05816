"""Ledgers: which shards a stage made, with their counts, their files and the digests of those files. One row a shard.

A stage of 230,000 shards has half a million files. Its manifest names its ledgers, and they name the shards' files: so
a manifest is read in a moment however large the stage, and nobody has to hold the names of all files at once.
`shards.parquet` is of the stage itself, `shards-retryP.parquet` of retry pass P over it.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mav.errors import UserError

if TYPE_CHECKING:
    from mav.storage.folder import Folder

LEDGER = "shards.parquet"
NAMES = re.compile(r"shards(?:-retry(\d+))?\.parquet")

# {"shard", "counts", "files": {name: {"bytes", "sha256"}}}, and "deadlines" of a shard that was made under others than
# the artifact's manifest names. They stand in the column of the counts. "places" (base64) says where a shard's samples
# are: bytes in a column of their own, which only the readers of samples read.
Marker = dict[str, Any]
Columns = Mapping[str, Callable[[Any], Any]]  # of a ledger, and how a cell of each is read


def retry_ledger(number: int) -> str:
    """The ledger of retry pass `number` (from 1)."""
    return f"shards-retry{number}.parquet"


def retry_shard(base: str, number: int) -> str:
    """Returns the name of the supplementary shard that retry pass `number` (from 1) makes of shard `base`."""
    return f"{base}-retry{number}"


def base_shard(name: str) -> str:
    """Returns the name of the shard whose rows a supplementary shard fetched again; other names stay as they are."""
    return name.partition("-retry")[0]


def retry_number(name: str) -> int:
    """Returns the number of the retry pass that made a shard; 0: the stage's first pass."""
    return int(name.partition("-retry")[2] or 0)


def ledgers(names: Iterable[str]) -> list[str]:
    """The ledgers among these files of an artifact, in the order in which they were written."""
    found = [(int(match[1] or 0), name) for name in names if (match := NAMES.fullmatch(name))]
    return [name for _, name in sorted(found)]


def read_ledger(folder: Folder, name: str = LEDGER, counts: bool = True) -> Iterator[Marker]:
    """The shards of a ledger, in order; without their counts where those are not asked for. Raises as `ledger_rows`."""
    read: Columns = {"shard": str, "files": json_object, **({"counts": json_object} if counts else {})}
    for shard, files, *told in ledger_rows(folder, read, name):
        known = told[0] if told else {}
        deadlines = {"deadlines": known.pop("deadlines")} if "deadlines" in known else {}
        yield {"shard": shard, "counts": known, "files": files} | deadlines


def json_object(text: str) -> dict[str, Any]:
    """Reads a cell that holds a JSON object. Raises ValueError for any other."""
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError(f"{text[:40]} is no JSON object")
    return found


def ledger_rows(folder: Folder, columns: Columns, name: str = LEDGER) -> Iterator[tuple[Any, ...]]:
    """Yields these columns of a ledger, shard by shard, each as its function reads it.

    None stands for the places that an older release did not enter. Raises UserError for a ledger that is damaged, and
    OSError when there is none or storage does not answer, which says nothing about it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # A remote ledger is read in one request.
        with folder.open(name) if folder.local else io.BytesIO(folder.read_bytes(name)) as file:
            for batch in pq.ParquetFile(file).iter_batches(columns=list(columns), batch_size=1000):
                found = {"places": [None] * len(batch)} | batch.to_pydict()
                for row in zip(*(found[column] for column in columns), strict=True):
                    values = zip(columns.values(), row, strict=True)
                    yield tuple(None if value is None else read(value) for read, value in values)
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        if isinstance(error, OSError) and error.errno:  # pyarrow's own has no number
            raise
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise UserError(f"{folder.path(name)} is not a readable ledger ({reason}): rerun its stage.") from None


def write_ledger(out: Folder, batches: Iterable[Sequence[Marker]]) -> None:
    """Writes `shards.parquet` of shards in order, some at a time. No times, no attempts: equal shards, equal bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [("shard", pa.string()), ("rows_in", pa.int64()), ("rows_out", pa.int64()),
         ("counts", pa.string()), ("files", pa.string()), ("digest", pa.string()), ("places", pa.binary())]
    )  # fmt: skip
    with out.create(LEDGER) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for markers in batches:
            files = [json.dumps(marker["files"], sort_keys=True) for marker in markers]
            columns = [
                [marker["shard"] for marker in markers],
                [int(marker["counts"].get("rows_in", 0)) for marker in markers],
                [int(marker["counts"].get("rows_out", 0)) for marker in markers],
                [json.dumps(_with_deadlines(marker), sort_keys=True) for marker in markers],
                files,
                [hashlib.sha256(text.encode()).hexdigest() for text in files],
                [base64.b64decode(marker["places"]) if "places" in marker else None for marker in markers],
            ]
            writer.write_table(pa.table(columns, schema=schema))


def _with_deadlines(marker: Marker) -> dict[str, Any]:
    return marker["counts"] | ({"deadlines": marker["deadlines"]} if "deadlines" in marker else {})
