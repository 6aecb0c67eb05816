"""Checkpoints of a training: torch.distributed.checkpoint on any storage, written while the training goes on.

A checkpoint is a folder named after the samples seen and the lease that wrote it, so that two writers, one of whom was
wrongly taken for dead, never write the same file. It holds the run's tensors as every rank has them (whole, or one
shard each), torch's `.metadata` about them, and `facts.json` with what is not a tensor and the size of every file. The
latter is written last, when all else is on the disk: a folder without it was being written when the run died, and is
never read. One that has lost bytes since is reported, and the one before it is read. What is no longer wanted goes when
the next checkpoint is whole: all but the last few and the best that each of them knows. Tensors are stored by name, so
that one worker can continue a checkpoint of two, and shards one of replicas.

Training waits only while the tensors are copied, by one fused copy into buffers that are kept for it.
"""

import errno
import functools
import json
import os
import re
import shutil
import warnings
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter
from torch.distributed.checkpoint.staging import AsyncStager

from mav.errors import UserError, from_storage, no_space
from mav.storage import Folder
from mav.storage.folder import canonical_json
from mav.training.ema import Ema, local_shards

# The writing thread warns so at every save of one worker, which is intended.
warnings.filterwarnings("ignore", message="torch.distributed is disabled")

COMMITTED, METADATA, FILES, BEST = ".metadata", "facts.json", "files", "best"
NAME = re.compile(r"(\d+)(?:-[0-9a-f]+)?")  # samples, and the beginning of a lease's token
RUN = "run"  # all tensors are under one key, because DCP is slow for many keys at the top
Tensors = dict[str, Tensor]


def tensors_of(network: nn.Module, optimiser: torch.optim.Optimizer, ema: Ema) -> Tensors:
    """All tensors that a run's next step depends on, by name. They are references, to be copied or to be filled."""
    names = {id(p): name for name, p in network.named_parameters()}
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    tensors |= {f"ema.{names[id(p)]}": shadow for p, shadow in zip(ema.parameters, ema.shadows, strict=True)}
    for p, moments in optimiser.state.items():
        tensors |= {f"{kind}.{names[id(p)]}": value for kind, value in moments.items() if kind != "step"}
    return tensors


