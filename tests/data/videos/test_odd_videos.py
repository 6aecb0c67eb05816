"""Each odd or broken video is brought into the same form, or refused with a reason. Nothing else may happen."""

import dataclasses
import io

import av
import numpy as np
import pytest
from odd_videos import FRAMES, HANDLED, RATE, REFUSED, flipped, video

from mav.data.videos.probe import ClipError
from mav.data.videos.transcode import convert
from mav.data.videos.video_io import open_video, read_frames, read_squares
from mav.recipes import VideoShards

RULE = VideoShards(short_side=32, keyframe_interval=4)

KEPT = dataclasses.replace(RULE, reencode=False)


def check_colours(frame: np.ndarray, left: tuple[int, ...]) -> None:
    """An upright `picture`, as far as compression lets one see."""
    height, width = frame.shape[:2]
    top, middle = frame[: max(height // 8, 1)], frame[height * 3 // 8 : height // 2]
    seen = [region.mean(axis=(0, 1)) for region in (middle[:, : width // 3], middle[:, -width // 3 :])]
    assert np.abs(seen[0] - left).max() < 45, seen
    assert np.abs(seen[1] - (0, 0, 200)).max() < 45, seen
    assert top[:, -width // 3 :].mean() > 200


def test_there_are_enough():
    assert len(HANDLED) + len(REFUSED) >= 100


@pytest.mark.parametrize("name", HANDLED)
def test_handled(name):
    make, expected = HANDLED[name]
    if name == "theora ogg" and "libtheora" not in av.codecs_available:
        pytest.skip("this build of FFmpeg does not write theora")
    clip = convert(make(), RULE)
    metadata = clip.metadata
    plain = {"fps": float(RATE), "frames": FRAMES, "width": 42, "height": 32}
    for name, value in (plain | expected).items():
        if name in metadata and value not in (None, True):
            assert metadata[name] == pytest.approx(value, rel=1e-3), (name, metadata)
    if "times" not in (plain | expected):
        assert "times" not in metadata
    reader = open_video(clip.data)
    assert len(reader) == metadata["frames"]
    assert set(reader.get_key_indices()) == set(range(0, metadata["frames"], 4))
    at = metadata.get("times") or [i / metadata["fps"] for i in range(metadata["frames"])]
    assert (np.diff(at) > 0).all()
    assert reader.get_frame_timestamp(range(len(reader)))[:, 0] == pytest.approx(at, abs=2e-4)
    frames = read_frames(clip.data)
    assert frames.shape[1:] == (metadata["height"], metadata["width"], 3)
    if expected.get("colours", True) and metadata["height"] > 8:
        upright = np.rot90(frames[0], -expected.get("turned", 0)) if "turned" in expected else frames[0]
        check_colours(upright, expected.get("left", (200, 0, 0)))
    with av.open(io.BytesIO(clip.data)) as container:
        assert [stream.type for stream in container.streams] == ["video"]
        assert not container.metadata.get("title")


def test_kept_as_they_are():
    """Pass-through keeps the original bytes of what training can read; all metadata but the size is the same."""
    kept, refused = set(), {}
    for name, (make, expected) in HANDLED.items():
        if name == "theora ogg":
            continue
        data = make()
        try:
            clip = convert(data, KEPT)
        except ClipError as error:
            refused[name] = str(error)
            continue
        kept.add(name)
        assert clip.data == data
        ours = convert(data, RULE).metadata
        assert clip.metadata | {n: ours[n] for n in ("width", "height")} == ours
        squares = read_squares(data, range(clip.metadata["frames"]), 16)
        assert len(squares) == clip.metadata["frames"]
        if expected.get("colours", True):
            check_colours(read_frames(data, [0])[0], expected.get("left", (200, 0, 0)))
    assert len(kept) >= 45
    assert not [name for name in kept if name.startswith("turned by")]
    assert not kept & {"anamorphic", "interlaced", "high dynamic range", "transparent", "size changes"}


def check_numbers(frames: np.ndarray, first: int = 0) -> None:
    """Each frame is its `picture`."""
    levels = frames[:, -6:, 2:12, 1].mean(axis=(1, 2))
    assert np.abs(levels - [12 * ((first + i) % 16) for i in range(len(frames))]).max() < 8


def test_every_frame_keeps_its_time():
    times = [0.1 * i if i < 10 else 0.9 + 0.2 * (i - 9) for i in range(20)]  # ten frames a second, then five
    clip = convert(video(times=times, frames=20), RULE)
    assert clip.metadata["times"] == pytest.approx(times, abs=1e-3)
    assert clip.metadata["fps"] == pytest.approx(19 / times[-1], abs=0.01)
    shown = open_video(clip.data)
    assert shown.get_frame_timestamp(range(20))[:, 0] == pytest.approx(times, abs=1e-3)
    check_numbers(shown.get_batch(range(20)).asnumpy())


def test_spans_of_a_kept_video():
    data = video(frames=40, rate=10)
    clip = convert(data, KEPT, start=1.0, end=2.5)
    assert (clip.metadata["first"], clip.metadata["frames"], clip.data) == (10, 15, data)


@pytest.mark.parametrize(
    ("start", "options"), [(6.03, {"g": "20"}), (6.03, {"g": "1000", "sc_threshold": "0", "bf": "0"}), (1.0, {})]
)
def test_spans_are_sought_and_exact(start, options):
    data = video(frames=120, rate=10, options=options)
    frames = read_frames(convert(data, RULE, start=start, end=start + 2).data)
    assert len(frames) == 20
    check_numbers(frames, round(start * 10))


def test_a_list_tells_what_was_cut_off():
    """Matroska and transport streams do not say how long they are; a list does."""
    for container in ("matroska", "mpegts"):
        data = video(container, frames=60, options={"bf": "0"})
        assert convert(data, RULE, listed=6.0).metadata["frames"] == 60
        with pytest.raises(ClipError, match="truncated"):
            convert(data[: len(data) // 3], RULE, listed=6.0)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts", "avi"])
def test_damaged_in_the_middle(share, container):
    """Either refused, or every frame is there at its time: the decoder hides small damage."""
    try:
        metadata = convert(flipped(video(container, frames=30, options={"bf": "0"}), share), RULE).metadata
        outcome = 8 <= metadata["frames"] <= 30
    except ClipError as error:
        outcome = str(error)
    assert outcome in (
        True,
        "undecodable",
        "truncated",
        "wild_timestamps",
        "wild_frame_rate",
        "too_short",
        "zero_frames",
    )


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    make, reason = REFUSED[name]
    for rule in (RULE, KEPT):
        with pytest.raises(ClipError) as caught:
            convert(make(), rule)
        assert str(caught.value) == reason
