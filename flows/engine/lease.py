"""A lease: one builder of an artifact at a time, on any storage and from any number of machines, without trusting a clock.

`WORK/lease/NNNNNN.json` says who builds. Numbers only grow while the work folder is there: who finds the last one released or its holder
dead creates the next, and of several who try, storage lets one succeed. A holder rewrites its file every few seconds. Whether
it is dead is seen, never computed: on the same machine its process is gone; from another one its file stays the same for
`EXPIRY_SECONDS` of the observer's own monotonic clock. A holder that was taken for dead finds a higher number and gives up.
"""

import json
import os
import platform
import posixpath
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mav.errors import UserError
from mav.storage import Folder

LEASE = "lease"
BEAT_SECONDS = 5.0
EXPIRY_SECONDS = 30.0  # without a beat for so long, a holder on another machine is taken for dead
POLL_SECONDS = 1.0
SETTLE_SECONDS = 2.0  # on storage without a conditional write: for how long another's write may follow ours
_ours: set[str] = set()  # tokens of the leases this process holds: one whose release never reached storage is none


@dataclass(frozen=True)
class Seat:
    """The last lease file: its number, its bytes as they were read, and what they say."""

    number: int
    data: bytes

    @property
    def says(self) -> dict[str, Any]:
        try:
            facts = json.loads(self.data)
        except ValueError:
            return {}
        return facts if isinstance(facts, dict) else {}

    @property
    def released(self) -> bool:
        return bool(self.says.get("released"))


def machine() -> str:
    """This boot of this machine, and the process numbers that are seen here: containers of one machine have their own."""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{os.readlink('/proc/self/ns/pid')}"


