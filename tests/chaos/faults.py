"""The faults of the storm: each strikes a run that is at work, once; False when there is nothing to strike at the
moment."""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chaos import Chaos
    from stand import Flow

FATAL = (
    "kill -9 of the flow",
    "kill -9 of worker and flow",
    "kill -9 of the head with its GCS",
    "Ctrl-C of the flow",
)  # the flow has to be started again
PATIENCE = 300.0  # seconds for a run that nothing disturbs
HEAD_PATIENCE = 90.0  # within which a flow must have noticed that its cluster is gone
DRAIN_SECONDS = 12.0  # between Ray's word that a node will go and its death


class Striker:
    """Strikes one run of `mav run` and what it stands on."""

    def __init__(self, chaos: Chaos, flow: Flow) -> None:
        self.chaos, self.flow, self.rng = chaos, flow, chaos.rng
        self.away_seconds = 5.0 if chaos.subset else 30.0
        self._rivals: list[Flow] = []
        self._later: list[threading.Thread] = []
        self._strikes: dict[str, Callable[[], bool]] = {
            "kill -9 of a worker": self._worker,
            "kill -9 of a raylet": self._raylet,
            "kill -9 of the head with its GCS": self._head,
            "kill -9 of the flow": self._flow,
            "kill -9 of worker and flow": self._both,
            "worker out of memory": self._memory,
            "SIGSTOP of a worker": self._stop,
            "Prefect's server away": self._prefect,
            "drain of a node": self._drain,
            "Ctrl-C of the flow": self._interrupt,
            "another run on the same stage": self._rival,
        }

    def strike(self, kind: str) -> bool:
        """Only while a stage is at work."""
        return bool(list(Path(self.flow.runs).glob("work/*/*/lease/*.json"))) and self._strikes[kind]()

    def join(self) -> None:
        """Waits for what a fault has still to take back."""
        for thread in self._later:
            thread.join()
        self._later.clear()
        for rival in self._rivals:
            code = rival.wait(PATIENCE)
            if code not in (0, 2):  # it has built what was left, or was refused
                self.chaos.account.problems.append(f"the other run ended with {code}")
        self._rivals.clear()

    def _after(self, seconds: float, what: Callable[[], None]) -> None:
        def later() -> None:
            time.sleep(seconds)
            what()

        self._later.append(threading.Thread(target=later))
        self._later[-1].start()

    def _one(self) -> int | None:
        workers = self.chaos.nodes.workers()
        return self.rng.choice(workers) if workers else None

    def _signal(self, number: int) -> bool:
        pid = self._one()
        if pid is None:
            return False
        try:
            os.kill(pid, number)
        except ProcessLookupError:  # done a moment ago
            return False
        return True

    def _worker(self) -> bool:
        return self._signal(signal.SIGKILL)

    def _raylet(self) -> bool:
        if not self.chaos.nodes.workers():
            return False
        self.chaos.nodes.kill_node(self.rng.randrange(len(self.chaos.nodes.nodes)))
        return True

    def _head(self) -> bool:
        if not self.chaos.nodes.workers():
            return False
        self.chaos.nodes.kill_head()
        began = time.monotonic()
        code = self.flow.wait(HEAD_PATIENCE)
        self.chaos.say(
            f"the flow {'hung' if code == -signal.SIGKILL else 'ended'} {time.monotonic() - began:.0f} s "
            "after its cluster was back"
        )
        return True

    def _flow(self) -> bool:
        self.flow.kill()
        return True

    def _both(self) -> bool:
        """The flow run stays "Running" in Prefect: nobody is left to say otherwise."""
        if not self._signal(signal.SIGKILL):
            return False
        self.flow.kill()
        return True

    def _memory(self) -> bool:
        """For two seconds the worker is given nothing more."""
        pid = self._one()
        if pid is None:
            return False
        try:
            used = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
            before = resource.prlimit(pid, resource.RLIMIT_AS, (used, resource.RLIM_INFINITY))
        except (FileNotFoundError, ProcessLookupError):
            return False

        def relent() -> None:
            if Path(f"/proc/{pid}").exists():
                resource.prlimit(pid, resource.RLIMIT_AS, before)

        self._after(2.0, relent)
        return True

    def _stop(self) -> bool:
        pid = self._one()
        if pid is None:
            return False
        os.kill(pid, signal.SIGSTOP)

        def go_on() -> None:
            if Path(f"/proc/{pid}").exists():
                os.kill(pid, signal.SIGCONT)

        self._after(self.rng.uniform(1, 4), go_on)
        return True

    def _prefect(self) -> bool:
        self.chaos.prefect.kill()
        self._after(self.away_seconds, self.chaos.prefect.restart)
        return True

    def _drain(self) -> bool:
        """As a cloud announces that it takes a machine back, and then does."""
        if not self.chaos.nodes.workers():
            return False
        raylet = self.chaos.nodes.drain_node(self.rng.randrange(len(self.chaos.nodes.nodes)), DRAIN_SECONDS)

        def gone() -> None:
            with suppress(ProcessLookupError):  # a node without work goes by itself
                os.kill(raylet, signal.SIGKILL)

        self._after(DRAIN_SECONDS, gone)
        return True

    def _interrupt(self) -> bool:
        assert self.flow.process is not None
        self.flow.process.send_signal(signal.SIGINT)
        code = self.flow.wait(HEAD_PATIENCE)
        if code == -signal.SIGKILL:
            self.chaos.account.problems.append("a run did not end after Ctrl-C")
        return True

    def _rival(self) -> bool:
        """The same command once more, which must be refused or find all done; it may take over a stage between two."""
        rival = self.chaos.flow(self.flow.runs)
        rival.start("run", "tiny", "--until", self.chaos.until)
        self._rivals.append(rival)
        return True
