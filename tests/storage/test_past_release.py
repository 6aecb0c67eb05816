"""Artifacts that an earlier release wrote (format 1) are read by this one."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from flows.engine.retry import _join
from mav.errors import UserError
from mav.storage import MANIFEST, Artifact, Folder
from mav.storage.artifact import FORMAT
from mav.storage.folder import canonical_json
from mav.training.export import load_network

PAST = Path(__file__).parent / "past_release"


@pytest.mark.parametrize("stage", ["video-shards", "train-sr-low"])
def test_an_artifact_of_a_past_release_is_whole(stage: str) -> None:
    artifact = Artifact.open(str(PAST / stage))
    assert b'"format"' not in (PAST / stage / MANIFEST).read_bytes()
    assert (artifact.manifest.stage, artifact.manifest.format) == (stage, 1)
    assert artifact.manifest.how == artifact.manifest.outside == {}
    assert list(artifact.problems()) == []


def test_its_network_and_its_ledger_are_read() -> None:
    assert load_network(Folder(str(PAST / "train-sr-low"))).network.config.low_resolution
    shards = list(Artifact.open(str(PAST / "video-shards")).shards())
    assert [shard["shard"] for shard in shards] == ["00000", "00001", "00002", "00003"]
    assert sum(shard["counts"]["rows_out"] for shard in shards) == 12


def test_a_changed_byte_of_it_is_found(tmp_path: Path) -> None:
    folder = shutil.copytree(PAST / "video-shards", tmp_path / "a")
    whole = (folder / MANIFEST).read_bytes()
    for position in range(0, len(whole), len(whole) // 50):
        (folder / MANIFEST).write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(UserError, match="manifest"):
            Artifact.open(str(folder))


def test_a_retry_pass_over_it_writes_todays_format(tmp_path: Path) -> None:
    old = Artifact.open(str(shutil.copytree(PAST / "video-shards", tmp_path / "a")))
    shards = Folder(str(shutil.copytree(PAST / "video-shards", tmp_path / "b")))
    counts = {"rows_in": 1, "rows_out": 1, "dropped": {}, "failed": {}, "retried": {}}
    _join(old, shards, 1, counts)
    assert Artifact.open(old.folder).manifest.format == FORMAT


def test_an_artifact_of_a_later_release_says_so(tmp_path: Path) -> None:
    folder = shutil.copytree(PAST / "video-shards", tmp_path / "a")
    body = json.loads((folder / MANIFEST).read_bytes())
    body |= {"format": FORMAT + 1, "new": 1}
    del body["digest"]
    body["digest"] = hashlib.sha256(canonical_json(body)).hexdigest()
    (folder / MANIFEST).write_bytes(canonical_json(body))
    with pytest.raises(UserError, match=rf"has format {FORMAT + 1}, and this release reads up to {FORMAT}: use the"):
        Artifact.open(str(folder))
