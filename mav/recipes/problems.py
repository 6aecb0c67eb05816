"""What is said of a wrong value of a recipe."""

import json
import re
from dataclasses import dataclass
from typing import Any

KEY = re.compile(r"`([\w.]+)`")


class Word(str):
    """What stands in a sentence in place of a value."""


GIVEN, MISSING = Word("given"), Word("missing")


@dataclass(frozen=True)
class Problem:
    """One wrong value of a recipe: its key, the value, why it is wrong, and what to do."""

    key: str
    value: Any
    why: str
    remedy: str

    def __str__(self) -> str:
        end = "?" if self.remedy.startswith("did you mean") else "."
        return f"`{self.key}` is {shown(self.value)}, but {self.why}: {self.remedy}{end}"

    @property
    def keys(self) -> set[str]:
        """All keys that the sentence is about."""
        return {self.key, *KEY.findall(self.why), *KEY.findall(self.remedy)}


def shown(value: Any) -> str:
    """Returns a value as a recipe would write it."""
    if isinstance(value, Word):
        return value
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    text = repr(value) if isinstance(value, (str, int, float)) else json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."
