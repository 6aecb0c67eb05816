"""What the Prefect UI is told of a stage."""

import dataclasses
import json
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from flows.engine.run import Run
from flows.engine.stage import Node
from flows.engine.store import Store
from flows.make_a_video import make_a_video
from flows.services import prefect_artifacts
from flows.services.terminal import Terminal
from mav.recipes import Recipe, World
from mav.storage import Artifact


@pytest.fixture
def built(small_recipe: Recipe, tmp_path: Path) -> tuple[Node, Run, Artifact]:
    recipe = dataclasses.replace(small_recipe, world=World())
    node, run = make_a_video(recipe).node("train-prior"), Run(recipe, Store(str(tmp_path)), Terminal(), ExitStack())
    out = run.store.artifact(node)
    lines = [{"samples": n, "loss": 1 / n} for n in (8, 16, 24)]
    out.write_bytes("curves.jsonl", "\n".join(json.dumps(line) for line in lines).encode())
    facts: dict[str, Any] = {
        "stage": node.name,
        "version": 1,
        "fingerprint": node.fingerprint,
        "recipe": "small",
        "config": {},
    }
    counts = {"rows_in": 3, "rows_out": 1, "dropped": {"nsfw": 1}, "failed": {"timeout": 1}}
    told = {"inputs": {}, "counts": counts, "metrics": {"loss": 0.5}, "seconds": 1.5, "finished": "", "software": {}}
    return node, run, Artifact.publish(out, **facts, **told)


def test_progress_says_rate_and_time_left() -> None:
    beat = {"time": 110.0, "done": 60, "total": 100, "loss": 0.25, "host": "here", "pid": 1}
    assert prefect_artifacts.progress_text(beat, (100.0, 40)) == "60 of 100 at 2/s, 20 s left; loss 0.25"
    assert prefect_artifacts.progress_text(beat, (110.0, 60)) == "60 of 100; loss 0.25"


def test_a_finished_stage_shows_counts_measures_and_its_curve(built: tuple[Node, Run, Artifact]) -> None:
    node, _, artifact = built
    page = prefect_artifacts.page(node.name, artifact)
    for row in (
        "| dropped: nsfw | 1 |",
        "| failed: timeout | 1 |",
        "| rows_in | 3 |",
        "| loss | 0.5 |",
        "| seconds | 1.5 |",
    ):
        assert row in page
    assert "![loss over samples](data:image/svg+xml;base64," in page


def test_many_pictures_lie_beside_their_captions(
    built: tuple[Node, Run, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    node, _, artifact = built
    monkeypatch.setattr(prefect_artifacts, "_images", lambda *_: [("a", "data:1"), ("b", "data:2"), ("c", "data:3")])
    page = prefect_artifacts.page(node.name, artifact)
    assert page.endswith("\n\n| | |\n|---|---|\n| ![a](data:1) | a |\n| ![b](data:2) | b |\n| ![c](data:3) | c |\n")


def test_the_bar_follows_the_heartbeat_and_ends_full(
    built: tuple[Node, Run, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    node, run, _ = built
    told: list[tuple[float, str]] = []

    def create(percent: float, key: str, description: str) -> str:
        assert key == "train-prior-progress"
        told.append((percent, description))
        return "id"

    monkeypatch.setattr(prefect_artifacts, "UPDATE_SECONDS", 0.05)
    monkeypatch.setattr(prefect_artifacts, "create_progress_artifact", create)
    monkeypatch.setattr(
        prefect_artifacts,
        "update_progress_artifact",
        lambda _, percent, description: told.append((percent, description)),
    )
    work = run.store.work(node)
    with prefect_artifacts.stage_artifacts(node.name, node.stage.about, work):
        work.write_json("heartbeat.json", {"time": time.time() + 1, "done": 1, "total": 4})
        time.sleep(0.5)
    assert told[0] == (25.0, "1 of 4")
    assert told[-1][0] == 100.0


def test_what_cannot_be_shown_stops_nothing(built: tuple[Node, Run, Artifact], monkeypatch: pytest.MonkeyPatch) -> None:
    node, _, artifact = built
    told: list[str] = []
    artifact.folder.write_bytes("curves.jsonl", b"torn")
    monkeypatch.setattr(
        prefect_artifacts, "create_markdown_artifact", lambda key, markdown, description: told.append(markdown)
    )
    prefect_artifacts.show(node.name, node.stage.about, artifact)
    assert "cannot be shown" in told[0]
