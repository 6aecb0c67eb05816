"""The one error a user can cause."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input or a missing prerequisite: one sentence that says what is wrong and how to mend it. Exit 2, no traceback."""


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that was probably meant; '' when none is near."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.7)), "")
