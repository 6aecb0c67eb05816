"""`make bench-filter`: a LAION-shaped table screened into shards, on one core, beside a plain copy of it by pyarrow.

`pyarrow copy` reads all columns and writes all rows, on one thread, and looks at nothing. Ours reads, screens (NSFW,
watermark, sizes, 403 toxic words, duplicates), counts, and writes keyed shards and the dropped rows. `pandas` is what
users do: `str.contains` with one expression of all words, on a part of the table. Every measure runs in a process of
its own that is held to one thread.

The table's `hash` is, as in LAION's joined tables, MurmurHash3 of address and caption, of which screening makes use to
find duplicates (one row in a thousand); the same is measured with the column left aside, as with tables that have none
or a wrong one.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from harness import Row, in_turn, rate, report

GROUP = 250_000  # rows of a row group
PANDAS_ROWS = 50_000
WORDS = 403
Measured = dict[str, float]


def vocabulary(rng: np.random.Generator, size: int = 30_000) -> Any:
    """Made-up words, one in fifty of the rarer ones with a letter or sign beyond ASCII."""
    import pyarrow as pa

    letters = np.array(list("eeeeaaaoootttnnniiissssrrrhhlldducmfpgwybvkxjqz"))
    words = ["".join(rng.choice(letters, n)) for n in rng.integers(2, 11, size)]
    for i in range(60, size, 50):
        words[i] += str(rng.choice(list("éèüöñçøåабв中\u2019\u2013®")))
    for i in range(3, size, 7):
        words[i] = words[i].capitalize()
    return pa.array(words)


def rows(rng: np.random.Generator, words: Any, count: int, first: int) -> Any:
    """Rows with the columns, lengths and shares of LAION's joined tables: captions of 57 characters, addresses of 99, 6
    % beyond ASCII."""
    import mmh3
    import pyarrow as pa
    import pyarrow.compute as pc

    offsets = np.concatenate([[0], np.cumsum(rng.integers(3, 16, count))]).astype(np.int32)
    picks = np.minimum(rng.zipf(1.15, offsets[-1]) - 1, len(words) - 1)
    caption = pc.binary_join(pa.ListArray.from_arrays(offsets, words.take(pa.array(picks))), " ")
    host = words.take(pa.array(rng.integers(0, 3000, count)))
    place = [
        pa.array(values).cast("string") for values in (rng.integers(0, 2**62, count), np.arange(first, first + count))
    ]
    address = pc.binary_join_element_wise(
        "https://cdn.", host, ".com/wp-content/uploads/", place[0], "/picture-", place[1], "-640x480.jpg", ""
    )
    score = {"punsafe": rng.beta(0.1, 3, count), "pwatermark": rng.beta(0.5, 1.8, count)}
    places = np.arange(count)
    again = rng.integers(1, count, count // 1000)
    places[again] = rng.integers(0, again)
    address, caption = address.take(pa.array(places)), caption.take(pa.array(places))
    return pa.table(
        {
            "URL": address,
            "TEXT": caption,
            "WIDTH": pa.array(rng.integers(64, 2000, count), pa.int32()),
            "HEIGHT": pa.array(rng.integers(64, 2000, count), pa.int32()),
            "similarity": rng.random(count) * 0.2 + 0.28,
            "hash": [
                mmh3.hash64(url + text)[0] for url, text in zip(address.to_pylist(), caption.to_pylist(), strict=True)
            ],
            **{
                name: pa.array(values.astype(np.float32), mask=rng.random(count) < 0.02)
                for name, values in score.items()
            },
        }
    )


def make_table(path: str, count: int) -> None:
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    words = vocabulary(rng)
    writer = None
    for first in range(0, count, GROUP):
        table = rows(rng, words, min(GROUP, count - first), first)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def one_thread() -> None:
    import pyarrow as pa

    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)


def copy(table: str, folder: str) -> float:
    import pyarrow.parquet as pq

    began = time.process_time()
    pq.write_table(pq.read_table(table, use_threads=False), f"{folder}/copy.parquet")
    return time.process_time() - began


def screened(table: str, folder: str) -> float:
    from filters.screen import MetadataWork
    from filters.toxicity import toxic_words
    from mav.recipes import Screening
    from mav.storage import Folder

    rule = Screening(word_lists=(word_list(folder),))
    toxic_words(
        rule.word_lists, rule.word_exceptions, rule.obfuscations
    )  # compiled once a process, however many parts it screens
    work = MetadataWork((table,), rule, 10_000, Folder(f"{folder}/out"))
    began = time.process_time()
    counts = work("00000").counts
    seconds = time.process_time() - began
    if counts["rows_in"] != counts["rows_out"] + sum(counts["dropped"].values()):
        raise SystemExit(f"rows are missing: {counts}")
    return seconds


def unaided(table: str, folder: str) -> float:
    """`screened`, as if the table had no `hash`."""
    with mock.patch("filters.screen.hash_column", return_value=None):
        return screened(table, folder)


def pandas(table: str, folder: str) -> float:
    """The same checks as users write them, on the first rows of the table."""
    import re

    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    words = Path(word_list(folder)).read_text().split("\n")
    frame = pa.Table.from_batches([next(pq.ParquetFile(table).iter_batches(PANDAS_ROWS))]).to_pandas()
    began = time.process_time()
    toxic = re.compile(r"\b(?:" + "|".join(re.escape(word) for word in words) + r")\b", re.IGNORECASE)
    kept: pd.DataFrame = frame[(frame.punsafe < 0.5) & (frame.pwatermark < 0.5) & ~frame.TEXT.str.contains(toxic)]
    kept.drop_duplicates(["URL", "TEXT"]).to_parquet(f"{folder}/pandas.parquet")
    return (time.process_time() - began) / len(frame)


def word_list(folder: str) -> str:
    """The first so many phrases of the shipped English list, as a file."""
    from filters.toxicity import load_words

    path = Path(folder) / "words.txt"
    if not path.exists():
        path.write_text("\n".join(load_words(("en",))[:WORDS]))
    return str(path)


def apart(kind: str, table: str) -> Measured:
    """One measure in a process of its own: seconds, and the most memory it took."""
    with tempfile.TemporaryDirectory(prefix="bench-filter-") as folder:
        command = [sys.executable, __file__, "--measure", kind, table, folder]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        found: Measured = json.loads(
            subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout.splitlines()[-1]
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument(
        "--scaling",
        type=int,
        nargs=2,
        default=[1_000_000, 20_000_000],
        metavar=("FEW", "MANY"),
        help="cost a row at both sizes",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        kind, table, folder = options.measure
        one_thread()
        seconds = {"copy": copy, "ours": screened, "unaided": unaided, "pandas": pandas}[kind](table, folder)
        print(json.dumps({"seconds": seconds, "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
        return
    memory: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="bench-filter-tables-") as name:
        table = f"{name}/{options.rows}.parquet"
        make_table(table, options.rows)

        def measured(kind: str) -> float:
            found = apart(kind, table)
            memory[kind] = max(memory.get(kind, 0.0), found["memory_mb"])
            return options.rows / found["seconds"] if kind != "pandas" else 1 / found["seconds"]

        rates = in_turn(
            {kind: (lambda kind=kind: measured(kind)) for kind in ("copy", "ours", "unaided", "pandas")}, options.rounds
        )
        cost, most = {}, {}
        for count in options.scaling:
            sized = f"{name}/{count}.parquet"
            if not os.path.exists(sized):
                make_table(sized, count)
            found = apart("ours", sized)
            cost[count], most[count] = found["seconds"] / count * 1e6, found["memory_mb"]
            if sized != table:
                os.unlink(sized)
    few, many = options.scaling
    report(
        "filter",
        [
            rate("screening", rates["ours"], rates["copy"], "pyarrow copy", "rows/s"),
            rate("screening, `hash` left aside", rates["unaided"], rates["copy"], "pyarrow copy", "rows/s"),
            rate("screening", rates["ours"], rates["pandas"], "pandas", "rows/s"),
            Row("peak memory", memory["ours"], memory["copy"], "pyarrow copy", memory["copy"] / memory["ours"], "MB"),
        ],
        rows_screened=options.rows,
        microseconds_a_row={f"{few:,} rows": round(cost[few], 3), f"{many:,} rows": round(cost[many], 3)},
        growth=round(cost[many] / cost[few], 3),
        memory_mb={f"{count:,} rows": round(value) for count, value in most.items()},
    )


if __name__ == "__main__":
    main()
