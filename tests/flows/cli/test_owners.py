"""Who needs which artifact: `mav clean` after one recipe leaves what another, a stopped run or a study needs."""

import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from test_clean import built, plan_of

from flows.cli.clean import leftovers, remove
from flows.engine.lease import exclusive
from flows.engine.stage import Graph
from flows.engine.store import Records, Store, owner_key, recipe_owner, record, record_artifact
from flows.make_a_video import make_a_video
from mav.recipes import Recipe
from mav.recipes.reader import load_recipe
from mav.storage import Artifact

Mav = Callable[..., tuple[int, str, str]]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "runs"))


def project(folder: Path, seed: int) -> Path:
    """A project's own recipe.yaml."""
    folder.mkdir()
    (folder / "recipe.yaml").write_text(f"extends: tiny\nseed: {seed}\n")
    return folder / "recipe.yaml"


def finished(recipe: Path, store: Store) -> Graph:
    """The graph of a recipe whose world is drawn, as a run leaves it."""
    loaded = load_recipe(str(recipe))
    graph = make_a_video(loaded)
    record(recipe_owner(str(recipe)), store, graph.nodes.values(), loaded)
    node = graph.node("demo-world")
    store.artifact(node).write_bytes("data.bin", b"x" * 10_000)
    facts = {"stage": node.name, "version": 1, "recipe": loaded.name, "config": {}, "inputs": {}}
    Artifact.publish(store.artifact(node), fingerprint=node.fingerprint, finished="2026-01-01", **facts)
    return graph


def cleaned(mav: Mav, recipe: Path, store: Store, *more: str) -> str:
    code, out, err = mav("clean", recipe, "--runs", store.root.url, "--keep-last", "0", "--delete", *more)
    assert (code, err) == (0, "")
    return " ".join(out.split())


def test_two_projects_whose_recipes_have_one_name(tmp_path: Path, store: Store, mav: Mav) -> None:
    cats, dogs = project(tmp_path / "cats", 1), project(tmp_path / "dogs", 2)
    graphs = [finished(recipe, store) for recipe in (cats, dogs)]
    said = cleaned(mav, dogs, store)
    assert f"1 artifact is left alone for {recipe_owner(str(cats))}." in said
    assert all(store.find(graph.node("demo-world")) for graph in graphs)
    reports = [mav("report", recipe, "--runs", store.root.url)[1].strip() for recipe in (cats, dogs)]
    assert len(set(reports)) == 2
    assert all(Path(report).exists() for report in reports)


def test_what_both_need_goes_with_the_last_of_them(tmp_path: Path, store: Store, mav: Mav) -> None:
    cats, dogs = project(tmp_path / "cats", 1), project(tmp_path / "dogs", 1)
    node = finished(cats, store).node("demo-world")
    assert "Nothing to do" in mav("run", dogs, "--until", "demo-world", "--runs", store.root.url)[1]
    for recipe in (cats, dogs):
        assert store.find(node), "the other needs it"
        recipe.write_text(recipe.read_text().replace("seed: 1", "seed: 3"))
        cleaned(mav, recipe, store)
    assert store.find(node) is None
    assert Records.read(store).needs == {}, "nobody needs what is gone"


def test_a_stopped_runs_inputs_stay(small_recipe: Recipe, store: Store) -> None:
    built(dataclasses.replace(small_recipe, seed=1), store)
    theirs, *_ = plan_of(dataclasses.replace(small_recipe, seed=1, name="other"))
    record("elsewhere:/other.yaml", store, theirs.nodes.values(), small_recipe)
    now, *_ = plan_of(dataclasses.replace(small_recipe, seed=2))
    assert leftovers(now, store, 0).leftovers == []
    damaged = store.root.child("recipes")
    for name in damaged.names():
        damaged.write_bytes(name, b"")
    assert leftovers(now, store, 0).leftovers == [], "a record counts even when it cannot be read"
    damaged.remove()
    assert len(leftovers(now, store, 0).leftovers) == 2


def test_what_a_recipe_starts_from_stays(small_recipe: Recipe, store: Store) -> None:
    _, first, _ = built(dataclasses.replace(small_recipe, seed=1), store)
    start = store.artifact(first).path("data.bin")
    training = dataclasses.replace(small_recipe.train_prior, start=start)
    record("elsewhere:/other.yaml", store, [], dataclasses.replace(small_recipe, train_prior=training))
    now, *_ = plan_of(dataclasses.replace(small_recipe, seed=2))
    assert {item.place[0] for item in leftovers(now, store, 0).leftovers} == {"second"}


