"""Checkpoints of a training: torch.distributed.checkpoint, on any storage, written beside the training.

A checkpoint is a folder named after the samples seen. It holds the run's tensors as every rank has them (whole, or a shard each), the facts
that are not tensors, and, written last, `.metadata`: a folder without it was being written when the run died, and is never read. Tensors
go by name, so a checkpoint of two workers is continued by one, and one of replicas by shards.

Training waits while the tensors are copied (one fused copy into buffers kept for it) and goes on while they are written.
"""

import warnings
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter
from torch.distributed.checkpoint.staging import AsyncStager

from mav.errors import UserError
from mav.storage import Folder
from mav.training.ema import Ema, local

# Said from the writing thread at every save of one worker, which is what is meant.
warnings.filterwarnings("ignore", message="torch.distributed is disabled")

COMMITTED, FACTS = ".metadata", "facts.json"
RUN = "run"  # under one key, as DCP takes its time over every one at the top
Tensors = dict[str, Tensor]


def tensors_of(network: nn.Module, optimiser: torch.optim.Optimizer, ema: Ema) -> Tensors:
    """Everything a run's next step depends on that is a tensor, by name: references, to be copied or to be filled."""
    names = {id(p): name for name, p in network.named_parameters()}
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    tensors |= {f"ema.{names[id(p)]}": shadow for p, shadow in zip(ema.parameters, ema.shadows, strict=True)}
    for p, moments in optimiser.state.items():
        tensors |= {f"{kind}.{names[id(p)]}": value for kind, value in moments.items() if kind != "step"}
    return tensors


class Checkpoints:
    """The checkpoints of one run in a folder. Every rank calls every method; rank 0 alone removes and writes facts."""

    def __init__(self, work: Folder, identity: str, rank: int, world_size: int, keep: int | None) -> None:
        """identity: digest of all that must be equal for a checkpoint to be continued. keep: so many of the last ones stay; None: all."""
        self.work, self.identity, self.rank, self.keep = work, identity, rank, keep
        self.alone = world_size == 1
        # Its own group: it is used by the writing thread while the ranks speak through the others.
        self.group = None if self.alone else dist.new_group(backend="gloo")
        self.stager = _Stager()
        self.pending: Future[Any] | None = None
        self.best = 0  # samples of one more that stays; 0 = none

    def finished(self) -> list[int]:
        """Samples of every whole checkpoint, ascending."""
        ends = [name.split("/") for name in self.work.names() if name.endswith(f"/{COMMITTED}")]
        return sorted(int(parts[0]) for parts in ends if len(parts) == 2)

    def folder(self, samples: int) -> Folder:
        return self.work.child(f"{samples:012d}")

    def save(self, samples: int, tensors: Tensors, facts: dict[str, Any]) -> None:
        """Copies and returns; the copy is written by a thread. Waits for the save before, and raises what went wrong with it."""
        self.wait()
        folder = self.folder(samples)
        if self.rank == 0:
            folder.remove()  # what a killed save left
            folder.write_json(FACTS, {"identity": self.identity, **facts})
        pending = dcp.async_save(
            {RUN: tensors},
            storage_writer=FsspecWriter(folder.url),
            process_group=self.group,
            async_stager=self.stager,
            no_dist=self.alone,
        )
        assert isinstance(pending, Future)
        self.pending = pending

    def wait(self) -> None:
        """Until the last save is whole; then those that are no longer wanted go."""
        if self.pending is None:
            return
        pending, self.pending = self.pending, None
        try:
            pending.result()
        except CheckpointException as error:  # not even an Exception; what went wrong on the first of the ranks is
            raise next(iter(error.failures.values()))[0] from None
        if self.rank == 0 and self.keep is not None:
            for samples in self.finished()[: -self.keep]:
                if samples != self.best:
                    folder = self.folder(samples)
                    folder.remove(COMMITTED)  # first: half of a checkpoint is none
                    folder.remove()

    def restore(self, tensors: Tensors) -> dict[str, Any] | None:
        """Fills the tensors from the last whole checkpoint and returns its facts, or None when there is none.

        Raises UserError when it is of another recipe.
        """
        last: list[int | None] = [max(self.finished(), default=None)]
        if not self.alone:
            dist.broadcast_object_list(last, src=0, group=self.group)
        if last[0] is None:
            return None
        folder = self.folder(last[0])
        facts: dict[str, Any] = folder.read_json(FACTS)
        if facts["identity"] != self.identity:
            raise UserError(f"{folder.url} is the checkpoint of another recipe: remove it, or train in another folder.")
        self.load(last[0], tensors)
        return facts

    def load(self, samples: int, tensors: Tensors) -> None:
        """Fills the tensors from one checkpoint; names it holds beyond theirs are left alone."""
        dcp.load(
            {RUN: tensors},
            storage_reader=FsspecReader(self.folder(samples).url),
            process_group=self.group,
            no_dist=self.alone,
        )


class _Stager(AsyncStager):
    """Copies tensors to the processor's memory by one fused operation; torch's own stager takes several steps' time on small networks.

    The buffers are kept: a save is waited for before the next, so nobody reads them when they are written.
    """

    def __init__(self) -> None:
        self.buffers: Tensors = {}

    @property
    def should_synchronize_after_execute(self) -> bool:
        return False  # the copy is whole when `stage` returns

    def synchronize_staging(self) -> None:
        return None

    def close(self) -> None:
        self.buffers = {}

    @torch.no_grad()
    def stage(self, state_dict: dict[str, Tensors]) -> dict[str, Tensors]:
        tensors = state_dict[RUN]
        if not self.buffers:
            self.buffers = {name: torch.empty_like(value, device="cpu") for name, value in tensors.items()}
        for kind in {value.dtype for value in tensors.values()}:
            names = [name for name, value in tensors.items() if value.dtype == kind]
            torch._foreach_copy_(_locals(self.buffers[n] for n in names), _locals(tensors[n] for n in names))
        return {RUN: self.buffers}


def _locals(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [local(tensor.detach()) for tensor in tensors]
