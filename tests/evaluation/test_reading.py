"""Videos in every usual format, and the lists of prompts and clips as they are distributed."""

import json

import numpy as np
import pytest
from PIL import Image
from small_videos import FRAMES, frames, save, write

from mav.data.videos.video_io import encode_mp4
from mav.errors import UserError
from mav.evaluation.protocols import Preparation, load_protocol
from mav.evaluation.reading import find_videos, read_video
from mav.evaluation.sets import read_msrvtt, read_prompts, read_set, read_ucf101
from mav.evaluation.suite.aside import left_aside
from mav.storage import Folder

PREPARATION = Preparation(FRAMES)
PROMPTS = ("a red circle", "a green circle", "a blue circle", "a red square")


def test_every_format_gives_the_same_frames(tmp_path):
    video, folder = frames(1, 6), Folder(str(tmp_path))
    (tmp_path / "a.mp4").write_bytes(encode_mp4(video, 8, crf=1))
    first, *rest = [Image.fromarray(frame).quantize(256) for frame in video]
    first.save(tmp_path / "b.gif", save_all=True, append_images=rest, duration=125)
    for name, array in {
        "c.npy": video,
        "d.npy": video.transpose(0, 3, 1, 2).astype(np.float32) / 255,
        "e.npy": video.astype(np.float64) / 127.5 - 1,
        "f.pt": video,
    }.items():
        save(array, tmp_path / name, name[-3:].strip("."))
    (tmp_path / "g").mkdir()
    for i, frame in enumerate(video):
        Image.fromarray(frame).save(
            tmp_path / "g" / f"frame{i + 7}.png"
        )  # 7 to 12: the order is of numbers, not of letters
    entries, beside = find_videos(folder, (), 9)
    assert [entry.file for entry in entries] == ["a.mp4", "b.gif", "c.npy", "d.npy", "e.npy", "f.pt", "g", "", ""]
    assert beside == 0
    for entry in entries[:7]:
        read = read_video(folder, entry.file, PREPARATION)
        assert read.shape == (FRAMES, 32, 32, 3)
        assert read.dtype == np.uint8
        assert np.abs(read.astype(int) - video[1:5]).mean() < 6, entry.file
    smaller = read_video(folder, "c.npy", Preparation(FRAMES, size=16, resize="bicubic"))
    assert smaller.shape == (FRAMES, 16, 16, 3)
    wide = np.zeros((FRAMES, 20, 40, 3), np.uint8)
    save(wide, tmp_path / "wide.npy", "npy")
    assert read_video(folder, "wide.npy", Preparation(FRAMES, size=10, resize="area")).shape == (FRAMES, 10, 10, 3)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((1, 8, 8, 3), np.uint8), "too few frames"),
        (np.full((6, 8, 8, 3), np.nan, np.float32), "not finite"),
        (np.zeros((6, 8, 8), np.uint8), "shape"),
        (np.zeros((6, 8, 8, 3), np.int64), "neither bytes nor floats"),
        (np.full((6, 8, 8, 3), 200.0), "floats must lie"),
        (np.array([{}], object), "not a readable tensor"),
    ],
)
def test_a_tensor_that_is_no_video_says_why(tmp_path, array, reason):
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    with pytest.raises(ValueError, match=reason):
        read_video(Folder(str(tmp_path)), "x.npy", PREPARATION)


def test_files_belong_to_the_prompt_they_are_numbered_by_or_listed_with(tmp_path):
    folder = Folder(str(tmp_path))
    write(folder, (0, 2, 7))
    entries, beside = find_videos(folder, PROMPTS, 4)
    assert [(entry.file, entry.prompt) for entry in entries] == [
        ("00000.mp4", PROMPTS[0]), ("", PROMPTS[1]), ("00002.mp4", PROMPTS[2]), ("", PROMPTS[3]),
    ]  # fmt: skip
    assert beside == 1
    folder.write_json("videos.json", [{"file": "00007.mp4", "prompt": "seven"}, {"file": "gone.mp4", "prompt": "gone"}])
    entries, beside = find_videos(folder, PROMPTS, 3)
    assert [(entry.file, entry.prompt) for entry in entries] == [("00007.mp4", "seven"), ("", "gone"), ("", "")]
    assert beside == 2
    for file in ("../x.mp4", "/etc/passwd", "a/../../x.mp4", "a\\..\\x.mp4"):
        folder.write_json("videos.json", [{"file": file, "prompt": "../../etc"}])
        with pytest.raises(UserError, match="outside of its folder"):
            find_videos(folder, PROMPTS, 3)
    folder.write_bytes("videos.json", b'{"not": "a list"}')
    with pytest.raises(UserError, match="not a list"):
        find_videos(folder, PROMPTS, 3)
    with pytest.raises(UserError, match="holds no video"):
        find_videos(Folder(str(tmp_path / "empty")), PROMPTS, 3)


