"""The one error a user can cause."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input or a missing prerequisite. The message is one sentence: what is wrong, and the remedy. Exit 2."""


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that was probably meant; '' when none is near."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.7)), "")
