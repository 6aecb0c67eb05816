"""Leases: one builder of an artifact at a time, on any storage, from any number of machines, without trusting a clock.

`WORK/lease/NNNNNN.json` says who builds. Numbers only grow while the work folder exists: a process that finds the last
lease released, or its holder dead, creates the next number, and of several that try, storage lets one succeed. A holder
rewrites its file every few seconds. Whether it is dead is observed, not computed: on the same machine its process is
gone; from another machine its file stays the same for `EXPIRY_SECONDS` of the observer's own monotonic clock. A holder
that was wrongly taken for dead finds a higher number, or its own file gone, and gives up; what still works for it is
kept from writing by the lease's fence (`mav.storage.fence`).
"""

import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mav.errors import TakenOverError, UserError, from_storage, no_space
from mav.storage import Folder
from mav.storage.fence import Fence, lease_file, lease_numbers

LEASE = "lease"
BEAT_SECONDS = 5.0
EXPIRY_SECONDS = 30.0  # without a beat for this long, a holder on another machine counts as dead
POLL_SECONDS = 1.0
_held_tokens: set[str] = set()  # leases of this process; one whose release never reached storage is not among them


@dataclass(frozen=True)
class LeaseFile:
    """The last lease file of a work folder: its number and its bytes as they were read."""

    number: int
    data: bytes

    @property
    def content(self) -> dict[str, Any]:
        """What the file says about the holder; {} when it is torn."""
        try:
            content = json.loads(self.data)
        except ValueError:
            return {}
        return content if isinstance(content, dict) else {}

    @property
    def released(self) -> bool:
        return bool(self.content.get("released"))


def machine() -> str:
    """Identifies this boot of this machine and its process namespace; containers have their own process numbers."""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{os.readlink('/proc/self/ns/pid')}"


def process(pid: int | None = None) -> str:
    """Identifies a process of this machine by number and start time, since numbers are reused; '' when it is gone."""
    try:
        state, *rest = Path(f"/proc/{pid or os.getpid()}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if state in "ZX" else f"{pid or os.getpid()}@{rest[18]}"


class Lease:
    """One holder's lease of one work folder. A thread of its own renews it until it is released or cleared."""

    def __init__(
        self, work: Folder, name: str, recipe: str = "", tell: Callable[[str], None] = lambda sentence: None
    ) -> None:
        """recipe: for `mav clean`. tell: is called with a sentence when storage keeps the lease from being renewed."""
        self.work, self.name, self.recipe, self.tell = work, name, recipe, tell
        self.folder = work.child(LEASE)
        self.token = uuid.uuid4().hex
        self.number = 0
        self._beats = 0
        self._error: BaseException | None = None  # what ended the thread
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, daemon=True, name=f"lease-{name}")

    def acquire(self) -> bool:
        """Takes the lease. Returns False when a living process holds it, which on another machine takes time to see."""
        _held_tokens.add(self.token)  # before the file exists, or another thread would take its holder for dead
        taken = False
        try:
            taken = self._take()
        finally:
            if not taken:  # also where storage failed half-way: a file that it left has no holder
                _held_tokens.discard(self.token)
        return taken

    def _take(self) -> bool:
        while True:
            last = top(self.folder)
            if last is not None and not last.released and not dead(self.folder, last):
                return False
            self.number = last.number + 1 if last else 1
            if not self._create():
                continue  # another process was first
            if not self.fence.holds():
                self.folder.remove(lease_file(self.number))  # what we saw was out of date
                continue
            for number in lease_numbers(self.folder):
                if number < self.number:
                    self.folder.remove(lease_file(number))
            self._thread.start()
            return True

    @property
    def fence(self) -> Fence:
        """The right to write that this lease gives, for every process that works for its holder."""
        return Fence(self.folder.url, self.number, self.token, self.name)

    def fenced(self, folder: Folder) -> Folder:
        """Returns a folder in which files appear only while this lease is held."""
        return Folder(folder.url, self.fence)

    def beat(self) -> None:
        """Shows that the holder is alive. Raises TakenOverError once another process has taken over."""
        self.check()
        try:
            self.fence.check()
        except TakenOverError as error:
            self._error = error
            raise
        self._beats += 1
        self.folder.write_bytes(lease_file(self.number), self._record())

    def check(self) -> None:
        """Raises what has ended the renewal: TakenOverError once it is known that another process has taken over."""
        if self._error is not None:
            raise self._error

    def lost(self) -> bool:
        """Says whether another process has taken over, as far as storage can say now."""
        try:
            return isinstance(self._error, TakenOverError) or not self.fence.holds()
        except Exception as error:
            if not from_storage(error):
                raise
            return False

    def clear(self) -> None:
        """Removes the work folder, with this lease in it, when the work is done."""
        self._end()
        self.work.remove()

    def release(self) -> None:
        """Lets the next process in. The file stays with the work folder, so that its number is not used again."""
        self._end()
        if self.fence.holds():
            self.folder.write_bytes(lease_file(self.number), self._record(released=True))

    def _end(self) -> None:
        _held_tokens.discard(self.token)
        self._stop.set()
        self._thread.join()

    def _keep_beating(self) -> None:
        told = False
        while not self._stop.wait(BEAT_SECONDS):
            try:
                self.beat()
                told = False
            except Exception as error:
                if not from_storage(error):
                    self._error = error  # `check` raises it in the stage
                    return
                if not told:  # storage that fails for a moment: the next beat may reach it
                    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                    self.tell(
                        f"{self.name}: its lease cannot be renewed now ({reason}), so a run on another machine could "
                        f"take it over after {EXPIRY_SECONDS:.0f} s; trying again"
                    )
                told = True

    def _record(self, **more: Any) -> bytes:
        holder = {"token": self.token, "machine": machine(), "process": process(), "host": platform.node()}
        return json.dumps({**holder, "recipe": self.recipe, "beats": self._beats, **more}, sort_keys=True).encode()

    def _create(self) -> bool:
        """Creates the file of our number unless it exists; returns whether it is ours.

        Raises UserError on storage that writes over an existing file although it is asked not to.
        """
        name = lease_file(self.number)
        if self.folder.local:
            self._link(name)
        elif self._write_new(name) and self._write_new(name):  # the second must be refused
            raise UserError(
                f"{self.folder.url} ignores conditional writes (If-None-Match), so two runs could build the same "
                "artifact: use a server that honours them, or a disk."
            )
        try:
            return bool(LeaseFile(self.number, self.folder.read_bytes(name)).content.get("token") == self.token)
        except FileNotFoundError:
            return False

    def _write_new(self, name: str) -> bool:
        """Writes the file unless it exists, on storage that is not local."""
        try:
            self.folder.fs.pipe_file(self.folder.path(name), self._record(), mode="create")
        except OSError:  # each storage refuses in its own way, and may refuse the repetition of a write that succeeded
            if not self.folder.exists(name):
                raise
            return False
        return True

    def _link(self, name: str) -> None:
        """Creates the file by a link, which appears whole and never over another; `O_EXCL` would show an empty file."""
        temporary = f"{self.token}.part"
        self.folder.write_bytes(temporary, self._record())
        try:
            os.link(self.folder.path(temporary), self.folder.path(name))
        except FileExistsError:
            return
        finally:
            self.folder.remove(temporary)