def process(pid: int | None = None) -> str:
    """A process of this machine by number and start time, '' when there is none: a number alone is soon another's."""
    try:
        state, *rest = Path(f"/proc/{pid or os.getpid()}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if state in "ZX" else f"{pid or os.getpid()}@{rest[18]}"


class Lease:
    """One holder's lease of one work folder. It beats in a thread of its own until it is released or cleared."""

    def __init__(self, work: Folder, name: str, recipe: str = "") -> None:
        self.work, self.name, self.recipe = work, name, recipe
        self.folder = work.child(LEASE)
        self.token = uuid.uuid4().hex
        self.number = 0
        self.lost = False
        self._beats = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beating, daemon=True, name=f"lease-{name}")

    def acquire(self) -> bool:
        """Takes the lease. False when somebody who is alive holds it; of another machine that takes some beats to see."""
        _ours.add(self.token)  # before its file is there, or another thread would take that for a dead one's
        while True:
            seat = top(self.folder)
            if seat is not None and not seat.released and not dead(self.folder, seat):
                _ours.discard(self.token)
                return False
            self.number = seat.number + 1 if seat else 1
            if not self._create():
                continue  # another was a moment earlier
            if not self._last():
                self.folder.remove(_name(self.number))  # what we saw was long past
                continue
            for number in numbers(self.folder)[:-1]:
                self.folder.remove(_name(number))
            self._thread.start()
            return True

    def beat(self) -> None:
        """Says that the holder is alive. Raises UserError once another has taken over."""
        if self.lost or not self._last():
            self.lost = True
            raise UserError(
                f"Another run took {self.name} over, as this one was not heard of for a while; what is finished is kept."
            )
        self._beats += 1
        self.folder.write_bytes(_name(self.number), self._says())

    def check(self) -> None:
        """Raises UserError once it is known that another has taken over."""
        if self.lost:
            self.beat()

    def clear(self) -> None:
        """The work is done: removes its folder, this lease and all."""
        self._end()
        self.work.remove()

    def release(self) -> None:
        """Lets the next one in. The file stays as long as the work folder, so that its number is never given twice."""
        self._end()
        if not self.lost and self._last():
            self.folder.write_bytes(_name(self.number), self._says(released=True))

    def _end(self) -> None:
        _ours.discard(self.token)
        self._stop.set()
        self._thread.join()

    def _beating(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            try:
                self.beat()
            except UserError:
                return
            except Exception:  # storage that is away for a moment: the next beat may reach it
                continue

    def _last(self) -> bool:
        """Whether nobody came after us, and our file is there."""
        return numbers(self.folder)[-1:] == [self.number]

    def _says(self, **more: Any) -> bytes:
        who = {
            "token": self.token,
            "machine": machine(),
            "process": process(),
            "host": platform.node(),
            "recipe": self.recipe,
        }
        facts = {**who, "beats": self._beats, **more}
        return json.dumps(facts, sort_keys=True).encode()

    def _create(self) -> bool:
        """Writes the file of our number if nobody has; True when it is ours."""
        if self._create_once() and not self.folder.local and self._create_once():  # the second must be refused
            time.sleep(SETTLE_SECONDS)  # this storage knows no conditional write: the last one counts
        return self._ours()

    def _create_once(self) -> bool:
        if self.folder.local:
            return self._link()
        try:
            self.folder.fs.pipe_file(self.folder.path(_name(self.number)), self._says(), mode="create")
        except OSError:  # refused, or failed; each storage says it in its own way, and one that was repeated is refused although it is ours
            if not self.folder.exists(_name(self.number)):
                raise
            return False
        return True

    def _link(self) -> bool:
        """A link appears whole and never over another: `O_EXCL` alone would show an empty file."""
        ours = f"{self.token}.part"
        self.folder.write_bytes(ours, self._says())
        try:
            os.link(self.folder.path(ours), self.folder.path(_name(self.number)))
        except FileExistsError:
            return False
        finally:
            self.folder.remove(ours)
        return True

    def _ours(self) -> bool:
        try:
            return bool(Seat(self.number, self.folder.read_bytes(_name(self.number))).says.get("token") == self.token)
        except FileNotFoundError:
            return False


def _name(number: int) -> str:
    return f"{number:06d}.json"


def numbers(folder: Folder) -> list[int]:
    """Numbers of the lease files there are, sorted."""
    found = (posixpath.basename(name).removesuffix(".json") for name in folder.names())
    return sorted(int(name) for name in found if name.isdigit())


def top(folder: Folder) -> Seat | None:
    """The lease file that counts."""
    while last := numbers(folder)[-1:]:
        try:
            return Seat(last[0], folder.read_bytes(_name(last[0])))
        except FileNotFoundError:
            continue  # taken over, or the work is done, since it was listed
    return None


def held_here(seat: Seat) -> bool | None:
    """Whether its holder is a living process of this machine; None when it is on another one."""
    if seat.says.get("machine") != machine():
        return None
    holder = str(seat.says.get("process", ""))
    if holder == process():
        return seat.says.get("token") in _ours
    return bool(holder) and process(int(holder.partition("@")[0])) == holder


def dead(folder: Folder, seat: Seat) -> bool:
    """Whether the seat's holder is gone: asked of the kernel where it runs on this machine, else seen by its silence."""
    here = held_here(seat)
    if here is not None:
        return not here
    began = time.monotonic()
    while time.monotonic() - began < EXPIRY_SECONDS:
        time.sleep(POLL_SECONDS)
        if top(folder) != seat:
            return False
    return True


def held(work: Folder) -> bool:
    """Whether somebody who is alive builds in this work folder."""
    folder = work.child(LEASE)
    seat = top(folder)
    return seat is not None and not seat.released and not dead(folder, seat)


@contextmanager
def exclusive(work: Folder, name: str, recipe: str = "") -> Iterator[Lease]:
    """One builder at a time: holds the lease of a stage's work folder for as long as the block runs. `recipe` is for `mav clean`.

    Raises UserError when somebody else holds it.
    """
    lease = Lease(work, name, recipe)
    if not lease.acquire():
        raise UserError(
            f"Another run is building {name} into the same place right now: wait for it, or give another --runs."
        )
    try:
        yield lease
    finally:
        lease.release()
