"""Attempts at shards that hang where no second attempt can help: they are ended, and so tried again."""

import dataclasses
import time
from collections import Counter, deque
from types import SimpleNamespace
from typing import Any, cast

import pytest

from flows.engine.shard_map import _Attempt, _ShardPass
from mav.recipes import Recipe


@pytest.mark.parametrize(("finished", "limit"), [(0, 100.0), (5, 600.0)])
def test_attempts_that_all_hang_are_ended(small_recipe: Recipe, finished: int, limit: float) -> None:
    """Two at one shard, or one in the only actor there is, whether or not any shard was finished before."""
    ended, now = list[str](), time.monotonic()
    shards = cast(Any, _ShardPass.__new__(_ShardPass))
    shards.cluster = dataclasses.replace(small_recipe.cluster, stall_seconds=100.0, window=4)
    shards.pool = SimpleNamespace(grow=lambda slots: None, has_another=lambda name: False, end=ended.append)
    shards._slots = lambda: 2
    shards.seconds, shards.overtaken = deque([1.0] * finished), set()
    shards.running = Counter({"00000": 2, "00001": 1})
    shards.attempts = {
        "one": _Attempt("00000", 1, now - limit - 5),
        "another": _Attempt("00000", 1, now - limit - 1),
        "alone": _Attempt("00001", 1, now - limit - 1),
        "young": _Attempt("00002", 1, now - limit + 50),
    }
    shards._adapt()
    assert ended == ["one", "another", "alone"]
    shards.cluster = dataclasses.replace(shards.cluster, stall_seconds=0.0)
    shards._adapt()
    assert len(ended) == 3, "0 = never"
