"""Clips come from folders, from paths, from the web under the guards, and from YouTube (a stand-in for yt-dlp)."""

import contextlib
import json
import os
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest
from loopback import Quiet, served

from mav.data.fetching.addresses import system_resolver
from mav.data.shards import read_tar
from mav.data.videos.clip_files import ClipFiles
from mav.data.videos.clip_list import ListedClip, read_clips, split_lists
from mav.data.videos.probe import ClipError
from mav.data.videos.video_io import encode_mp4
from mav.data.videos.video_shards import VideoWork
from mav.errors import UserError
from mav.recipes import VideoShards
from mav.storage import Folder

PAGE = "https://www.youtube.com/watch?v=abc"


def video(frames=48) -> bytes:
    return encode_mp4(np.stack([np.full((32, 48, 3), 5 * i, np.uint8) for i in range(frames)]), 24)


@pytest.fixture(scope="module")
def site():
    """A server on loopback that counts its requests: (host:port, what was asked for)."""
    asked: list[str] = []

    class Site(Quiet):
        def get(self) -> None:
            asked.append(self.path)
            self.answer(body=video())

    with served(Site) as address:
        yield address, asked


def fetched(rule: VideoShards, *clips: ListedClip) -> list[bytes | str]:
    return [
        str(body) if isinstance(body, ClipError) else body for _, body in ClipFiles(rule, system_resolver).fetch(clips)
    ]


class FakeYoutube:
    """As much of yt_dlp as is used: every page plays the given address; pages that end in `gone` do not play."""

    def __init__(self, address: str) -> None:
        self.address, self.pages = address, []
        utils = types.SimpleNamespace(DownloadError=type("DownloadError", (Exception,), {}))
        self.module = types.SimpleNamespace(YoutubeDL=self.open, utils=utils)

    def open(self, options: dict):
        assert options["quiet"]
        assert options["allowed_extractors"] == ["youtube"]  # a page may lead to any other
        return contextlib.nullcontext(self)

    def extract_info(self, page: str, download: bool) -> dict:
        assert not download
        self.pages.append(page)
        if page.endswith("gone"):
            raise self.module.utils.DownloadError("Video unavailable")
        return {"url": f"http://{self.address}/stream.mp4"}