def test_prompt_files(tmp_path):
    (tmp_path / "draw.csv").write_text('Prompt,Category\nA red car.,Colors\n"One, two",Counting\n')
    assert read_prompts(Folder(str(tmp_path / "draw.csv"))) == [("A red car.", "Colors"), ("One, two", "Counting")]
    (tmp_path / "lines.txt").write_text("one\n\n two \n")
    assert read_prompts(Folder(str(tmp_path / "lines.txt"))) == [("one", ""), ("two", "")]
    (tmp_path / "list.json").write_text('[{"prompt": "x", "category": null}]')
    assert read_prompts(Folder(str(tmp_path / "list.json"))) == [("x", "")]
    for name, content in (("empty.txt", " \n"), ("no.csv", "a,b\n1,2\n"), ("bad.json", "{"), ("binary.txt", None)):
        (tmp_path / name).write_bytes(content.encode() if content is not None else b"\xff\xfe\x00")
        with pytest.raises(UserError):
            read_prompts(Folder(str(tmp_path / name)))
    with pytest.raises(UserError, match="not there"):
        read_prompts(Folder(str(tmp_path / "gone.txt")))


def test_the_sets_as_they_are_distributed(real_data):
    ucf = Folder(str(real_data / "ucf101"))
    classes = read_ucf101(ucf)
    assert (len(classes), sum(len(c.clips) for c in classes)) == (101, 9537)
    assert sum(len(c.clips) for c in read_ucf101(ucf, "test")) == 3783
    handstand = next(c for c in classes if c.name == "HandstandPushups")
    assert handstand.clips[0].startswith("HandstandPushups/v_HandStandPushups")
    asked = read_set(load_protocol("ucf101-paper"), ucf, 10_000)
    assert (len(asked.prompts), len(asked.real), asked.prompts[0]) == (10_000, 9537, "applying eye makeup")
    clip = read_video(ucf, "v_ApplyEyeMakeup_g01_c01.avi", Preparation(16, size=256, resize="bicubic"))
    assert clip.shape == (16, 256, 256, 3)
    msrvtt = Folder(str(real_data / "msrvtt"))
    clips, notes = read_msrvtt(msrvtt, load_protocol("msrvtt-paper"))
    assert (len(clips), sum(len(c.captions) for c in clips)) == (2990, 1000)
    assert "1,000 of the protocol's 59,794 prompts" in notes[0]
    asked = read_set(load_protocol("msrvtt-paper"), msrvtt, 59_794)
    assert len(asked.prompts) == 1000
    assert {"video7010.mp4", "video7014.mp4"} <= set(asked.real)
    listed = Folder(str(real_data / "prompts" / "drawbench_200.csv"))
    assert len(read_set(load_protocol("drawbench"), None, 200, listed).prompts) == 200
    assert len({category for _, category in read_prompts(listed)}) == 11


STRAYS = ["grid.gif", "._00000.mp4", ".DS_Store", "__MACOSX/._00001.mp4", ".ipynb_checkpoints/00002-checkpoint.mp4",
          "@eaDir/00001.mp4", "Thumbs.db", "prompts.txt", ".hidden/00003.mp4", "preview.webp"]  # fmt: skip


@pytest.mark.parametrize("form", ["mp4", "gif", "npy", "frames"])
def test_what_lies_beside_the_videos_takes_no_place(tmp_path, form):
    folder = Folder(str(tmp_path))
    for i in range(4):
        if form == "frames":
            for k, pixels in enumerate(frames(i)):
                folder.write_bytes(f"{i:05d}/frame{k}.png", b"")
                Image.fromarray(pixels).save(tmp_path / f"{i:05d}/frame{k}.png")
        elif form == "gif":
            first, *rest = map(Image.fromarray, frames(i))
            first.save(tmp_path / f"{i:05d}.gif", save_all=True, append_images=rest)
        else:
            write(folder, [i]) if form == "mp4" else save(frames(i), tmp_path / f"{i:05d}.npy", "npy")
    alone = find_videos(folder, PROMPTS, 4)[0]
    for stray in STRAYS:
        folder.write_bytes(stray, b"x")
    if form == "frames":
        folder.write_bytes("00001/.ipynb_checkpoints/0-checkpoint.png", (tmp_path / "00001/frame0.png").read_bytes())
        folder.write_bytes("00001/._frame0.png", b"x")
    found = find_videos(folder, PROMPTS, 4)[0]
    assert found == alone
    assert [entry.prompt for entry in found] == list(PROMPTS[:4])
    assert set(STRAYS) <= set(left_aside(folder, found))
    assert read_video(folder, found[1].file, PREPARATION).shape[0] == FRAMES


