"""Stages: fingerprints follow what a stage is told, an artifact is built once, a failure is remembered."""

import dataclasses
import errno
from contextlib import ExitStack
from pathlib import Path

import pytest

from flows.engine.build import build
from flows.engine.lease import Lease
from flows.engine.run import Job, Run
from flows.engine.stage import Graph, Node, Outcome, Stage
from flows.engine.store import Store
from flows.make_a_video import make_a_video
from flows.services.terminal import Terminal
from mav.errors import DivergedError, TakenOverError, UserError
from mav.recipes import Recipe
from mav.recipes.reader import load_recipe
from mav.storage import MANIFEST
from mav.storage.ledger import write_ledger

TABLE = {
    "image-metadata", "image-download", "clip", "image-screen", "image-embed", "image-select", "video-shards",
    "train-prior", "train-decoder", "train-sr-low", "train-sr-high", "train-decoder-video", "train-interpolation",
    "train-sr-low-video", "generate", "evaluate-ucf101", "evaluate-msrvtt", "evaluate-interpolation", "human-study",
    "report",
}  # fmt: skip


class Counter:
    """Two stages whose bodies count how often they ran."""

    def __init__(self, recipe: Recipe, store: Store, fail: bool = False) -> None:
        self.calls: list[str] = []
        self.fail = fail
        self.run = Run(recipe, store, Terminal(), ExitStack())
        plan = Graph(recipe)
        self.first = Stage("first", 1, ("generate", "seed"), self._first, "first")(plan)
        self.second = Stage("second", 1, ("evaluate",), self._second, "second")(plan, self.first)

    def _first(self, job: Job) -> Outcome:
        self.calls.append("first")
        job.out.write_json("half.json", 1)
        if self.fail:
            raise RuntimeError("the disk sang\nand then some")
        job.out.write_bytes("00000.tar", b"shard")
        shard = {"00000.tar": {"bytes": 5, "sha256": job.out.sha256("00000.tar")}}
        write_ledger(job.out, [[{"shard": "00000", "counts": {"rows_in": 1, "rows_out": 1}, "files": shard}]])
        return Outcome(counts={"rows_in": 1, "rows_out": 1})

    def _second(self, job: Job) -> Outcome:
        self.calls.append("second")
        job.out.write_json("second.json", job.inputs["first"].read_json("half.json"))
        return Outcome()


def _with(recipe: Recipe, **changes: object) -> Recipe:
    return dataclasses.replace(recipe, **changes)  # type: ignore[arg-type]


def test_the_graph_has_every_stage_and_the_papers_order() -> None:
    nodes = make_a_video(load_recipe("demo")).nodes
    assert set(nodes) >= TABLE

    def up(name: str) -> set[str]:
        return {node.name for node in nodes[name].upstream()}

    assert {"train-decoder", "video-shards"} <= up("train-decoder-video")
    assert {"train-decoder-video", "video-shards"} <= up("train-interpolation")
    assert {"train-sr-low", "video-shards"} <= up("train-sr-low-video")
    assert "video-shards" not in up("train-prior") | up("train-sr-high")
    assert {"train-prior", "train-interpolation", "train-sr-low-video", "train-sr-high"} <= up("generate")


def test_text_never_meets_motion_in_the_graph() -> None:
    """No video stage has an input that carries captions: they see clips, image networks and the CLIP, never the
    image-text shards."""
    nodes = make_a_video(load_recipe("demo")).nodes
    for name in ("video-shards", "train-decoder-video", "train-interpolation", "train-sr-low-video"):
        direct = {node.name for node in nodes[name].inputs}
        assert direct.isdisjoint({"image-metadata", "image-download", "image-screen", "image-embed", "train-prior"})


def test_a_fingerprint_follows_its_own_sections_and_what_is_upstream() -> None:
    def prints(*overrides: str) -> dict[str, str]:
        return {name: node.fingerprint for name, node in make_a_video(load_recipe("demo", overrides)).nodes.items()}

    base = prints()
    assert prints() == base
    assert prints("cluster.workers=2") == base, "where a run happens is not what it makes"
    changed = {
        name
        for name, value in prints("train_decoder_video.optimisation.learning_rate=0.00042").items()
        if value != base[name]
    }
    plan = make_a_video(load_recipe("demo"))
    assert changed == {"train-decoder-video", *(node.name for node in plan.downstream("train-decoder-video"))}
    assert {name for name, value in prints("seed=1").items() if value == base[name]} == set()