def test_paths_and_folders(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1.mp4").write_bytes(b"one")
    (tmp_path / "whole.mp4").write_bytes(b"whole")
    inside = VideoShards(files=str(tmp_path))
    assert fetched(
        inside, ListedClip("1", page_dir="a"), ListedClip("x", path="a/1.mp4"), ListedClip("2", page_dir="a")
    ) == [b"one", b"one", "missing_file"]
    assert fetched(inside, ListedClip("whole.1", "http://h", path="whole.mp4", start=1, end=2)) == [b"whole"]
    assert fetched(inside, ListedClip("x", path=str(tmp_path / "a/1.mp4"))) == [b"one"]
    assert fetched(VideoShards(files=str(tmp_path), max_bytes=2), ListedClip("x", path="a/1.mp4")) == ["too_large"]
    memory = Folder("memory://videos")
    memory.write_bytes("b/2.mp4", b"two")
    assert fetched(VideoShards(files="memory://videos"), ListedClip("2", page_dir="b")) == [b"two"]
    assert fetched(VideoShards(files="memory://videos"), ListedClip("x", path="memory:///videos/b/2.mp4")) == [b"two"]
    memory.remove()


def test_a_list_reaches_no_file_outside_the_named_folder(tmp_path):
    """Neither by steps upwards, nor by a full path, nor by a link; a pipe in the folder is not waited for."""
    folder = tmp_path / "videos"
    (folder / "deep").mkdir(parents=True)
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(b"secret")
    (tmp_path / "videos-of-others").mkdir()
    (tmp_path / "videos-of-others/1.mp4").write_bytes(b"secret")
    (folder / "link.mp4").symlink_to(secret)
    (folder / "deep/up").symlink_to(tmp_path)
    (folder / "real.mp4").write_bytes(b"own")
    (folder / "inner.mp4").symlink_to(folder / "real.mp4")
    os.mkfifo(folder / "pipe.mp4")
    outside = [
        *("../secret.mp4", str(secret), "deep/../../secret.mp4", "link.mp4", "deep/up/secret.mp4", "/etc/passwd"),
        *("../videos-of-others/1.mp4", "//etc/passwd", ".."),
    ]
    rule = VideoShards(files=str(folder))
    clips = [ListedClip("x", path=path) for path in outside]
    clips += [
        ListedClip("secret", page_dir=".."),
        ListedClip("../secret"),
        ListedClip("secret", page_dir=str(tmp_path)),
    ]
    assert fetched(rule, *clips) == ["outside_folder"] * len(clips)
    missing = [ListedClip("x", path=f"file://{secret}"), ListedClip("x", path="http://127.0.0.1:9/x")]
    assert fetched(rule, *missing) == ["missing_file"] * 2
    assert fetched(rule, ListedClip("x", path="pipe.mp4"), ListedClip("x", path="inner.mp4")) == [
        "unreadable_file",
        b"own",
    ]
    (tmp_path / "shortcut").symlink_to(folder)
    assert fetched(VideoShards(files=str(tmp_path / "shortcut")), ListedClip("real")) == [b"own"]
    memory = Folder("memory://all")
    memory.write_bytes("secret.mp4", b"secret")
    for path in ("../secret.mp4", "/all/secret.mp4", "memory://all/secret.mp4", "a/../../secret.mp4"):
        assert fetched(VideoShards(files="memory://all/videos"), ListedClip("x", path=path)) == ["outside_folder"]
    memory.remove()


def test_without_a_folder_a_list_reaches_addresses_only_and_those_under_the_guards(site, tmp_path):
    address, asked = site
    asked.clear()
    (tmp_path / "1.mp4").write_bytes(b"secret")
    places = [
        str(tmp_path / "1.mp4"),
        f"file://{tmp_path}/1.mp4",
        f"http://{address}/1",
        "memory://x/1.mp4",
        "simplecache::",
    ]
    bodies = fetched(VideoShards(), *(ListedClip("x", path=place) for place in places))
    assert bodies == ["no_folder", "bad_scheme", "private_address", "bad_scheme", "no_folder"]
    # An id without an address, as in a line of HD-VILA, is a path too.
    line = {"video_id": f"http://{address}/1", "url": "", "clip": [{"clip_id": "c", "span": ["0", "1"]}]}
    (tmp_path / "list.jsonl").write_text(json.dumps(line))
    (clip,) = read_clips(split_lists([str(tmp_path / "list.jsonl")], 10)[0], 0)
    assert fetched(VideoShards(), clip) == ["private_address"]
    assert not asked
    allowed = VideoShards(allow_addresses=(address,), max_bytes=10)
    assert fetched(allowed, clip, ListedClip("x", path=f"http://{address}/2")) == ["too_large"] * 2


def test_reasons_need_no_fetching():
    clips = (
        ListedClip("1", "http://h/1", problem="duplicate"),
        ListedClip("2"),
        ListedClip("3", "http://127.0.0.1:9/3"),
        ListedClip("4", "file:///etc/passwd"),
    )
    assert fetched(VideoShards(), *clips) == ["duplicate", "no_address", "private_address", "bad_scheme"]


def test_clips_of_one_video_share_its_bytes(site):
    address, asked = site
    asked.clear()
    rule = VideoShards(allow_addresses=(address,))
    spans = [ListedClip(f"v.{i}", f"http://{address}/v", "v", start=i, end=i + 1) for i in range(3)]
    bodies = fetched(rule, *spans, ListedClip("w.0", f"http://{address}/w", "w", start=0, end=1))
    assert len({id(body) for body in bodies[:3]}) == 1
    assert asked == ["/v", "/w"] or asked == ["/w", "/v"]


def test_youtube_through_yt_dlp_under_the_guards(site, monkeypatch):
    address, asked = site
    asked.clear()
    fake = FakeYoutube(address)
    monkeypatch.setitem(sys.modules, "yt_dlp", fake.module)
    allowed = VideoShards(allow_addresses=(address,))
    bodies = fetched(allowed, ListedClip("a", PAGE), ListedClip("b", "https://youtu.be/gone"))
    assert bodies == [video(), "youtube_refused"]
    assert (sorted(fake.pages), asked) == ([PAGE, "https://youtu.be/gone"], ["/stream.mp4"])
    assert fetched(VideoShards(), ListedClip("a", PAGE)) == ["private_address"]
    assert fetched(VideoShards(), ListedClip("a", "file://youtube.com/etc/passwd")) == ["bad_scheme"]
    # yt-dlp itself has no deadline.
    monkeypatch.setattr(fake, "extract_info", lambda *_, **__: threading.Event().wait())
    assert fetched(VideoShards(deadline_seconds=0.1), ListedClip("a", PAGE)) == ["timeout"]


def test_youtube_without_yt_dlp_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "yt_dlp", None)
    with pytest.raises(UserError, match=r"pip install yt-dlp.*video_shards\.files"):
        fetched(VideoShards(), ListedClip("a", PAGE))


def test_hd_vila_from_its_list_to_shards(site, tmp_path: Path, monkeypatch):
    """Three of four spans of each video are made from one fetch a video; no temporary file is left."""
    address, asked = site
    asked.clear()
    monkeypatch.setitem(sys.modules, "yt_dlp", FakeYoutube(address).module)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    spans = [
        ["00:00:00.000", "00:00:00.500"],
        ["00:00:00.500", "00:00:01.000"],
        ["00:00:01.000", "00:00:01.500"],
        ["0:01.5", "0:02"],
    ]
    clips = [{"clip_id": f"c.{i}.mp4", "span": span} for i, span in enumerate(spans)]
    lines = [json.dumps({"video_id": name, "url": f"{PAGE}{name}", "clip": clips}) for name in ("one", "two", "gone")]
    (tmp_path / "hdvila.jsonl").write_text("\n".join(lines))
    rule = VideoShards(short_side=32, clips_per_shard=100, allow_addresses=(address,))
    work = VideoWork(
        tuple(split_lists([str(tmp_path / "hdvila.jsonl")], rule.clips_per_shard)),
        rule,
        0,
        Folder(str(tmp_path / "out")),
    )
    counts = work("00000").counts
    assert (counts["rows_in"], counts["rows_out"], counts["failed"]) == (9, 6, {"youtube_refused": 3})
    assert len(asked) == 2
    metadata = [json.loads(files["json"]) for _, files in read_tar(work.out, "00000.tar")]
    assert all(clip["frames"] == 12 and clip["fps"] == 24 for clip in metadata)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hdvila.jsonl", "out"]
