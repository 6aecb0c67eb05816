"""`mav clean`: only what nothing needs goes, and what somebody builds stays."""

import dataclasses
import os
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli.clean import leftovers, remove
from flows.cli.main import app
from flows.engine.build import build
from flows.engine.lease import exclusive
from flows.engine.run import Job, Run
from flows.engine.stage import Graph, Node, Outcome, Stage
from flows.engine.store import Store, owner_key
from flows.make_a_video import make_a_video
from flows.services.terminal import Terminal
from mav.recipes import Recipe
from mav.recipes.reader import load_recipe
from mav.storage import Artifact


def _first(job: Job) -> Outcome:
    job.out.write_bytes("data.bin", b"x" * 1000)
    return Outcome()


def _second(job: Job) -> Outcome:
    job.out.write_bytes("more.bin", job.inputs["first"].read_bytes("data.bin"))
    return Outcome()


def plan_of(recipe: Recipe) -> tuple[Graph, Node, Node]:
    plan = Graph(recipe)
    first = Stage("first", 1, ("generate", "seed"), _first, "first")(plan)
    return plan, first, Stage("second", 1, ("evaluate", "seed"), _second, "second")(plan, first)


def built(recipe: Recipe, store: Store) -> tuple[Graph, Node, Node]:
    plan, first, second = plan_of(recipe)
    for node in (first, second):
        build(node, Run(recipe, store, Terminal(), ExitStack()))
    return plan, first, second


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.slow)])
def any_store(request: pytest.FixtureRequest) -> Store:
    if request.param == "local":
        return Store(str(request.getfixturevalue("tmp_path")))
    return Store(f"{request.getfixturevalue('s3')}/clean-{uuid.uuid4().hex}")


def test_old_artifacts_go_and_what_is_needed_stays(small_recipe: Recipe, store: Store) -> None:
    # `finished` has whole seconds: equal ones are told apart by fingerprint, so the newest is not known here; the
    # current always stays.
    versions = [built(dataclasses.replace(small_recipe, seed=seed), store) for seed in (1, 2, 3)]
    plan, *now = versions[1]
    other = dataclasses.replace(small_recipe, name="other", seed=1)
    assert build(versions[0][1], Run(other, store, Terminal(), ExitStack())).manifest.recipe == "small", (
        "shared with another recipe"
    )
    cleaning = leftovers(plan, store, keep_last=0)
    assert {item.what for item in cleaning.leftovers} == {"older artifact"}
    assert len(cleaning.leftovers) == 4
    assert cleaning.bytes > 4000
    assert len(leftovers(plan, store, keep_last=3).leftovers) == 0
    assert all(store.find(node) for _, *nodes in versions for node in nodes), "looking removes nothing"
    assert [remove(store, item, {owner_key("small")}) for item in cleaning.leftovers] == [""] * 4
    assert all(store.find(node) for node in now)
    assert not any(store.find(node) for _, *nodes in (versions[0], versions[2]) for node in nodes)
    assert leftovers(plan, store, keep_last=0).leftovers == []
    assert not store.root.child("work").names()


def test_what_another_recipe_was_made_from_stays(small_recipe: Recipe, store: Store) -> None:
    old = dataclasses.replace(small_recipe, seed=1)
    _, first, _ = plan_of(old)
    build(first, Run(old, store, Terminal(), ExitStack()))
    other = dataclasses.replace(old, name="other")
    _, _, theirs = built(other, store)
    plan, *_ = plan_of(dataclasses.replace(small_recipe, seed=2))
    assert leftovers(plan, store, keep_last=0).leftovers == []
    assert store.find(theirs)


