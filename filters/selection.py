"""What `video-select` and `image-select` have in common: near duplicates, the first reason of a row, the accounting.

Both read what other stages have stored, and nothing else. `Rows` says what they choose from.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from filters.groups import GroupWork, Rows, ScoreWork
from filters.near_duplicates import CellWork, CentreWork, PairWork, buckets
from filters.near_hashes import HashPairWork, HashWork
from mav.data.shards import ShardOutput, read_array, write_table
from mav.storage import Folder

NEAR_DUPLICATE = "near_duplicate"
Work = Callable[[str], ShardOutput]
# Does a pass over shards, and returns the folder it wrote into. It is given the pass's name, and a function from that
# folder to the work and the names of its shards.
Pass = Callable[[str, Callable[[Folder], tuple[Work, Sequence[str]]]], Folder]


def near_duplicates(
    rows: Rows, one_pass: Pass, bits: int, embeds: Folder | None = None, cosine: float = 0.0
) -> Folder | None:
    """Returns what `filters.groups.GroupWork` makes of the near duplicates, None where neither kind is asked for.

    bits: the hashes of near duplicates differ in fewer; 0: hashes are not compared. cosine: of embeddings, from which
    on rows are near duplicates; 0: they are not compared.
    """
    names, found = tuple(rows.names()), list[tuple[Folder, str]]()
    if bits:
        hashes = one_pass("hashes", lambda out: (HashWork(rows, out), names))

        def hash_pairs(out: Folder) -> tuple[Work, Sequence[str]]:
            work = HashPairWork(names, hashes, bits, out)
            return work, work.names()

        found.append((one_pass("hash-pairs", hash_pairs), ".npy"))
    if cosine and embeds is not None:
        here = embeds
        centres = one_pass("centres", lambda out: (CentreWork(here, names, out), ["centres"]))
        cells = one_pass("cells", lambda out: (CellWork(here, names, centres, cosine, out), names))
        pairs = one_pass("pairs", lambda out: (PairWork(names, cells, cosine, out), buckets(centres)))
        found += [(cells, "/equal.npy"), (pairs, ".npy")]
    if not found:
        return None
    scores = one_pass("scores", lambda out: (ScoreWork(rows, out), names))
    return one_pass("groups", lambda out: (GroupWork(names, scores, tuple(found), out), ["groups"]))


def in_threads(place: Folder, threads: int) -> Pass:
    """Returns a function that does a pass in this process, in a folder of its own within `place`."""

    def one_pass(name: str, make: Callable[[Folder], tuple[Work, Sequence[str]]]) -> Folder:
        out = place.child(name)
        work, shards = make(out)
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, shards))
        return out

    return one_pass


def reasons_of(rows: Rows, groups: Folder | None, name: str, scores: pa.Table) -> dict[str, np.ndarray]:
    """Returns for each reason which rows of a shard have it, bool (rows,), in the order of the checks.

    scores: what `rows.read` returns. groups: what `near_duplicates` returns.
    """
    near = np.zeros(len(scores), bool)
    if groups is not None:
        near[read_array(groups, f"{name}.npy")["place"]] = True
    return {**rows.failures(scores), NEAR_DUPLICATE: near}


def write_choice(
    out: Folder, name: str, scores: pa.Table, found: Mapping[str, np.ndarray], extra: Sequence[str] = ()
) -> np.ndarray:
    """Writes NAME.parquet with key, kept and reason (null when kept) of every row, and the extra columns of `scores`.

    Returns which rows are kept, bool (rows,). found: as `reasons_of` returns it.
    """
    reasons = first_reasons(found)
    kept = np.array([reason is None for reason in reasons], bool)
    columns = {"key": scores.column("key"), "kept": pa.array(kept, pa.bool_())}
    columns |= {"reason": pa.array(reasons, pa.string()), **{column: scores.column(column) for column in extra}}
    write_table(out, f"{name}.parquet", pa.table(columns))
    return kept


def counts_of(found: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns the row counts of a shard, each dropped row under its first reason. found: as `reasons_of` returns it."""
    dropped = tally(first_reasons(found))
    rows = len(next(iter(found.values())))
    return {"rows_in": rows, "rows_out": rows - sum(dropped.values()), "dropped": dropped, "failed": {}}


def first_reasons(found: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns the first reason of each row, None where there is none."""
    return np.select([*found.values()], [np.array(reason, object) for reason in found], np.array(None, object))


def tally(reasons: Iterable[str | None]) -> dict[str, int]:
    """Returns how often each reason occurs, sorted, those that do not left out."""
    given = [reason for reason in reasons if reason is not None]
    return {reason: given.count(reason) for reason in sorted({*given})}


def measured(planted: int, dropped: int, found: int) -> dict[str, Any]:
    """Returns these numbers of rows, with the precision, recall and F1 that follow. A share of nothing is None."""
    shares = {"precision": (found, dropped), "recall": (found, planted), "f1": (2 * found, dropped + planted)}
    ratios = {name: round(n / of, 4) if of else None for name, (n, of) in shares.items()}
    return {"planted": planted, "dropped": dropped, "found": found, **ratios}
