"""Fences: who may write into a folder of which there is one writer at a time.

Whoever takes a lease (`flows.engine.lease`) hands the folders that it writes, and every process that works for it, a
fence: the number and the token of the lease. A folder with a fence looks before it publishes or removes a file whether
the lease is still held, so that a holder that was taken for dead, and woke up, changes nothing any more. What remains
is the moment between the look and the file's appearance; so markers and checkpoints name the lease that wrote them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property

from mav.errors import TakenOverError
from mav.storage.folder import Folder


@dataclass(frozen=True)
class Fence:
    """The right to write of one holder of a lease. url: the folder of the lease's files. what: the stage's name."""

    url: str
    number: int
    token: str
    what: str

    @cached_property
    def _folder(self) -> Folder:
        return Folder(self.url)

    def holds(self) -> bool:
        """Says whether there is no later lease and the lease's file has our token.

        A number alone is not enough: numbers begin again where the work folder was removed. A listing alone is not
        enough either, since some storages show one that is out of date. The file is read last: whoever takes over
        removes it before anything else. Raises OSError where storage does not answer.
        """
        if max(lease_numbers(self._folder), default=0) > self.number:
            return False
        try:
            return self.token.encode() in self._folder.read_bytes(lease_file(self.number))
        except FileNotFoundError:
            return False

    def check(self) -> None:
        """Raises TakenOverError when another run has taken the lease, or its work is done and removed."""
        if not self.holds():
            problem = f"Another run took {self.what} over, as this one was not heard of for a while"
            raise TakenOverError(f"{problem}; what is finished is kept.")


def lease_file(number: int) -> str:
    """Returns the name of the file of a lease."""
    return f"{number:06d}.json"


def lease_numbers(folder: Folder) -> list[int]:
    """Returns the numbers of the lease files, sorted."""
    try:
        names = os.listdir(folder.root) if folder.local else folder.names()  # every marker asks, so this is quick
    except FileNotFoundError:
        return []
    found = (name.removesuffix(".json") for name in names)
    return sorted(int(name) for name in found if name.isdigit())
