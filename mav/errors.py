"""The one error a user can cause."""


class UserError(Exception):
    """Bad input or a missing prerequisite: one sentence that says what is wrong and how to mend it. Exit 2, no traceback."""
