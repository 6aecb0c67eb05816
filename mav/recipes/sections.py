"""The base of all recipe sections: how one is declared, which ranges its numbers have, and how it is written as data.

Every field counts: it is part of the fingerprint of the stages that read it (`mav.recipes.identity`). The exceptions
carry a mark in their type: `OPERATIONAL`, `DEADLINE`, or an `Operational` of their own.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, dataclass_transform

from annotated_types import Ge, Gt, Le, Lt

T = TypeVar("T")


@dataclass(frozen=True)
class Operational:
    """Marks a field that says how something is made and not what: it enters no fingerprint, and may change at any time.

    deadline: it decides which rows come through in time. Another value keeps the shards that are finished, and the
    ledger says which of them were made under which. counts_if: is called with the section, and says whether the field
    counts after all.
    """

    deadline: bool = False
    counts_if: Callable[[Any], bool] = lambda section: False


OPERATIONAL = Operational()
DEADLINE = Operational(deadline=True)
# Else there is nothing to limit or rescale.
IF_GUIDED = Operational(counts_if=lambda section: section.guidance != 1)

# The ranges of numbers. The upper ends only keep slips of the keyboard out.
MOST = 10**15
Whole = Annotated[int, Ge(0), Le(MOST)]
Positive = Annotated[int, Ge(1), Le(MOST)]
Small = Annotated[int, Ge(1), Le(65_536)]  # sizes in pixels, channels, layers, steps, threads
SmallOrNone = Annotated[int, Ge(0), Le(65_536)]  # the same, where 0 says that there is none, or leaves the choice
Seed = Annotated[int, Ge(0), Lt(2**32)]
Share = Annotated[float, Ge(0), Le(1)]
PositiveShare = Annotated[float, Gt(0), Le(1)]
Decay = Annotated[float, Ge(0), Lt(1)]
Number = Annotated[float, Ge(0), Le(1e9)]
PositiveNumber = Annotated[float, Gt(0), Le(1e9)]


@dataclass_transform(kw_only_default=True, frozen_default=True)
def section(cls: type[T]) -> type[T]:
    """Makes a frozen dataclass of a class. When it is read from a file, unknown keys and wrong values are refused."""
    cls.__pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}  # type: ignore[attr-defined]
    return dataclass(frozen=True, kw_only=True)(cls)


def to_plain(value: Any) -> Any:
    """Returns a section as data that JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        return [to_plain(v) for v in value]
    return value


def digest(value: Any) -> str:
    """Returns the sha256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(to_plain(value), sort_keys=True, separators=(",", ":")).encode()).hexdigest()
