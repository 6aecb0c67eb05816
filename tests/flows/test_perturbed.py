"""Every value of the recipe is changed once: a stage's bytes move exactly where the recipe's marks say that they do."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from recorded import other_tree, reads_of_bodies, run_here

from flows.engine.run import Job, Run
from flows.engine.stage import Node
from flows.engine.store import Store
from flows.make_a_video import make_a_video
from flows.services.ports import reserve_port
from flows.services.terminal import Terminal
from mav.recipes import Recipe
from mav.recipes.identity import covers, values
from mav.recipes.reader import load_recipe
from mav.storage import MANIFEST, Folder

pytestmark = pytest.mark.slow

SMALL = (
    "world.images=40", "world.clips=8", "world.evaluation_clips=4", "evaluate.bootstrap=2", "generate.count=2",
    "generate.frame_rates=[4.0]", "image_download.timeout_seconds=1", "image_download.deadline_seconds=1",
    "video_shards.timeout_seconds=1",
)  # fmt: skip
# Records of the making, not what is made: their lines follow the intervals.
RECORDS = ("curves.jsonl",)
# Values that bite on so small a world; the ends of keys. All others are changed by a little.
BITES: dict[str, Any] = {
    "max_bytes": 2000, "max_pixels": 100, "max_seconds": 0.1, "min_caption": 30, "max_caption": 20, "min_side": 60,
    "punsafe_threshold": 0.1, "pwatermark_threshold": 0.1, "rows_per_shard": 20, "word_lists": [],
    "refuse_directives": [], "image_embed.batch_size": 3, "generate.batch_size": 1, "generate.frame_rates": [8.0],
    "betas": [0.5, 0.6], "warmup_samples": 16, "cooldown_samples": 16, "start": [2.0, 3.0], "end": [2.0, 3.0],
    "video.frames": 3, "interpolation.frames": 3, "contact": "someone@example.com", "success_floor": 0.1,
    "timeout_seconds": 2.0, "deadline_seconds": 2.0,
}  # fmt: skip
SKIPPED = ("compile",)  # minutes of a compiler, for other last bits
UNMOVED: set[tuple[str, str]] = set()


def other_value(key: str, value: Any) -> Any:
    bite = next((found for end, found in BITES.items() if f".{key}".endswith(f".{end}")), None)
    return bite if bite is not None and type(bite) is type(value) else other_tree(key, value)


def made(node: Node, recipe: Recipe, store: Store, place: str) -> dict[str, str]:
    """Runs a stage's body over the first run's artifacts, and returns the digest of each file that it makes."""
    out, work = Folder(f"{place}/out"), Folder(f"{place}/work")
    for folder in (out, work):
        folder.remove()
    with ExitStack() as services:
        job = Job(node, Run(recipe, store, Terminal(), services), out, work)
        try:
            node.stage.body(job)
        except Exception as error:  # a value that the stage refuses is no value without effect
            return {"error": type(error).__name__}
    return {name: out.sha256(name) for name in out.names() if name not in (MANIFEST, *RECORDS)}


def cases(node: Node, recipe: Recipe, read: set[str]) -> Iterator[tuple[str, Any, bool]]:
    """Yields (key, another value, whether it counts) of what a stage reads."""
    for value in values(recipe):
        apart = value.key.startswith(("cluster.", "expect.", "name", "about"))
        if value.key in read and not apart and not value.key.endswith(SKIPPED):
            counts = value.counts and covers(node.stage.reads_of(recipe), value.key)
            yield value.key, other_value(value.key, value.value), counts


def test_bytes_move_exactly_where_the_marks_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = [*SMALL, f"world.port={reserve_port()}"]
    recipe = load_recipe("tiny", overrides)
    nodes = [node for node in make_a_video(recipe).nodes.values() if node.name != "report"]
    run_here(monkeypatch)
    monkeypatch.setattr("torch.set_num_threads", lambda number: None)
    read, store = reads_of_bodies(recipe, nodes, str(tmp_path / "runs")), Store(str(tmp_path / "runs"))
    from recorded import replaced

    wrong = []
    for node in nodes:
        base = made(node, recipe, store, str(tmp_path / "base"))
        assert "error" not in base, node.name
        for key, value, counts in cases(node, recipe, read[node.name]):
            changed = made(node, replaced(recipe, key, value), store, str(tmp_path / "other"))
            if (changed != base) != counts and (node.name, key) not in UNMOVED:
                wrong.append([node.name, key, value, counts, changed.get("error")])
                Path("/tmp/h/c-work/wrong.jsonl").open("a").write(json.dumps(wrong[-1]) + "\n")
    assert wrong == []
