"""Attempts at shards that hang where no second attempt can help: they are ended, and so tried again."""

import dataclasses
import time
from collections import Counter, deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from flows.engine.markers import Markers
from flows.engine.shard_map import _Attempt, _ShardPass
from flows.engine.shard_task import ShardResult
from mav.recipes import Recipe
from mav.storage import Folder


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


def test_a_shard_that_an_ended_attempt_spoilt_is_not_believed_by_a_later_run(tmp_path: Path) -> None:
    markers = Markers(Folder(str(tmp_path / "out")), Folder(str(tmp_path / "markers")))
    markers.out.write_bytes("00000.tar", b"whole")
    markers.commit("00000", {"rows_in": 1, "rows_out": 1}, ["00000.tar"])
    markers.out.write_bytes("00000.tar", b"spilt")  # of the same size
    shards = cast(Any, _ShardPass.__new__(_ShardPass))
    shards.markers, shards.running, shards.overtaken, shards.done = markers, Counter({"00000": 1}), {"00000"}, 1
    assert shards._settle(_Attempt("00000", 1), ShardResult(problem="ended")), "it is tried again"
    assert markers.committed(["00000"]) == set(), "by a run that goes on after this one is killed, too"