def test_a_study_with_votes_stays(small_recipe: Recipe, store: Store) -> None:
    _, _, second = built(dataclasses.replace(small_recipe, seed=1), store)
    record_artifact("the votes in /home/votes", store.artifact(second).path("study"))
    record_artifact("nobody", str(Path(store.root.url).parent))
    now, *_ = plan_of(dataclasses.replace(small_recipe, seed=2))
    cleaning = leftovers(now, store, 0)
    assert cleaning.leftovers == [], "it was made from the first, which stays too"
    assert "1 artifact is left alone for the votes in /home/votes." in cleaning.spared
    assert len(leftovers(now, store, 0, ["small", "the votes in /home/votes"]).leftovers) == 2


def test_a_renamed_recipes_artifacts_stay_until_it_is_named(tmp_path: Path, store: Store, mav: Mav) -> None:
    old = project(tmp_path / "cats", 1)
    node = finished(old, store).node("demo-world")
    new = old.rename(old.with_name("new.yaml"))
    new.write_text("extends: tiny\nseed: 2\n")
    said = cleaned(mav, new, store)
    assert f"`--also {old}` would clean after it as well" in said
    assert store.find(node)
    assert re.search(r"Removed 10,\d{3} bytes", cleaned(mav, new, store, "--also", str(old)))
    assert store.find(node) is None


def test_only_what_a_disk_wins_is_counted(small_recipe: Recipe, store: Store, tmp_path: Path) -> None:
    _, first, second = built(dataclasses.replace(small_recipe, seed=1), store)
    data = store.artifact(first).path("data.bin")
    os.link(data, tmp_path / "kept.bin")
    os.remove(store.artifact(second).path("more.bin"))
    (tmp_path / "large.bin").write_bytes(b"x" * 70_000)
    os.symlink(tmp_path / "large.bin", store.artifact(second).path("more.bin"))
    now, *_ = plan_of(dataclasses.replace(small_recipe, seed=2))
    assert leftovers(now, store, 0).bytes < 5000, "two manifests"
    os.remove(tmp_path / "kept.bin")
    os.link(data, store.artifact(second).path("same.bin"))
    assert 1000 < leftovers(now, store, 0).bytes < 6000, "two names in what goes are one file"


def test_of_a_linked_artifact_only_the_link_goes(small_recipe: Recipe, store: Store, tmp_path: Path) -> None:
    _, first, _ = built(dataclasses.replace(small_recipe, seed=1), store)
    moved = tmp_path / "other disk"
    os.rename(store.artifact(first).root, moved)
    os.symlink(moved, store.artifact(first).root)
    now, *_ = plan_of(dataclasses.replace(small_recipe, seed=2))
    found = leftovers(now, store, 0).leftovers
    assert [remove(store, item, {owner_key("small")}) for item in found] == ["", ""]
    assert "only the link" in found[0].why
    assert {"data.bin", "manifest.json"} == {path.name for path in moved.iterdir()}
    assert not os.path.lexists(store.artifact(first).root)


def test_an_unfinished_retry_pass_stays(small_recipe: Recipe, store: Store) -> None:
    plan, first, _ = built(small_recipe, store)
    with exclusive(store.work(first), "first", "small"):
        store.work(first).write_bytes("retry1/out/00000-retry1.tar", b"fetched")
    cleaning = leftovers(plan, store, 0)
    assert cleaning.leftovers == []
    assert any("unfinished retry pass" in sentence for sentence in cleaning.spared)


def test_what_cannot_be_removed_is_told_and_not_counted(
    small_recipe: Recipe, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    built(dataclasses.replace(small_recipe, seed=1), store)
    now, *_ = plan_of(dataclasses.replace(small_recipe, seed=2))
    item = leftovers(now, store, 0).leftovers[0]

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(store.root.fs), "rm", refuse)
    assert "Permission denied" in remove(store, item, {owner_key("small")})


def test_who_asks_while_it_is_cleaned_keeps_it(small_recipe: Recipe, store: Store) -> None:
    plan, first, _ = built(dataclasses.replace(small_recipe, seed=1), store)
    now, *_ = plan_of(dataclasses.replace(small_recipe, seed=2))
    items = leftovers(now, store, 0).leftovers
    record("elsewhere:/other.yaml", store, plan.nodes.values(), small_recipe)
    assert all("needs it since a moment ago" in remove(store, item, {owner_key("small")}) for item in items)
    assert store.find(first)
