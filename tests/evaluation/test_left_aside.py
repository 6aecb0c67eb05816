"""What a folder holds beside videos that are read as they are: pictures of frames, other files, odd names."""

import numpy as np
import pytest
from PIL import Image
from small_videos import frames, save

from mav.evaluation.features import Networks
from mav.evaluation.protocols import Preparation
from mav.evaluation.reading import read_video, videos_below
from mav.evaluation.suite.run import run_suite
from mav.report.suite import suite_page
from mav.storage import Folder


def webp(path, pictures):
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *others = map(Image.fromarray, pictures)
    first.save(path, save_all=bool(others), append_images=others, lossless=True)


def test_an_animated_webp_in_a_folder_is_a_video_and_others_are_its_frames(tmp_path):
    film = frames(0, 5)
    webp(tmp_path / "system" / "a boat-0.webp", film)
    for number, frame in enumerate(film):
        webp(tmp_path / "system" / "a boat-1" / f"{number}.WEBP", [frame])
        webp(tmp_path / "mixed" / f"{number}.webp", [frame])
    webp(tmp_path / "mixed" / "whole.webp", film)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "x.webp").write_bytes(b"RIFF")
    folder = Folder(str(tmp_path))
    found = videos_below(folder)
    assert found == ["broken/x.webp", "mixed", "mixed/whole.webp", "system/a boat-0.webp", "system/a boat-1"]
    for name in found[1:]:
        assert np.array_equal(read_video(folder, name, Preparation(5)), film), name
    with pytest.raises(ValueError, match="GIF"):
        read_video(folder, "broken/x.webp", Preparation(5))


def test_what_is_no_video_is_named_and_no_name_is_markup(tmp_path):
    odd = "<img src=x onerror=alert(1)> & 'co' \"quoted\""
    for number in range(2):
        save(frames(number, 3), tmp_path / "videos" / f"{odd}-{number}.npy", "npy")
    videos = Folder(str(tmp_path / "videos"))
    for name in ("clip.mpg", f"{odd}.txt", *(f"{letter}.log" for letter in "abcde")):
        videos.write_bytes(name, b"x")
    given = (videos, Networks(()), Folder(str(tmp_path / "out")))
    result = run_suite(*given)
    (note,) = result["notes"]
    assert note == f"left aside: {odd}.txt, a.log, b.log, c.log, clip.mpg and 2 more"
    page = suite_page(result, videos).decode()
    assert "Left aside: &lt;img src=x" in page
    assert "<img src=x" not in page
    assert run_suite(*given, samples=1)["notes"] == [], "the others are videos that were not asked for"
