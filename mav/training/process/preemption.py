"""SIGTERM announces that a machine will be taken away. A training then saves and ends, and can be resumed elsewhere."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

_requested, _ended = threading.Event(), threading.Event()


class PreemptedError(RuntimeError):
    """The training was asked to end, and has saved."""


def catch_sigterm() -> None:
    """Makes SIGTERM end this process's training after the current step. Call it in the main thread."""
    _requested.clear()
    signal.signal(signal.SIGTERM, lambda signum, frame: request_termination())


def request_termination() -> None:
    """Ends this process's training after the current step."""
    _requested.set()


def end_training(seconds: float) -> None:
    """Ends this process's training after the current step, and waits until it has saved; at most so many seconds."""
    request_termination()
    _ended.wait(seconds)


@contextmanager
def told_when_ended() -> Iterator[None]:
    """Tells `end_training` when the block, which trains, has ended."""
    _ended.clear()
    try:
        yield
    finally:
        _ended.set()


@contextmanager
def catch_termination_signals() -> Iterator[None]:
    """Catches SIGTERM while the block runs, and SIGINT, by which Ray cancels a task; then restores the handlers."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    catch_sigterm()
    signal.signal(signal.SIGINT, signal.getsignal(signal.SIGTERM))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


class TerminationRequest:
    """Says whether any rank was asked to end. All ranks call it after every step, so that all end after one step."""

    def __init__(self, world_size: int) -> None:
        # The group is on the processor (gloo), so that a call does not wait for the device.
        self.group = dist.new_group(backend="gloo") if world_size > 1 else None

    def __call__(self) -> bool:
        if self.group is None:
            return _requested.is_set()
        requested = torch.tensor(int(_requested.is_set()))
        dist.all_reduce(requested, dist.ReduceOp.MAX, group=self.group)
        return bool(requested)
