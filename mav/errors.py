"""The one error a user can cause."""

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from mav.secrets import redacted


class UserError(Exception):
    """Bad input or a missing prerequisite. The message is one sentence: what is wrong, and the remedy. Exit 2.

    Credentials in it are never shown: it is printed, and Prefect and Ray keep it.
    """

    def __str__(self) -> str:
        return redacted(super().__str__())


def refuse_secret(text: str, what: str) -> None:
    """Raises UserError when a text that is written down has a credential in it. what: names the text."""
    if redacted(text) != text:
        raise UserError(
            f"{what} holds credentials, which manifests, reports and jobs would show: take them out, and give them to "
            "the storage by its own settings or environment variables."
        )


class DivergedError(UserError, FloatingPointError):
    """A training whose loss or gradient is not finite. Every try ends in the same way."""


class TakenOverError(UserError):
    """What a run meets that was taken for dead: another one builds its stage now. It may write nothing more."""


STORAGE = {"aiobotocore", "aiohttp", "azure", "botocore", "fsspec", "gcsfs", "google", "ray", "s3fs"}


def from_storage(error: BaseException) -> bool:
    """Says whether an error is of storage, the network or the cluster, whose clients raise their own besides OSError:
    it may pass by itself.
    """
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in STORAGE


@contextmanager
def storage_may_fail() -> Iterator[None]:
    """Ends the block quietly at an error of storage. For what is only watched: the next time may reach it."""
    try:
        yield
    except Exception as error:
        if not from_storage(error):
            raise


def no_space(error: BaseException | None) -> bool:
    """Says whether a full disk or quota is behind an error, whichever library hid it behind its own."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left on device" in str(error) or "Disk quota exceeded" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def full_disk_told(what: str, where: str) -> Iterator[None]:
    """Turns a full disk into a UserError, whatever was being written: a shard, a checkpoint, a lease, a manifest."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not no_space(error):
            raise
        remedy = "free some, or inodes (`df -i`), then run again; finished shards and whole checkpoints are kept"
        raise UserError(f"{what}: no space is left where {where} is written: {remedy}.") from error


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that was probably meant; '' when none is near, as a wrong guess is worse than none.

    Capitals, and - for _, make no difference. The beginning of one word alone, of three letters or more, is near it.
    """
    folded, begun = {each.lower().replace("-", "_"): each for each in known}, word.lower().replace("-", "_")
    near = [each for each in folded if each.startswith(begun)] if len(begun) > 2 else []
    if len(near) != 1:
        near = difflib.get_close_matches(begun, folded, n=1, cutoff=0.8)
    return folded[near[0]] if near else ""