def test_a_threshold_makes_the_selection_anew_and_what_trains_on_it_but_no_shard() -> None:
    before = make_a_video(load_recipe("tiny")).nodes
    for threshold, stage, trained in (
        ("video_select.still=0.01", "video-select", "train-decoder-video"),
        ("image_select.near_duplicate=0.9", "image-select", "train-prior"),
    ):
        plan = make_a_video(load_recipe("tiny", [threshold]))
        moved = {name for name, node in plan.nodes.items() if node.fingerprint != before[name].fingerprint}
        assert moved == {stage, *(node.name for node in plan.downstream(stage))}
        assert trained in moved
        assert not {"video-shards", "image-download", "image-embed", "clip"} & moved


def test_an_outside_file_that_changes_makes_its_stage_stale(tmp_path: Path) -> None:
    table = tmp_path / "part.parquet"
    table.write_bytes(b"one")
    override = [f"image_metadata.sources=['{table}']"]
    before = make_a_video(load_recipe("demo", override)).nodes
    table.write_bytes(b"another")
    after = make_a_video(load_recipe("demo", override)).nodes
    assert before["image-metadata"].fingerprint != after["image-metadata"].fingerprint
    assert before["video-shards"].fingerprint == after["video-shards"].fingerprint


def test_built_once_found_after(small_recipe: Recipe, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    counter = Counter(small_recipe, store)
    assert store.state(counter.first, "small") == "missing"
    with pytest.raises(UserError, match="second needs first"):
        build(counter.second, counter.run)
    one = build(counter.first, counter.run)
    build(counter.second, counter.run)
    assert build(counter.first, counter.run).manifest == one.manifest
    assert counter.calls == ["first", "second"]
    build(counter.first, counter.run, fresh=True)
    assert counter.calls == ["first", "second", "first"]
    assert store.state(counter.first, "small") == "done"
    assert not store.work(counter.first).exists(), "nothing unfinished stays behind"


def test_a_changed_recipe_makes_the_old_artifact_stale(small_recipe: Recipe, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    counter = Counter(small_recipe, store)
    build(counter.first, counter.run)
    other = Counter(_with(small_recipe, seed=7), store)
    assert store.state(other.first, "small") == "stale"
    assert store.state(counter.first, "small") == "done"


def test_a_failure_is_remembered_and_mended(small_recipe: Recipe, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    counter = Counter(small_recipe, store, fail=True)
    with pytest.raises(RuntimeError):
        build(counter.first, counter.run)
    assert store.state(counter.first, "small") == "failed"
    assert store.work(counter.first).read_json("failure.json")["reason"] == "the disk sang"
    assert not store.artifact(counter.first).exists(MANIFEST)
    counter.fail = False
    build(counter.first, counter.run)
    assert store.state(counter.first, "small") == "done"


def test_a_training_that_diverged_is_not_tried_again_as_it_was(small_recipe: Recipe, tmp_path: Path) -> None:
    store, tries = Store(str(tmp_path)), list[int]()

    def diverges(job: Job) -> Outcome:
        tries.append(job.recipe.cluster.workers)
        raise DivergedError("walk: loss is not finite at samples 3 to 4: lower the rate.")

    def attempt(recipe: Recipe, fresh: bool = False) -> None:
        node = Stage("walk", 1, ("generate",), diverges, "walk")(Graph(recipe))
        build(node, Counter(recipe, store).run, fresh=fresh)

    for _ in range(2):
        with pytest.raises(DivergedError, match="not finite at samples 3 to 4"):
            attempt(small_recipe)
    assert tries == [1]
    with pytest.raises(DivergedError, match=r"lower the rate; it ended so before, and `mav rerun` of walk"):
        attempt(small_recipe)
    other = _with(small_recipe, cluster=dataclasses.replace(small_recipe.cluster, workers=2))
    for changed, fresh in ((other, False), (other, True)):
        with pytest.raises(DivergedError, match="not finite"):
            attempt(changed, fresh)
    assert tries == [1, 2, 2], "of another number of workers, or anew, it is tried"


def test_a_stage_that_was_taken_over_says_so_and_is_not_failed(small_recipe: Recipe, tmp_path: Path) -> None:
    store = Store(str(tmp_path))

    def late(job: Job) -> Outcome:
        assert job.lease
        (taken,) = job.lease.folder.names()
        job.lease.folder.write_bytes("000002.json", job.lease.folder.read_bytes(taken))
        raise RuntimeError("its workers were ended")

    node = Stage("walk", 1, ("generate",), late, "walk")(Graph(small_recipe))
    with pytest.raises(TakenOverError, match="took walk over"):
        build(node, Counter(small_recipe, store).run)
    assert not store.work(node).exists("failure.json")


def test_a_run_that_is_being_stopped_starts_nothing_and_fails_nothing(small_recipe: Recipe, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    counter = Counter(small_recipe, store)

    def interrupted(job: Job) -> Outcome:
        job.run.stopping.set()
        job.report(1, 2)
        raise AssertionError("a stage went on although its run is being stopped")

    node = Stage("third", 1, ("generate",), interrupted, "third")(Graph(small_recipe))
    with pytest.raises(UserError, match="being stopped"):
        build(node, counter.run)
    assert store.state(node, "small") == "missing"
    with pytest.raises(UserError, match="being stopped"):
        counter.run.ray()


@pytest.mark.parametrize("moment", ["acquire", "beat", "release"])
def test_a_full_disk_is_a_sentence_whatever_is_written(
    small_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def full(lease: Lease) -> None:
        if moment == "release":
            lease._end()  # what comes before it writes
        raise OSError(errno.ENOSPC, "No space left on device")

    store = Store(str(tmp_path))
    counter = Counter(small_recipe, store, fail=moment == "release")
    with monkeypatch.context() as patch:
        patch.setattr(Lease, moment, full)
        with pytest.raises(UserError, match="first: no space is left"):
            build(counter.first, counter.run)
    counter.fail = False
    assert build(counter.first, counter.run).manifest.stage == "first", "the same process goes on once there is room"


def test_two_builders_of_one_artifact(small_recipe: Recipe, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    outer = Counter(small_recipe, store)

    def nested(job: Job) -> Outcome:
        assert store.state(job.node, "small") == "running"
        build(job.node, outer.run)
        return Outcome()

    node = Stage("nested", 1, (), nested, "nested")(Graph(small_recipe))
    with pytest.raises(UserError, match="Another run is building nested"):
        build(node, outer.run)


def test_what_is_ready_first_is_what_leads_furthest() -> None:
    plan = make_a_video(load_recipe("demo"))
    ready = [plan.node(name) for name in ("train-prior", "train-sr-high", "train-decoder", "train-sr-low")]
    ordered: list[Node] = sorted(ready, key=lambda node: -plan.length_after(node))
    assert [node.name for node in ordered[:2]] == ["train-decoder", "train-sr-low"]


def test_a_damaged_artifact_can_be_built_again(small_recipe: Recipe, tmp_path: Path) -> None:
    counter = Counter(small_recipe, Store(str(tmp_path)))
    build(counter.first, counter.run)
    counter.run.store.artifact(counter.first).write_bytes(MANIFEST, b"")
    with pytest.raises(UserError, match="rerun its stage"):
        build(counter.first, counter.run)
    assert build(counter.first, counter.run, fresh=True).manifest.stage == "first"


@pytest.mark.parametrize("name", ["half.json", "00000.tar", "shards.parquet"])
@pytest.mark.parametrize("how", ["missing", "empty", "cut", "long", "changed"])
def test_a_stage_begins_with_whole_inputs(small_recipe: Recipe, tmp_path: Path, name: str, how: str) -> None:
    """A lost shard would be rows lost without a word. What was made before stays, a rerun included."""
    counter = Counter(small_recipe, Store(str(tmp_path)))
    build(counter.first, counter.run)
    made = build(counter.second, counter.run)
    folder = counter.run.store.artifact(counter.first)
    data = folder.read_bytes(name)
    folder.write_bytes(
        name, {"empty": b"", "cut": data[:-1], "long": data + b"x"}.get(how, bytes([data[0] ^ 1]) + data[1:])
    )
    if how == "missing":
        folder.remove(name)
    if (name, how) == ("00000.tar", "changed"):  # shards are too many to be read again: `mav verify` does
        assert build(counter.second, counter.run, fresh=True)
        return
    with pytest.raises(UserError, match=f"first, which is damaged: .*{name} .*`mav rerun` of first"):
        build(counter.second, counter.run, fresh=True)
    assert counter.calls == ["first", "second"]
    assert list(made.problems()) == []
    assert "damaged" in counter.run.store.failure(counter.second).reason
