import io
import itertools

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

import mav.data.loading.loaders as loaders
import mav.data.loading.source as source_module
from mav.data.loading.loaders import CaptionedImages, ClipSource, ImageSource, fit
from mav.data.loading.source import SampleSource
from mav.data.shards import TarWriter, json_bytes, write_table
from mav.data.videos.video_io import encode_mp4
from mav.errors import UserError
from mav.recipes import FpsCurriculum, Optimisation
from mav.storage import Folder
from mav.training.loop import prefetch
from mav.world.drawing import PALETTE, SHAPES, draw, draw_clip, random_scene

N, CLIPS = 7, 5


def scene(i):
    return random_scene(np.random.default_rng(i), tuple(PALETTE), SHAPES)


def write_tar(folder, name, samples):
    with folder.create(name) as file, TarWriter(file) as tar:
        for key, files in samples.items():
            tar.add(key, files)


def write_embeddings(folder, shard, keys, numbers, width):
    """Row i's embeddings are filled with its number, and so are its tokens."""
    write_table(folder, f"{shard}.parquet", pa.table({"key": keys}))
    for kind, dtype in (("image", np.float16), ("text", np.float16), ("tokens", np.uint16)):
        buffer = io.BytesIO()
        np.save(buffer, np.array([[number] * (width + (kind == "tokens")) for number in numbers], dtype))
        folder.write_bytes(f"{shard}.{kind}.npy", buffer.getvalue())


def blank(folder, *keys):
    """Pictures of the first tar become zeros."""
    places = loaders.index_tar(folder, "00000-00000.tar")
    with open(folder.path("00000-00000.tar"), "r+b") as file:
        for key in keys:
            file.seek(places[key]["jpg"][0])
            file.write(bytes(places[key]["jpg"][1]))


def jpeg(i):
    buffer = io.BytesIO()
    Image.fromarray(draw(scene(i), 24)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.fixture
def images(tmp_path):
    """Two shards of images, and embeddings of all but one of them: row i's embeddings are filled with i."""
    images, embeds = Folder(str(tmp_path / "images")), Folder(str(tmp_path / "embeds"))
    for shard, rows in (("00000-00000", range(4)), ("00000-00001", range(4, N + 1))):
        keys = {i: f"{shard.replace('-', '')}{i:05d}" for i in rows}
        facts = {"punsafe": 0.5, "pwatermark": None}
        samples = {keys[i]: {"jpg": jpeg(i), "json": json_bytes(facts), "txt": f"caption {i}".encode()} for i in rows}
        write_tar(images, f"{shard}.tar", samples)
        kept = [i for i in rows if i != N]
        write_embeddings(embeds, shard, [keys[i] for i in kept], kept, 3)
    return images, embeds


@pytest.fixture
def shards(tmp_path):
    folder = Folder(str(tmp_path / "clips"))
    facts = json_bytes({"fps": 24.0, "frames": 24})
    write_tar(
        folder,
        "00000.tar",
        {f"{i:010d}": {"mp4": encode_mp4(draw_clip(scene(i), 32, 24, 24), 24), "json": facts} for i in range(CLIPS)},
    )
    return folder


def clips(shards, **more):
    settings = {"frames": 8, "size": 16, "seed": 0, "fps": FpsCurriculum(low=4, high=24), "total_samples": 100}
    return ClipSource(shards, **(settings | more))


def equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in a) and set(a) == set(b)


def test_image_batches_are_aligned_with_their_embeddings(images):
    source = ImageSource(*images, size=12, seed=0)
    batch = source.batch(0, N)
    assert len(source) == N
    assert {name: (value.shape, value.dtype) for name, value in batch.items()} == {
        "pixels": ((N, 3, 12, 12), torch.uint8), "image_embedding": ((N, 3), torch.float32), "text_embedding": ((N, 3), torch.float32),
        "tokens": ((N, 4), torch.int64)}  # fmt: skip
    order = batch["tokens"][:, 0].tolist()
    assert sorted(order) == list(range(N))
    for i, pixels, embedding in zip(order, batch["pixels"], batch["image_embedding"], strict=True):
        assert embedding[0] == i
        expected = fit(draw(scene(i), 24)[None], 12)[0]
        assert np.abs(pixels.permute(1, 2, 0).numpy().astype(int) - expected).mean() < 8


