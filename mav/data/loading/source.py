"""What all sources of training samples share: order, skipping, counting, threads, and random access into tars.

A batch by sample number is a pure function of seed and number. Sample number s belongs to epoch s // n, whose order is
a seeded permutation of the shards, and of the samples within each group of `GROUP_SHARDS` shards: the order of billions
of samples takes no memory, and few files are open at a time. Any number of threads, workers and ranks and any resume
therefore see the same samples, and the number is the only state. A sample that cannot be read is counted and replaced
by the next one of its epoch; too many of them stop the run.
"""

import functools
import os
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from mav.data.shards import Index, index_tar
from mav.errors import UserError
from mav.storage import Folder

OPEN_TARS = 16
GROUP_SHARDS = 32  # mixed sample by sample

Batch = dict[str, torch.Tensor]
Sample = dict[str, Any]  # arrays and numbers


class PassedOverError(Exception):
    """An intact sample cannot be used for this draw; the next one of its epoch takes its place."""


class SampleSource(ABC):
    """Training samples by number, read in as many threads as torch may use.

    counts: what happened to the samples read so far. unreadable: the reason for each sample that could not be read.
    More than `corrupted_share` of all samples unreadable is a UserError.
    """

    def __init__(self, seed: int, sizes: Sequence[int], what: str, corrupted_share: float) -> None:
        """sizes: the number of samples of each shard. Samples have consecutive indices across shards."""
        self._sizes = np.asarray(sizes, np.int64)
        count = int(self._sizes.sum())
        if count == 0:
            raise UserError(
                f"There is nothing to train on in {what}: every row was dropped or failed; the lines of the stages "
                "before, and `mav report`, say why."
            )
        self.seed, self.count, self.what, self.corrupted_share = seed, count, what, corrupted_share
        self.unreadable: dict[int, str] = {}  # index -> reason
        self.counts: Counter[str] = Counter()
        self._gaps = np.zeros(0, np.int64)  # for each held-out sample the number of training samples before it
        self._groups = functools.lru_cache(maxsize=2)(self._draw_groups)
        self._rows = functools.lru_cache(maxsize=2)(self._draw_rows)
        self._lock = threading.Lock()
        threads = torch.get_num_threads()
        self._map = ThreadPoolExecutor(threads, thread_name_prefix="samples").map if threads > 1 else map

    def __len__(self) -> int:
        return self.count

    def batch(self, first: int, count: int) -> Batch:
        """Returns samples number first .. first + count - 1; at least one."""
        if count < 1:
            raise ValueError(f"a batch of {count} samples")
        return _stack(list(self._map(self._sample, range(first, first + count))))

    def peek(self, count: int) -> Batch:
        """Returns the first `count` samples and leaves no trace of it. Call it when nothing else reads."""
        before = self.counts.copy(), dict(self.unreadable)
        try:
            return self.batch(0, count)
        finally:
            self.counts, self.unreadable = before

    def hold_out(self, count: int, total: int) -> Batch:
        """Removes `count` samples from the training and returns them. The same seed removes the same samples.

        They are read at numbers spread over a training of `total` samples. Call it before the first batch. Raises
        UserError when nothing would be left.
        """
        held: dict[int, Sample] = {}
        tried: set[int] = set()
        random = np.random.default_rng([self.seed, 3])
        while len(held) < count < self.count and len(tried) < self.count:
            index = int(random.integers(self.count))
            if index not in tried:
                tried.add(index)
                with suppress(PassedOverError, ValueError):  # such a sample stays in the training, which counts it
                    held[index] = self.read(index, len(held) * total // count)
        if len(held) < count:
            remedy = self.misfit() or "hold out fewer"
            asked = f"`optimisation.held_out` asks for {count} of the {self.count} samples in {self.what}"
            raise UserError(f"{asked}, of which {len(held)} can be used: {remedy}.")
        indices = np.sort(np.array(list(held), np.int64))
        self._gaps = indices - np.arange(count)
        shards = np.searchsorted(np.cumsum(self._sizes), indices, side="right")
        self._sizes = self._sizes - np.bincount(shards, minlength=len(self._sizes))
        self.count -= count
        return _stack(list(held.values()))

    def _sample(self, number: int) -> Sample:
        epoch, place = divmod(number, self.count)
        for step in range(self.count):
            index = self.index(epoch, (place + step) % self.count)
            if index in self.unreadable:
                continue
            try:
                sample = self.read(index, number)
            except PassedOverError as reason:
                self.record(str(reason))
            except ValueError as error:
                self._corrupted(index, str(error))
            else:
                self.record("samples")
                return sample
        remedy = self.misfit() or "rerun the stage that made them"
        raise UserError(f"None of the {self.count} samples in {self.what} can be used ({dict(self.counts)}): {remedy}.")

    def misfit(self) -> str:
        """Says what keeps intact samples from being used, with the remedy; '' when nothing does."""
        return ""

    def record(self, event: str) -> None:
        """Counts an event of a sample."""
        with self._lock:
            self.counts[event] += 1

    def _corrupted(self, index: int, reason: str) -> None:
        with self._lock:
            self.unreadable[index] = reason
            self.counts["corrupted"] = corrupted = len(self.unreadable)
        if corrupted > self.corrupted_share * self.count:
            raise UserError(
                f"{corrupted} of the {self.count} samples in {self.what} cannot be read (the last: {reason}), more "
                "than `optimisation.corrupted_share` allows: rerun the stage that made them."
            )

    def index(self, epoch: int, place: int) -> int:
        """Returns the index of the sample at this place of an epoch."""
        _, starts = self._groups(epoch)
        group = int(np.searchsorted(starts, place, side="right")) - 1
        row = int(self._rows(epoch, group)[place - starts[group]])
        return row + int(np.searchsorted(self._gaps, row, side="right"))

    def _draw_groups(self, epoch: int) -> tuple[list[np.ndarray], np.ndarray]:
        """Returns the shards of each group of an epoch, and the place at which each group begins."""
        order = np.random.default_rng([self.seed, 4, epoch]).permutation(len(self._sizes))
        groups = [np.sort(order[at : at + GROUP_SHARDS]) for at in range(0, len(order), GROUP_SHARDS)]
        return groups, np.cumsum([0, *(int(self._sizes[group].sum()) for group in groups[:-1])])

    def _draw_rows(self, epoch: int, group: int) -> np.ndarray:
        """Returns the samples of a group in their order, numbered without the held-out ones."""
        ends = np.cumsum(self._sizes)
        shards = self._groups(epoch)[0][group]
        rows = np.concatenate([np.arange(ends[shard] - self._sizes[shard], ends[shard]) for shard in shards])
        return rows[np.random.default_rng([self.seed, 1, epoch, group]).permutation(len(rows))]

    @abstractmethod
    def read(self, index: int, number: int) -> Sample:
        """Returns sample `index` of the set for training sample `number`.

        Raises ValueError when it cannot be read, and PassedOverError with a reason when it can but does not fit this
        draw.
        """


def _stack(samples: list[Sample]) -> Batch:
    return {name: torch.from_numpy(np.stack([sample[name] for sample in samples])) for name in samples[0]}


Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Shared(Generic[Key, Value]):
    """A cache of the `most` latest values. Threads that ask for the same one at the same time wait for one `make`."""

    def __init__(self, make: Callable[[Key], Value], most: int) -> None:
        self._make, self._most, self._lock = make, most, threading.Lock()
        self._values: dict[Key, Future[Value]] = {}

    def __call__(self, key: Key) -> Value:
        with self._lock:
            found = self._values.pop(key, None)
            made = self._values[key] = found or Future()
            while len(self._values) > self._most:
                del self._values[next(iter(self._values))]
        if found is None:
            try:
                made.set_result(self._make(key))
            except BaseException as error:
                with self._lock:
                    self._values.pop(key, None)
                made.set_exception(error)
        return made.result()


class Tars:
    """Random access into an artifact's tars. It is thread-safe; indexes and a few open files are cached."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._index: Shared[str, Index] = Shared(functools.partial(index_tar, folder), 2 * GROUP_SHARDS)
        self._file = functools.lru_cache(maxsize=OPEN_TARS)(folder.open)

    def read(self, name: str, key: str, extension: str) -> bytes:
        """Returns a file of a tar. Raises ValueError when the tar does not have it."""
        place = self._index(name).get(key, {}).get(extension)
        if place is None:
            raise ValueError(f"{name} holds no {key}.{extension}")
        return self.bytes_at(name, *place)

    def bytes_at(self, name: str, offset: int, size: int) -> bytes:
        """Returns bytes of a tar. Raises ValueError when the tar ends before them."""
        if self._folder.local:
            file = self._file(name)  # this reference keeps it open when the cache drops it in another thread
            data = os.pread(file.fileno(), size, offset)
        else:
            data = self._folder.fs.cat_file(self._folder.path(name), start=offset, end=offset + size)
        if len(data) < size:
            raise ValueError(f"{name} ends within a sample")
        return data