def top(folder: Folder) -> LeaseFile | None:
    """Returns the lease file that counts: the one with the highest number."""
    while last := lease_numbers(folder)[-1:]:
        try:
            return LeaseFile(last[0], folder.read_bytes(lease_file(last[0])))
        except FileNotFoundError:
            continue  # it was replaced or removed after it was listed
    return None


def held_here(file: LeaseFile) -> bool | None:
    """Says whether the holder is a living process of this machine; None when it is on another machine."""
    if file.content.get("machine") != machine():
        return None
    holder = str(file.content.get("process", ""))
    if holder == process():
        return file.content.get("token") in _held_tokens
    return bool(holder) and process(int(holder.partition("@")[0])) == holder


def dead(folder: Folder, file: LeaseFile) -> bool:
    """Says whether the holder is gone: on this machine the kernel knows; elsewhere its silence shows it."""
    here = held_here(file)
    if here is not None:
        return not here
    began = time.monotonic()
    while time.monotonic() - began < EXPIRY_SECONDS:
        time.sleep(POLL_SECONDS)
        if top(folder) != file:
            return False
    return True


def held(work: Folder) -> bool:
    """Says whether a living process builds in this work folder."""
    folder = work.child(LEASE)
    file = top(folder)
    return file is not None and not file.released and not dead(folder, file)


@contextmanager
def exclusive(
    work: Folder, name: str, recipe: str = "", tell: Callable[[str], None] = lambda sentence: None
) -> Iterator[Lease]:
    """Holds the lease of a stage's work folder while the block runs; `recipe` and `tell` are those of `Lease`.

    Raises UserError when another process holds it.
    """
    lease = Lease(work, name, recipe, tell)
    if not lease.acquire():
        raise UserError(
            f"Another run is building {name} into the same place right now: wait for it, or give another --runs."
        )
    try:
        yield lease
    finally:
        try:
            lease.release()
        except Exception as error:  # what the block met counts for more, and others see that the holder is gone
            if no_space(error) or not from_storage(error):
                raise
