"""SIGTERM is how a machine that is about to be taken away says so: a training saves, then ends, and goes on elsewhere as if nothing was."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

_told = threading.Event()


class PreemptedError(RuntimeError):
    """The training was told to end, and has saved."""


def catch_sigterm() -> None:
    """From here on, SIGTERM to this process ends its training after the step it is in. Call it in the process's main thread."""
    _told.clear()
    signal.signal(signal.SIGTERM, lambda signum, frame: tell_to_end())


def tell_to_end() -> None:
    """Ends this process's training after the step it is in."""
    _told.set()


@contextmanager
def told_to_end() -> Iterator[None]:
    """`catch_sigterm` while the block runs, and SIGINT besides, by which Ray cancels a task; its process may serve others after it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    catch_sigterm()
    signal.signal(signal.SIGINT, signal.getsignal(signal.SIGTERM))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


class Told:
    """Asked by every rank after every step: whether any of them was told to end. All get one answer, so all end after the same step."""

    def __init__(self, world_size: int) -> None:
        # gloo, on the processor: asking does not wait for the device
        self.group = dist.new_group(backend="gloo") if world_size > 1 else None

    def __call__(self) -> bool:
        if self.group is None:
            return _told.is_set()
        told = torch.tensor(int(_told.is_set()))
        dist.all_reduce(told, dist.ReduceOp.MAX, group=self.group)
        return bool(told)
