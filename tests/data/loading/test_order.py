"""The order of training samples depends on seed and number alone, whatever reads them."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from small_sources import N, clips, equal, write_embeddings, write_tar

import mav.data.loading.loaders as loaders
import mav.data.loading.source as source_module
from mav.data.loading.loaders import ImageSource
from mav.data.loading.source import SampleSource
from mav.data.shards import json_bytes
from mav.data.videos.video_io import encode_mp4
from mav.recipes import Optimisation
from mav.storage import Folder
from mav.training.loop import prefetch


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


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """More than a thousand pictures, the colour of each being its number, and forty clips; one of each is broken."""
    images, embeds, videos = (
        Folder(str(tmp_path_factory.mktemp("many") / name)) for name in ("images", "embeds", "videos")
    )
    for shard in range(11):
        name = f"00000-{shard:05d}"
        rows = range(100 * shard, 100 * shard + 100)
        samples = {f"{i:015d}": {"jpg": coded(i) if i != 321 else b"broken", "json": b"{}", "txt": b""} for i in rows}
        write_tar(images, f"{name}.tar", samples)
        write_embeddings(embeds, name, list(samples), rows, 1)
    metadata = json_bytes({"fps": 24.0, "frames": 12})
    for shard in range(4):
        samples = {}
        for i in range(10 * shard, 10 * shard + 10):
            pixels = np.full((12, 32, 32, 3), 6 * i + 5, np.uint8)
            samples[f"{i:010d}"] = {"mp4": encode_mp4(pixels, 24) if i != 13 else b"broken", "json": metadata}
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


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["images", "clips"])
def test_the_first_ids_are_the_same_for_any_workers_ranks_and_resume(kind, many):
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

    total = 1000 if kind == "images" else 400
    expected = ids(fresh().batch(0, total))
    if kind == "images":
        assert [i for i in expected if i != 321] == expected
        assert len(set(expected)) >= 999
    else:
        assert set(expected) == set(range(40)) - {13}
    source = fresh(workers=3)
    assert [i for first in range(0, total, 40) for i in ids(source.batch(first, 40))] == expected
    steps = Optimisation(samples=total, batch_size=40)
    for ranks, begins in ((1, (0, 200, total - 40)), (2, (0, 120)), (4, (320,))):
        for resume in begins:
            found, source = {}, fresh()
            for rank in range(ranks):
                for first, _, batch in prefetch(source, resume, steps, rank, ranks, ranks):
                    found |= dict(enumerate(ids(batch), start=first))
            assert [found[number] for number in sorted(found)] == expected[resume:]
            assert sorted(found) == list(range(resume, total))


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