def test_unfinished_work(small_recipe: Recipe, any_store: Store) -> None:
    store = any_store
    plan, first, second = built(small_recipe, store)
    _, old_first, _ = plan_of(dataclasses.replace(small_recipe, seed=9))
    with exclusive(store.work(old_first), "first", "small"):
        store.artifact(old_first).write_bytes("half.bin", b"12345")
        store.work(old_first).write_bytes("markers/00000.json", b"{}")
        assert leftovers(plan, store, 0).leftovers == [], "somebody builds it"
    _, _, theirs = plan_of(dataclasses.replace(small_recipe, name="other", seed=9))
    with exclusive(store.work(theirs), "second", "other"):
        store.work(theirs).write_bytes("checkpoint", b"123")
    store.work(second).write_bytes("markers/00000.json", b"{}")  # killed between publication and tidying up
    found = leftovers(plan, store, 0).leftovers
    assert sorted((item.what, item.place[0]) for item in found) == [
        ("abandoned work", "first"), ("abandoned work", "first"), ("work of a finished stage", "second"),
    ]  # fmt: skip
    assert [remove(store, item, {owner_key("small")}) for item in found] == [""] * 3
    assert store.work(theirs).exists("checkpoint")
    assert not store.artifact(old_first).exists()
    assert not store.work(second).exists()
    assert list(store.find(first).problems()) == []  # type: ignore[union-attr]


def test_unfinished_work_of_the_present_graph_is_capital(small_recipe: Recipe, store: Store) -> None:
    plan, first, _ = plan_of(small_recipe)
    with exclusive(store.work(first), "first", "small"):
        store.work(first).write_bytes("markers/00000.json", b"{}")
        store.artifact(first).write_bytes("00000.tar", b"12345")
    assert leftovers(plan, store, 0).leftovers == []


def test_an_older_version_at_work_keeps_all_older_versions(small_recipe: Recipe, store: Store) -> None:
    built(dataclasses.replace(small_recipe, seed=1), store)
    plan, *_ = built(small_recipe, store)
    _, old_first, _ = plan_of(dataclasses.replace(small_recipe, seed=5))
    with exclusive(store.work(old_first), "first", "small"):
        cleaning = leftovers(plan, store, 0)
        assert cleaning.leftovers == []
        assert any("Another version of small is at work" in sentence for sentence in cleaning.spared)
    assert cleaning.leftovers != leftovers(plan, store, 0).leftovers


def test_half_written_files_go_unless_somebody_writes(small_recipe: Recipe, store: Store) -> None:
    plan, first, second = built(small_recipe, store)
    half = [store.artifact(first).path(".tmp-1"), store.artifact(second).path(".tmp-2")]
    for path in half:
        Path(path).write_bytes(b"half")
    with exclusive(store.work(first), "first", "small"):
        assert [item.place[0] for item in leftovers(plan, store, 0).leftovers] == ["second"]
    for item in leftovers(plan, store, 0).leftovers:
        assert remove(store, item, {owner_key("small")}) == ""
    assert not any(os.path.exists(path) for path in half)
    assert all(store.find(node) for node in (first, second))
    assert not store.work(second).exists()


def test_the_command_lists_first_and_removes_when_told(tmp_path: Path) -> None:
    recipe = load_recipe("tiny")
    store = Store(str(tmp_path))
    node = make_a_video(recipe).node("demo-world")
    facts: dict[str, Any] = {"stage": node.name, "version": 1, "recipe": "tiny", "config": {}, "inputs": {}}
    facts["finished"] = "2026-01-01T00:00:00+00:00"
    old = store.root.child("artifacts/demo-world/0000000000000000")
    for folder, fingerprint in ((store.artifact(node), node.fingerprint), (old, "0" * 64)):
        folder.write_bytes("x.bin", b"x" * 50_000)
        Artifact.publish(folder, fingerprint=fingerprint, **facts)
    arguments = ["clean", "tiny", "--runs", str(tmp_path), "--keep-last", "0"]
    listed = CliRunner().invoke(app, arguments)
    assert (listed.exit_code, "add --delete" in listed.output) == (0, True)
    assert "artifacts/demo-world/0000000000000000" in listed.output
    assert old.exists()
    removed = CliRunner().invoke(app, [*arguments, "--delete"])
    assert "Removed 50," in removed.output
    assert not old.exists()
    assert store.find(node)
    assert "Nothing to remove" in CliRunner().invoke(app, arguments).output