class Checkpoints:
    """The checkpoints of one run in a folder. All ranks call all methods; rank 0 alone removes and writes metadata.

    Shards are copied and written by all ranks; what all ranks have alike, by rank 0.
    """

    def __init__(
        self, work: Folder, identity: str, rank: int = 0, world_size: int = 1, sharded: bool = False, *,
        keep: int | None = None, tell: Callable[[str], None] = lambda sentence: None,
    ) -> None:  # fmt: skip
        """work: the folder, whose fence, if it has one, says which lease writes. identity: digest of all that must be
        equal to continue a checkpoint. sharded: whether the ranks hold shards. keep: how many stay (None: all).
        """
        self.work, self.identity, self.rank, self.keep, self.tell = work, identity, rank, keep, tell
        self.alone, self.sharded = world_size == 1, sharded
        # The writing thread has a group of its own, because the ranks use the others at the same time.
        self.group = None if self.alone else dist.new_group(backend="gloo")
        self.stager = _Stager()
        self.saving = False  # whether a save was begun and not yet waited for
        self.pending: Future[Any] | None = None  # that save, on the ranks that write
        self.mark = f"-{work.fence.token[:8]}" if work.fence else ""

    def finished(self) -> list[int]:
        """Samples of every whole checkpoint, ascending, as rank 0 sees them."""
        found: list[int] = self._agreed(lambda: list(self._whole()))
        return found

    def _whole(self) -> dict[int, str]:
        """Returns the folder of every whole checkpoint by its samples, ascending; of two writers', our own."""
        whole: dict[int, str] = {}
        for name, problem in self._inspect().items():
            if not problem and not whole.get(_samples(name), "").endswith(self.mark or "/"):
                whole[_samples(name)] = name
        return whole

    def _folders(self) -> dict[str, dict[str, int]]:
        """Returns the sizes of the files of each checkpoint, also of one that was not written to its end, by folder."""
        files: dict[str, dict[str, int]] = defaultdict(dict)
        for name, size in self.work.sizes().items():
            folder, _, file = name.partition("/")
            if NAME.fullmatch(folder) and file and "/" not in file:
                files[folder][file] = size
        return dict(sorted(files.items(), key=lambda item: (_samples(item[0]), item[0])))

    def _inspect(self) -> dict[str, str]:
        """Returns what is wrong with each checkpoint that was written to its end, by its folder, ascending."""
        return {name: self._problem(name, sizes) for name, sizes in self._folders().items() if METADATA in sizes}

    def _problem(self, name: str, sizes: dict[str, int]) -> str:
        """Returns what is wrong with the files of a checkpoint; '' when nothing is."""
        try:
            metadata = self.work.child(name).read_json(METADATA)
            known = metadata.get(FILES, {COMMITTED: sizes.get(COMMITTED)})  # an older version did not write it
        except (ValueError, AttributeError):
            return f"{METADATA} cannot be read"
        for name, size in known.items():
            if sizes.get(name) != size or not size:
                return f"{name} has {sizes.get(name, 0)} of {size or 'its'} bytes"
        return ""

    def save(self, samples: int, tensors: Tensors, metadata: dict[str, Any], best: int = 0) -> None:
        """Copies the tensors and returns; a thread writes the copy. Waits for the save before, and raises its error.

        best: samples of the checkpoint of the lowest loss, which stays as long as this one does; 0 = none.
        """
        self.wait()
        self.saving = True
        if self.rank and not self.sharded:
            return
        folder = self.work.child(f"{samples:012d}{self.mark}")
        if self.rank == 0:
            folder.remove()  # a killed save may have left files
        together: dict[str, Any] = {"process_group": self.group} if self.sharded else {"no_dist": True}
        writer = FsspecWriter(folder.url)
        written = dcp.async_save({RUN: tensors}, storage_writer=writer, async_stager=self.stager, **together)
        assert isinstance(written, Future)
        pending: Future[None] = Future()
        facts = {"identity": self.identity, BEST: best, **metadata}
        text = canonical_json(facts) if self.rank == 0 else b""

        def commit(written: Future[Any]) -> None:
            """Runs in the writing thread."""
            try:
                written.result()
                if self.rank == 0:
                    sizes = folder.sizes()
                    folder.sync(sizes)
                    folder.write_json(METADATA, json.loads(text) | {FILES: sizes})
                pending.set_result(None)
            except BaseException as error:  # it is raised by `wait`, which would wait for ever without one
                try:
                    cause = self._cause(error, folder, sum(t.nbytes for t in tensors.values()))
                except BaseException as met:
                    cause = met
                pending.set_exception(cause)

        self.pending = pending
        written.add_done_callback(commit)

    def _cause(self, error: BaseException, folder: Folder, size: int) -> BaseException:
        """Returns the error of a save that failed: a full disk's, where torch has hidden that behind another.

        What was written is removed, which may leave room for the other files of the run.
        """
        if self.work.fence:
            self.work.fence.check()  # that another run has taken over says more
        if not self.work.local or self.rank:
            return error
        folder.remove()
        failures = getattr(error, "failures", {}).values()
        if shutil.disk_usage(self.work.root).free < size or any(no_space(each[0]) for each in failures):
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return error

    def wait(self) -> None:
        """Waits until the last save is whole, then removes the checkpoints that are no longer wanted.

        Raises the save's error, on every rank.
        """
        if not self.saving:
            return
        self.saving, pending, self.pending = False, self.pending, None
        failure: BaseException | None = None
        try:
            if pending:
                pending.result()
        except CheckpointException as error:  # this is not an Exception; the error of the first rank is
            failure = next(iter(error.failures.values()))[0]
        except Exception as error:
            failure = error
        if not self.sharded:  # the ranks that wrote nothing wait here
            failure = self._agreed(lambda: failure)
        if failure:
            raise failure from None
        if self.rank == 0 and self.keep is not None:
            whole = self._whole()
            wanted = {*list(whole)[-self.keep :]}
            wanted |= {int(self.work.child(whole[each]).read_json(METADATA).get(BEST, 0)) for each in wanted}
            stay = {whole[each] for each in wanted if each in whole}
            for name in self._folders().keys() - stay:
                folder = self.work.child(name)
                folder.remove(COMMITTED)  # first, so that half of a checkpoint counts as none
                folder.remove()

    def restore(self, tensors: Tensors) -> dict[str, Any] | None:
        """Fills the tensors from the last whole checkpoint and returns its metadata, or None when there is none.

        A damaged one is reported, and the one before it is read. Raises UserError when the checkpoint is of another
        recipe, or when there are checkpoints and all of them are damaged.
        """
        found = self._agreed(self._inspect)
        for name, problem in reversed(found.items()):
            folder = self.work.child(name)
            if not problem:
                metadata: dict[str, Any] = self._agreed(functools.partial(folder.read_json, METADATA))
                if metadata["identity"] != self.identity:
                    remedy = "remove it, or train in another folder"
                    raise UserError(f"{folder.url} is the checkpoint of another recipe: {remedy}.")
                if self._try_load(name, tensors):
                    return {key: value for key, value in metadata.items() if key not in (FILES, BEST)}
                problem = "its tensors cannot be read"
            self.tell(f"the checkpoint {folder.url} is damaged ({problem}), so the one before is taken.")
            if self.rank == 0:
                folder.remove(METADATA)  # from here on it is none
        if found:
            problem = f"All checkpoints in {self.work.url} are damaged"
            raise UserError(f"{problem}: bring one back from a copy; without one, the same command begins anew.")
        return None

    def _agreed(self, look: Callable[[], Any]) -> Any:
        """Returns on every rank what rank 0 sees."""
        seen = [look() if self.rank == 0 else None]
        if not self.alone:
            dist.broadcast_object_list(seen, src=0, group=self.group)
        return seen[0]

    def try_load(self, samples: int, tensors: Tensors) -> bool:
        """Fills the tensors from a checkpoint, and says whether that was possible; if not, they hold anything."""
        name = self._agreed(self._whole).get(samples)
        return bool(name) and self._try_load(name, tensors)

    def _try_load(self, name: str, tensors: Tensors) -> bool:
        try:
            self._load(name, tensors)
        except (Exception, CheckpointException) as error:  # each damage has its own
            causes = [error, *(each[0] for each in getattr(error, "failures", {}).values())]
            away = [cause for cause in causes if from_storage(cause)]
            if away and not self.work.local:
                raise away[0] from None  # storage that cannot be reached says nothing about the checkpoint
            return False
        return True

    def load(self, samples: int, tensors: Tensors) -> None:
        """Fills the tensors from one whole checkpoint, which may hold more than these."""
        self._load(self._agreed(self._whole)[samples], tensors)

    def forget(self, samples: int) -> None:
        """Makes a checkpoint count as none. Rank 0 does it, before the next call of all ranks."""
        if self.rank == 0:
            self.work.child(self._whole()[samples]).remove(METADATA)

    def _load(self, name: str, tensors: Tensors) -> None:
        reader = FsspecReader(self.work.child(name).url)
        dcp.load({RUN: tensors}, storage_reader=reader, process_group=self.group, no_dist=self.alone)


def _samples(name: str) -> int:
    """Returns the samples of a checkpoint's folder."""
    return int(name.partition("-")[0])


class _Stager(AsyncStager):
    """Copies tensors to the processor's memory by one fused operation; torch's own stager is slow on small networks.

    The buffers are kept. A save waits for the one before, so nobody reads the buffers while they are filled.
    """

    should_synchronize_after_execute = False  # the copy is whole when `stage` returns

    def __init__(self) -> None:
        self.buffers: Tensors = {}

    def synchronize_staging(self) -> None:
        return None

    def close(self) -> None:
        self.buffers = {}

    @torch.no_grad()
    def stage(self, state_dict: dict[str, Tensors]) -> dict[str, Tensors]:
        tensors = state_dict[RUN]
        if not self.buffers:
            # Pinned, a card fills them several times faster.
            self.buffers = {
                name: torch.empty_like(value, device="cpu", pin_memory=value.is_cuda) for name, value in tensors.items()
            }
        for kind in {value.dtype for value in tensors.values()}:
            names = [name for name, value in tensors.items() if value.dtype == kind]
            torch._foreach_copy_(local_shards(self.buffers[n] for n in names), local_shards(tensors[n] for n in names))
        return {RUN: self.buffers}
