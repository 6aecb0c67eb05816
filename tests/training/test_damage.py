"""Whatever one file of a checkpoint loses, the training goes on from the one before and ends in the same bytes."""

import shutil
import time
from pathlib import Path

import pytest
import torch
from small_training import run, small_recipe

from mav.errors import DivergedError, UserError, full_disk_told, no_space
from mav.storage import Folder
from mav.training.checkpoint import Checkpoints
from mav.training.export import WEIGHTS
from mav.training.process.preemption import PreemptedError

RECIPE = small_recipe(samples=12, checkpoint_every=4)
STAGE = "train-prior"
DAMAGES = {
    "removed": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 3]),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
}

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def stopped(root: Folder, recipe=RECIPE) -> Path:
    """The checkpoints of a training that ended after 8 of 12 samples, with one at 4 and one at 8."""

    def report(line):
        if line["samples"] == 12:
            raise PreemptedError("stopped")

    with pytest.raises(PreemptedError):
        run(root, STAGE, recipe, work="broken", out="broken", report=report)
    work = root.child(f"broken/{STAGE}")
    while Checkpoints(work, "", keep=2).finished() != [4, 8]:  # a thread is still writing
        time.sleep(0.01)
    return Path(root.path(f"broken/{STAGE}"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = Folder(str(tmp_path_factory.mktemp("trained")))
    run(root, STAGE, RECIPE, work="whole", out="whole")
    return root, stopped(root)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", ["facts.json", ".metadata", "__0_0.distcp"])
def test_a_damaged_newest_checkpoint_is_told_and_the_one_before_taken(trained, tmp_path, file, damage):
    root, work = trained
    again = Folder(str(tmp_path))
    shutil.copytree(work, tmp_path / "work" / STAGE)
    newest = sorted((tmp_path / "work" / STAGE).iterdir())[-1]
    assert newest.name == f"{8:012d}"
    DAMAGES[damage](newest / file)
    told, seen = [], []

    def report(line):
        told.extend([line["message"]] if "message" in line else [])
        seen.append(line["samples"])

    run(again, STAGE, RECIPE, out="out", report=report)
    assert again.read_bytes(f"out/{WEIGHTS}") == root.read_bytes(f"whole/{WEIGHTS}")
    if (file, damage) != ("facts.json", "removed"):  # then it was never whole
        assert len(told) == 1
        assert str(newest) in told[0]
        assert "damaged" in told[0]
        assert "the one before is taken" in told[0]


def test_when_all_are_damaged_it_says_what_to_do(trained, tmp_path):
    shutil.copytree(trained[1], tmp_path / "work" / STAGE)
    for path in (tmp_path / "work" / STAGE).glob("*/*.distcp"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"All checkpoints in .* are damaged: bring one back from a copy"):
        run(Folder(str(tmp_path)), STAGE, RECIPE)
    run(Folder(str(tmp_path)), STAGE, RECIPE)  # anew, as it said


def test_a_checkpoint_of_before_has_no_list_of_files(trained, tmp_path):
    work = tmp_path / "work" / STAGE
    shutil.copytree(trained[1], work)
    folder = Folder(str(work / f"{8:012d}"))
    folder.write_json("facts.json", {k: v for k, v in folder.read_json("facts.json").items() if k != "files"})
    assert Checkpoints(Folder(str(work)), "", keep=2).finished() == [4, 8]


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["empty", "zeros"])
def test_a_damaged_average_is_left_out(tmp_path, damage):
    root = Folder(str(tmp_path))
    stopped(root, recipe := small_recipe(samples=12, checkpoint_every=4, held_out=4, export="post_hoc"))
    while Checkpoints(root.child(f"broken/{STAGE}/averages"), "", keep=2).finished() != [4, 8]:
        time.sleep(0.01)  # a thread is still writing
    averages = sorted((tmp_path / "broken" / STAGE / "averages").glob("*/*.distcp"))
    assert averages
    DAMAGES[damage](averages[0])
    run(root, STAGE, recipe, work="broken", out="out")
    assert root.exists(f"out/{WEIGHTS}")


def test_a_training_that_diverges_is_the_users_to_mend(tmp_path):
    recipe = small_recipe(samples=12, checkpoint_every=4, learning_rate=1e30)
    with pytest.raises(
        DivergedError, match=r"not finite at samples \d+ to \d+.*train_prior.optimisation.learning_rate"
    ):
        run(Folder(str(tmp_path)), STAGE, recipe)
    assert issubclass(DivergedError, UserError)


@pytest.mark.parametrize("way", ["its own", "another's cause", "another's context", "text alone", "quota"])
def test_a_full_disk_is_seen_through_other_errors(way):
    full = OSError(122 if way == "quota" else 28, "the disk")

    def hide() -> None:
        try:
            raise full
        except OSError as error:
            if way == "another's cause":
                raise RuntimeError("unexpected pos 704 vs 598") from error
            if way == "another's context":
                raise RuntimeError("unexpected pos 704 vs 598")  # noqa: B904
            if way == "text alone":
                raise RuntimeError("write failed: No space left on device") from None
            raise

    with pytest.raises((OSError, RuntimeError)) as raised:
        hide()
    assert no_space(raised.value)
    assert not no_space(ValueError("space"))
    told = pytest.raises(UserError, match="stage: no space is left where /runs is written")
    with told, full_disk_told("stage", "/runs"):
        raise RuntimeError from full


def test_a_checkpoint_for_which_there_is_no_room_leaves_nothing(tmp_path, monkeypatch):
    """Torch hides the full disk behind an error of its own archive."""
    from torch.distributed.checkpoint._fsspec_filesystem import FileSystem

    def hidden(*_):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")

    checkpoints = Checkpoints(Folder(str(tmp_path)), "id", keep=2)
    monkeypatch.setattr(FileSystem, "rename", hidden)
    for free, error in ((0, OSError), (1 << 40, RuntimeError)):
        usage = shutil._ntuple_diskusage(1 << 40, 0, free)
        monkeypatch.setattr(shutil, "disk_usage", lambda path, usage=usage: usage)
        checkpoints.save(2, {"a": torch.zeros(300)}, {})
        with pytest.raises(error) as raised:
            checkpoints.wait()
        assert no_space(raised.value) == (free == 0)
        assert list(tmp_path.rglob("*.distcp")) == []
