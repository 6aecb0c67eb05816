"""Artifacts: files appear whole, the manifest comes last, one changed byte is found, counts must add up."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mav.errors import UserError
from mav.storage import MANIFEST, Artifact, Folder, Manifest
from mav.storage.counts import add_counts, unbalanced
from mav.storage.ledger import LEDGER, write_ledger

FACTS = {"stage": "s", "version": 1, "fingerprint": "f" * 64, "recipe": "r", "config": {"a": 1}, "inputs": {}}


def _artifact(folder: Folder, **more: object) -> Artifact:
    folder.write_bytes("data/one.bin", b"abc" * 100)
    folder.write_json("two.json", {"z": 1, "a": [1.5, None]})
    folder.write_bytes("00000.tar", b"shard")
    told = {"00000.tar": {"bytes": 5, "sha256": folder.sha256("00000.tar")}}
    write_ledger(
        folder,
        [
            [
                {
                    "shard": "00000",
                    "counts": {"rows_in": 2, "rows_out": 1, "dropped": {"nsfw": 1}, "failed": {}},
                    "files": told,
                }
            ]
        ],
    )
    return Artifact.publish(folder, **{**FACTS, **more})


@pytest.mark.parametrize("scheme", ["local", "memory"])
def test_publish_and_open(tmp_path: Path, scheme: str) -> None:
    folder = Folder(str(tmp_path / "a") if scheme == "local" else f"memory://{tmp_path.name}/a")
    with pytest.raises(UserError, match="no finished artifact"):
        Artifact.open(folder)
    made = _artifact(folder)
    opened = Artifact.open(folder.url)
    assert opened.manifest == made.manifest
    assert opened.files() == ["00000.tar", "data/one.bin", LEDGER, "two.json"]
    assert opened.files(".bin") == ["data/one.bin"]
    assert sorted(opened.manifest.files) == ["data/one.bin", LEDGER, "two.json"], (
        "shards' files are the ledger's to name"
    )
    assert list(opened.problems()) == []


def test_any_changed_byte_is_named(tmp_path: Path) -> None:
    artifact = _artifact(Folder(str(tmp_path)))
    for name in [*artifact.files(), MANIFEST]:
        path = tmp_path / name
        whole = path.read_bytes()
        for position in range(0, len(whole), max(1, len(whole) // 40)):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
            try:
                problems = list(Artifact.open(str(tmp_path)).problems())
            except UserError as error:
                problems = [str(error)]
            assert problems, f"byte {position} of {name} changed unseen"
            assert str(path) in problems[0]
        path.write_bytes(whole)
    assert list(Artifact.open(str(tmp_path)).problems()) == []


@pytest.mark.parametrize("storage", ["local", pytest.param("s3", marks=pytest.mark.slow)])
def test_changed_missing_short_and_extra_files_are_named(
    tmp_path: Path, storage: str, request: pytest.FixtureRequest
) -> None:
    folder = Folder(str(tmp_path) if storage == "local" else f"{request.getfixturevalue('s3')}/{tmp_path.name}")
    artifact = _artifact(folder)
    folder.write_bytes("data/one.bin", b"abd" * 100)
    assert "one.bin was changed" in "; ".join(artifact.problems())
    folder.write_bytes("data/one.bin", b"abc")
    folder.remove("two.json")
    folder.write_bytes("stray", b"")
    folder.remove("00000.tar")
    problems = "; ".join(artifact.problems(quick=True))
    assert "two.json is missing" in problems
    assert "00000.tar is missing" in problems
    assert "one.bin has 3 bytes instead of 300" in problems
    assert "stray is not part" in problems
    folder.write_bytes(MANIFEST, folder.read_bytes(MANIFEST).replace(b'"version": 1', b'"version": 2'))
    with pytest.raises(UserError, match="changed after it was written"):
        Artifact.open(folder)


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))

    def interrupted() -> None:
        with folder.create("x") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_content_depends_on_bytes_alone(tmp_path: Path) -> None:
    one = _artifact(Folder(str(tmp_path / "1")), seconds=1.0, finished="2020-01-01T00:00:00+00:00")
    two = _artifact(Folder(str(tmp_path / "2")), seconds=9.0)
    assert one.manifest.content == two.manifest.content
    assert one.manifest.to_bytes() != two.manifest.to_bytes()
    assert Manifest.from_bytes(one.manifest.to_bytes(), "m") == one.manifest


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50)), max_size=6))
def test_counts_add_up_shard_by_shard(parts: list[tuple[int, int, int]]) -> None:
    shards = [{"rows_in": a + b + c, "rows_out": a, "dropped": {"nsfw": b}, "failed": {"dns": c}} for a, b, c in parts]
    total = add_counts(shards)
    assert list(unbalanced(total)) == [problem for shard in shards for problem in unbalanced(shard)] == []
    assert total["rows_in"] == sum(s["rows_in"] for s in shards)
    total["rows_out"] += 1
    assert list(unbalanced(total))


def test_shards_that_do_not_add_up_are_named(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    _artifact(folder)
    folder.remove(MANIFEST)
    counts = {"rows_in": 3, "rows_out": 1, "dropped": {}, "failed": {}}
    write_ledger(folder, [[{"shard": "00000", "counts": counts, "files": {}}]])
    assert list(Artifact.publish(folder, **FACTS).problems()) == ["shard 00000: 3 rows came in but 1 are accounted for"]


def test_folders_are_those_directly_below(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "artifacts"))
    assert folder.folders() == []
    for name in ("b/x/y", "a/z", "file"):
        folder.write_bytes(name, b"")
    assert folder.folders() == ["a", "b"]