def test_videos_named_by_their_prompts(tmp_path):
    """VBench's names: the prompt and the number of the sample, of which the first counts."""
    folder = Folder(str(tmp_path))
    prompts = ("a boat", "a cat. It sleeps", "2 dogs-1", "no video", "and/or")
    for name in ("a cat. It sleeps-0", "a boat-0", "a boat-1", "2 dogs-1-0", "and_or-0", "a stray"):
        folder.write_bytes(f"{name}.mp4", b"x")
    entries, beside = find_videos(folder, prompts, 5)
    files = ["a boat-0.mp4", "a cat. It sleeps-0.mp4", "2 dogs-1-0.mp4", "", "and_or-0.mp4"]
    assert [(entry.file, entry.prompt) for entry in entries] == list(zip(files, prompts, strict=True))
    assert beside == 2


HEADER, LINES = "key,vid_key,video_id,sentence", [f"r{i},m{i},video{i},a man {i}" for i in range(3)]


@pytest.mark.parametrize(
    "odd", ['"a man', 'a 5" man', '"a man, walking"', "a man, walking", '"two\r\nlines"', "a\u2028man"]
)
def test_no_caption_of_msrvtt_takes_another_with_it(tmp_path, odd):
    lines = [HEADER, LINES[0], f"r7,m7,video7,{odd}", *LINES[1:]]
    (tmp_path / "MSRVTT_JSFUSION_test.csv").write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    clips, _ = read_msrvtt(Folder(str(tmp_path)))
    assert [clip.path for clip in clips] == [f"videos/video{i}.mp4" for i in (0, 7, 1, 2)]
    assert [clip.captions for clip in clips if "7" not in clip.path] == [(f"a man {i}",) for i in range(3)]
    assert clips[1].captions[0].strip('"').startswith(odd.strip('"')[:3])
    assert ("walking" in clips[1].captions[0]) == ("walking" in odd)


@pytest.mark.parametrize(
    ("name", "content"),
    [("MSRVTT_JSFUSION_test.csv", f"{HEADER}\nr7,m7,video7\n".encode()),
     ("MSRVTT_JSFUSION_test.csv", f"{HEADER}\nr7,m7,video7,caf\xe9\n".encode("latin-1")),
     ("MSRVTT_JSFUSION_test.csv", b""), ("captions.json", b"[" * 100_000), ("captions.json", b"[]")],
)  # fmt: skip
def test_lists_of_msrvtt_in_another_layout_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="bring the file as it is distributed") as caught:
        read_msrvtt(Folder(str(tmp_path)))
    assert str(caught.value).isprintable()


def test_null_captions_and_names_with_blanks(tmp_path):
    captions = [None, float("nan"), " ", "a \ud800 cat"]
    sentences = [{"video_id": "v", "caption": caption} for caption in captions]
    (tmp_path / "captions.json").write_text(json.dumps({"videos": [{"video_id": "v"}], "sentences": sentences}))
    ((clip,), _) = read_msrvtt(Folder(str(tmp_path)))
    assert len(clip.captions) == 1
    clip.captions[0].encode()
    (tmp_path / "classInd.txt").write_text("1 Archery\n")
    (tmp_path / "trainlist01.txt").write_text("Archery/v a b.avi 1\nArchery\\v_c.avi 1\nArchery/v_d.avi\n")
    assert read_ucf101(Folder(str(tmp_path)))[0].clips == ("Archery/v a b.avi", "Archery/v_c.avi", "Archery/v_d.avi")


def test_numbers_and_names_that_are_nearly_right(tmp_path):
    def found(name, files, prompts):
        for file in files:
            Folder(str(tmp_path / name)).write_bytes(file, b"")
        return [entry.file for entry in find_videos(Folder(str(tmp_path / name)), prompts, len(prompts))[0]]

    prompts = ("a caf\u00e9", "a boat")
    assert found("accents", ["a cafe\u0301.mp4"], prompts) == ["a cafe\u0301.mp4", ""]
    assert found("twice", ["00001.mp4", "1.gif", "1.mp4"], prompts) == ["", "1.mp4"]
    with pytest.raises(UserError, match="are numbered from 1: number them from 0"):
        found("from one", ["1.mp4", "2.mp4"], prompts)
    Folder(str(tmp_path / "listed")).write_json("videos.json", [{"file": "./a.mp4", "prompt": None}])
    assert found("listed", ["a.mp4"], prompts)[0] == "a.mp4"
    assert find_videos(Folder(str(tmp_path / "listed")), prompts, 1)[0][0].prompt == ""