@pytest.mark.parametrize("kind", ["images", "clips"])
def test_order_is_a_function_of_seed_and_number_alone(kind, images, shards):
    def fresh(seed=0):
        return ImageSource(*images, size=12, seed=seed) if kind == "images" else clips(shards, seed=seed)

    whole = fresh().batch(0, 20)
    source = fresh()
    for first, count in ((13, 7), (0, 5), (5, 8)):  # any worker, any order, any resume
        part = source.batch(first, count)
        assert all(torch.equal(part[name], whole[name][first : first + count]) for name in part)
    assert not equal(fresh(1).batch(0, 20), whole)


def test_epochs_are_permutations_that_differ(images):
    source = ImageSource(*images, size=0, seed=0, pixels=False)
    epochs = [source.batch(epoch * N, N)["tokens"][:, 0].tolist() for epoch in range(6)]
    assert all(sorted(epoch) == list(range(N)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert "pixels" not in source.batch(0, 1)


class Numbers(SampleSource):
    def read(self, index, number):
        return {"index": np.int64(index)}


def test_large_sets_are_mixed_a_group_of_shards_at_a_time(monkeypatch):
    sizes = [5, 0, 7, 3, 6]
    shard_of = np.repeat(np.arange(5), sizes)
    together = Numbers(0, sizes, "nowhere", 0.0).batch(0, 21)["index"].numpy()
    monkeypatch.setattr(source_module, "GROUP_SHARDS", 2)
    source = Numbers(0, sizes, "nowhere", 0.0)
    held = set(source.hold_out(4, total=100)["index"].tolist())
    orders = []
    for epoch in range(4):
        order = source.batch(epoch * 17, 17)["index"].tolist()
        assert set(order) == set(range(21)) - held
        changes = [frozenset(shard_of[order[: at + 1]].tolist()) for at in range(17)]
        assert len(set(changes)) <= 5, "shards come in once, in groups"
        groups, starts = source._groups(epoch)
        for group, start, end in zip(groups, starts, [*starts[1:], 17], strict=True):
            assert set(shard_of[order[start:end]]) <= set(group.tolist())
        orders.append(tuple(order))
    assert len(set(orders)) == 4
    assert sorted(together) == list(range(21))
    assert len(set(shard_of[together[:8]])) > 2, "a small set is mixed as a whole"


def test_memory_budget_changes_nothing(images, shards, monkeypatch):
    whole = ImageSource(*images, size=12, seed=0).batch(0, N), clips(shards).batch(0, 10)
    monkeypatch.setattr(loaders, "IN_MEMORY", 0)
    assert equal(ImageSource(*images, size=12, seed=0).batch(0, N), whole[0])
    assert equal(clips(shards).batch(0, 10), whole[1])


def test_unreadable_samples_give_way_and_are_counted(images):
    folder, embeds = images
    whole = ImageSource(folder, embeds, size=12, seed=0).batch(0, N)["tokens"][:, 0].tolist()
    blank(folder, "000000000000002")
    source = ImageSource(folder, embeds, size=12, seed=0, corrupted_share=0.2)
    got = source.batch(0, N)
    place = whole.index(2)
    expected = [t if t != 2 else whole[(place + 1) % N] for t in whole]
    assert got["tokens"][:, 0].tolist() == expected
    assert len(source.unreadable) == 1


def test_more_corrupted_samples_than_the_recipe_allows_stop_the_run(images):
    folder, embeds = images
    blank(folder, "000000000000000", "000000000000001")
    source = ImageSource(folder, embeds, size=12, seed=0, corrupted_share=0.3)
    source.batch(0, N)
    assert source.counts == {"samples": N, "corrupted": 2}
    with pytest.raises(UserError, match=r"2 of the 7 samples.*corrupted_share"):
        ImageSource(folder, embeds, size=12, seed=0, corrupted_share=0.2).batch(0, N)


def test_an_empty_batch_is_an_error(shards):
    with pytest.raises(ValueError, match="a batch of 0"):
        clips(shards).batch(0, 0)


def test_nothing_readable_and_nothing_at_all_are_user_errors(images, shards, tmp_path):
    folder, _ = images
    with pytest.raises(UserError, match=r"None of the 5 samples.*too_short"):
        clips(shards, frames=25).batch(0, 1)
    with pytest.raises(UserError, match="nothing to train on"):
        ImageSource(folder, Folder(str(tmp_path / "empty")), size=8, seed=0)
    with pytest.raises(UserError, match="no shards"):
        clips(Folder(str(tmp_path / "empty")))


def test_corrupted_files_are_named(images, shards):
    folder, embeds = images
    shards.write_bytes("00000.tar", shards.read_bytes("00000.tar")[:9000])
    with pytest.raises(UserError, match=r"00000\.tar"):
        clips(shards)
    embeds.write_bytes("00000-00001.text.npy", b"\x93NUMPY")
    with pytest.raises(UserError, match=r"00000-00001\.text\.npy"):
        ImageSource(folder, embeds, size=8, seed=0).batch(0, N)
    embeds.remove("00000-00001.text.npy")
    with pytest.raises(UserError, match=r"00000-00001\.text\.npy"):
        ImageSource(folder, embeds, size=8, seed=0).batch(0, N)


def test_captioned_images(images):
    folder, _ = images

    def tokenize(captions):
        return torch.tensor([[int(c.split()[1])] * 3 for c in captions])

    source = CaptionedImages(folder, 12, 0, tokenize)
    batch = source.batch(0, N + 1)
    assert sorted(batch["tokens"][:, 0].tolist()) == list(range(N + 1))
    assert batch["pixels"].shape == (N + 1, 3, 12, 12)
    assert batch["punsafe"].tolist() == [0.5] * (N + 1)
    assert batch["pwatermark"].isnan().all()
    assert batch["pwatermark"].dtype == torch.float32


def test_clip_batches_move_at_the_rate_they_say(shards):
    source = clips(shards, total_samples=4)
    batch = source.batch(0, 12)
    assert batch["pixels"].shape == (12, 8, 3, 16, 16)
    assert batch["pixels"].dtype == torch.uint8
    assert batch["fps"].dtype == torch.float32
    assert (batch["fps"] >= 24 * 7 / 23 - 1e-3).all()
    assert (batch["fps"] <= 24).all()
    assert source.counts["samples"] == 12
    assert source.counts["clamped"] > 0
    moved = (batch["pixels"][:, 0].float() - batch["pixels"][:, -1].float()).abs().mean(dim=(1, 2, 3))
    assert (moved > 0.5).all()


def test_progress_slides_the_rates(shards):
    source = clips(shards, frames=4, total_samples=400, fps=FpsCurriculum(low=4, high=24))
    rates = source.batch(0, 400)["fps"]
    assert rates[:100].mean() > rates[-100:].mean() + 3


def test_clips_too_short_for_the_rate_are_passed_over_when_the_recipe_says_so(tmp_path):
    """Two clips of one second, three of four: at one frame a second only the long ones can show four frames."""
    folder = Folder(str(tmp_path / "mixed"))
    samples = {}
    for i, frames in enumerate((24, 96, 96, 24, 96)):
        pixels = np.full((frames, 32, 32, 3), 40 * i + 20, np.uint8)
        samples[f"{i:010d}"] = {"mp4": encode_mp4(pixels, 24), "json": json_bytes({"fps": 24.0, "frames": frames})}
    write_tar(folder, "00000.tar", samples)
    slow = {"low": 1.0, "high": 1.01, "start": (1.0, 1.0), "end": (1.0, 1.0)}
    clamped, skipped = (
        clips(folder, frames=4, fps=FpsCurriculum(short_clips=policy, **slow)) for policy in ("clamp", "skip")
    )
    seen = [
        {round((float(v.float().mean()) - 20) / 40) for v in source.batch(0, 10)["pixels"]}
        for source in (clamped, skipped)
    ]
    assert seen == [{0, 1, 2, 3, 4}, {1, 2, 4}]
    assert clamped.counts == {"samples": 10, "clamped": 4}
    assert skipped.counts == {"samples": 10, "too_short": skipped.counts["too_short"]}
    assert skipped.counts["too_short"] >= 4
    assert not skipped.unreadable
    assert [skipped.batch(n, 1)["fps"] for n in range(10)] == list(skipped.batch(0, 10)["fps"])


def test_clips_of_uneven_time_and_clips_within_a_video(tmp_path):
    """Frame i has level 10 i. One clip runs at ten frames a second, then at five; the other begins at frame 6 of its video."""
    folder = Folder(str(tmp_path / "times"))
    pixels = np.stack([np.full((32, 32, 3), 10 * i, np.uint8) for i in range(20)])
    times = [0.1 * i if i < 10 else 0.9 + 0.2 * (i - 9) for i in range(20)]
    facts = {"0": {"fps": 6.6, "frames": 20, "times": times}, "1": {"fps": 10.0, "frames": 12, "first": 6}}
    write_tar(
        folder,
        "00000.tar",
        {key: {"mp4": encode_mp4(pixels, 10), "json": json_bytes(value)} for key, value in facts.items()},
    )
    source = clips(folder, frames=4, fps=FpsCurriculum(low=5, high=5.001))
    for sample, rate in zip(*source.batch(0, 40).values(), strict=True):
        numbers = [round(float(frame.float().mean()) / 10) for frame in sample]
        uneven = [abs(times[b] - times[a] - 0.2) < 0.11 for a, b in itertools.pairwise(numbers)]
        within = numbers[0] >= 6 and numbers[-1] < 18 and np.diff(numbers).tolist() == [2, 2, 2]
        assert rate == pytest.approx(5, abs=0.01)
        assert all(uneven) or within, numbers


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """More than a thousand pictures, each of a colour that is its number, one of them broken; and forty clips likewise."""
    images, embeds, videos = (
        Folder(str(tmp_path_factory.mktemp("many") / name)) for name in ("images", "embeds", "videos")
    )
    for shard in range(11):
        name = f"00000-{shard:05d}"
        rows = range(100 * shard, 100 * shard + 100)
        samples = {f"{i:015d}": {"jpg": coded(i) if i != 321 else b"broken", "json": b"{}", "txt": b""} for i in rows}
        write_tar(images, f"{name}.tar", samples)
        write_embeddings(embeds, name, list(samples), rows, 1)
    facts = json_bytes({"fps": 24.0, "frames": 12})
    for shard in range(4):
        samples = {}
        for i in range(10 * shard, 10 * shard + 10):
            pixels = np.full((12, 32, 32, 3), 6 * i + 5, np.uint8)
            samples[f"{i:010d}"] = {"mp4": encode_mp4(pixels, 24) if i != 13 else b"broken", "json": facts}
        write_tar(videos, f"{shard:05d}.tar", samples)
    return images, embeds, videos


def coded(i):
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), (i // 256 * 40 + 20, i % 256 // 16 * 16 + 8, i % 16 * 16 + 8), np.uint8)).save(
        buffer, "PNG"
    )
    return buffer.getvalue()


def ids(batch):
    """The number of each sample, read from its pixels."""
    pixels = batch["pixels"]
    if pixels.ndim > 4:
        return [round((float(clip.float().mean()) - 5) / 6) for clip in pixels]
    red, green, blue = pixels[:, :, 4, 4].long().T
    return ((red - 20) // 40 * 256 + (green - 8) // 16 * 16 + (blue - 8) // 16).tolist()


@pytest.mark.parametrize("kind", ["images", "clips"])
def test_the_first_thousand_ids_are_the_same_for_any_workers_ranks_and_resume(kind, many):
    images, embeds, videos = many

    def fresh(workers=1):
        before = torch.get_num_threads()
        torch.set_num_threads(workers)
        try:
            if kind == "clips":
                return clips(videos, frames=4, corrupted_share=0.05)
            return ImageSource(images, embeds, size=8, seed=0)
        finally:
            torch.set_num_threads(before)

    expected = ids(fresh().batch(0, 1000))
    if kind == "images":
        assert [i for i in expected if i != 321] == expected
        assert len(set(expected)) >= 999
    else:
        assert set(expected) == set(range(40)) - {13}
    for workers in (2, 3):
        source = fresh(workers)
        assert [i for first in range(0, 1000, 40) for i in ids(source.batch(first, 40))] == expected
    steps = Optimisation(samples=1000, batch_size=40)
    for ranks in (1, 2, 4):
        for resume in (0, 40 * 13) if ranks > 1 else range(0, 1000, 200):
            found, source = {}, fresh()
            for rank in range(ranks):
                for first, batch in prefetch(source, resume, steps, rank, ranks):
                    found |= dict(enumerate(ids(batch), start=first))
            assert [found[number] for number in sorted(found)] == expected[resume:]
            assert sorted(found) == list(range(resume, 1000))


def test_threads_share_tars_on_any_storage(many):
    """A memory file system stands for an object store: no file descriptors, ranges of bytes instead."""
    _, _, videos = many
    memory = Folder("memory://clips")
    for name in videos.names():
        memory.write_bytes(name, videos.read_bytes(name))
    try:
        here, there = (ids(clips(folder, frames=4, corrupted_share=0.05).batch(0, 60)) for folder in (videos, memory))
        assert here == there
    finally:
        memory.remove()
