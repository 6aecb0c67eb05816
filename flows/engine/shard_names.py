"""The names of a stage's shards, of which there may be hundreds of thousands."""

from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np


class ShardNames(Sequence[str]):
    """Names in sorted order, kept as bytes of one array: a tenth of what a list of strings takes."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = np.array([name.encode() for name in names], dtype=bytes)
        self._names.sort()  # UTF-8 sorts as the strings do

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, at: int) -> str: ...

    @overload
    def __getitem__(self, at: slice) -> list[str]: ...

    def __getitem__(self, at: int | slice) -> str | list[str]:
        if isinstance(at, slice):
            return [name.decode() for name in self._names[at].tolist()]
        return bytes(self._names[at]).decode()
