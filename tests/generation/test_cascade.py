"""The cascade on untrained networks of demo shape: sizes, windows, shared noise, and independence of the batch."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from mav.data.videos.video_io import read_frames
from mav.diffusion.noise import generator
from mav.diffusion.pixels import to_unit
from mav.errors import UserError
from mav.generation.cascade import Cascade, CascadeBatch
from mav.generation.write import generate_videos, read_prompts
from mav.models.clip import ClipModel
from mav.models.prior import Prior
from mav.models.unet import UNet, add_masked_frames, inflate
from mav.recipes import (
    CascadeSizes,
    ClipConfig,
    Generate,
    GuidedSampling,
    Level,
    Objective,
    PriorConfig,
    Sampling,
    UNetConfig,
)
from mav.storage import Folder
from mav.training.export import Export
from mav.world.drawing import Scene, draw_clip

DIM, FRAMES = 8, 4
SIZES = CascadeSizes(frames=FRAMES, base_size=8, low_size=16, high_size=32, frame_skip=3)
STEPS, GUIDED = Sampling(steps=2), GuidedSampling(steps=2)
GENERATE = Generate(
    prior=GUIDED,
    decoder=dataclasses.replace(GUIDED, guidance=2.0),
    interpolation=GUIDED,
    sr_low=STEPS,
    sr_high=STEPS,
    fps=8.0,
)
PROMPTS = ["a red circle", "a blue square", "a green cross"]


def alive(network):
    """No zero starts, so that every path matters."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator(0, name))
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def cascade():
    torch.manual_seed(0)
    decoder = inflate(
        UNet(UNetConfig(levels=(Level(channels=8, blocks=1, attention=True),), embedding_dim=DIM, head_channels=8)),
        FRAMES,
    )
    upsampler = UNetConfig(levels=(Level(channels=8, blocks=1),), low_resolution=True)
    clip = ClipModel(ClipConfig(embedding_dim=DIM, image_size=32, vision_width=2, text_width=16, text_layers=1))
    prior = PriorConfig(embedding_dim=DIM, text_context=clip.context, width=16, depth=1, heads=2)

    def export(network, **objective):
        return Export(alive(network), Objective(**objective), {})

    return Cascade(
        SIZES,
        clip.eval().requires_grad_(False),
        prior=export(Prior(prior), prediction="x0"),
        decoder=export(decoder),
        interpolation=export(add_masked_frames(decoder)),
        sr_low=export(inflate(UNet(upsampler), FRAMES)),
        sr_high=export(UNet(upsampler)),
    )


def test_text_to_video_has_the_recipe_s_size_and_reports_progress(cascade):
    lines = []
    videos = cascade.sample(PROMPTS, [1, 2, 3], GENERATE, progress=lambda *line: lines.append(line))
    assert videos.shape == (3, 10, 32, 32, 3)
    assert videos.dtype == np.uint8
    assert list(dict.fromkeys(line[0] for line in lines)) == ["prior", "decoder", "interpolation", "sr_low", "sr_high"]
    assert lines[0][1:] == (1, 2)


@pytest.mark.parametrize("time", [True, False])
def test_a_video_is_the_same_alone_and_in_a_batch(cascade, time):
    together = cascade.sample(PROMPTS, [1, 2, 3], GENERATE, time=time)
    alone = cascade.sample(PROMPTS[1:2], [2], GENERATE, time=time)
    assert np.abs(together[1].astype(int) - alone[0].astype(int)).max() <= 1
    assert np.abs(together[0].astype(int) - together[1].astype(int)).mean() > 1


def test_time_off_makes_each_frame_an_image_of_its_own(cascade):
    run = CascadeBatch(cascade, [1, 2], GENERATE, time=False)
    embedding = run.embed_prompts(PROMPTS[:2])
    clip = run.decode(embedding)
    image = cascade.decoder.network
    assert not torch.allclose(clip, CascadeBatch(cascade, [1, 2], GENERATE).decode(embedding))
    assert not torch.allclose(clip[:, 0], clip[:, 1])

    def one_frame(x, t, *, time, **conditions):
        return torch.cat([image(x[:, i : i + 1], t, time=False, **conditions) for i in range(x.shape[1])], dim=1)

    changed = dataclasses.replace(cascade, decoder=dataclasses.replace(cascade.decoder, network=one_frame))
    torch.testing.assert_close(
        CascadeBatch(changed, [1, 2], GENERATE, time=False).decode(embedding), clip, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("skip", "known"),
    [
        # Frames 0, 3, 6, 9 of ten are given and windows are 0-3, 3-6, 6-9: both ends of each are known.
        (3, [[True, False, False, True]] * 3),
        # Given: 0, 2, 4, 6. Frame 3 is made by the first window, 0-3, and known to the second, 3-6.
        (2, [[True, False, True, False], [True, True, False, True]]),
    ],
)
def test_interpolation_keeps_known_frames_and_hands_the_boundary_on(cascade, skip, known):
    seen = []
    network = cascade.interpolation.network

    def watch(x, t, **conditions):
        seen.append(conditions["known"][0, :, 3, 0, 0].bool().tolist())
        return network(x, t, **conditions)

    sizes = dataclasses.replace(SIZES, frame_skip=skip)
    watched = dataclasses.replace(
        cascade, sizes=sizes, interpolation=dataclasses.replace(cascade.interpolation, network=watch)
    )
    run = CascadeBatch(watched, [5], GENERATE)
    embedding = run.embed_prompts(PROMPTS[:1])
    clip = run.decode(embedding)
    long = run.fill(clip, embedding)
    assert long.shape[1] == sizes.long_frames == 3 * skip + 1
    assert torch.equal(long[:, ::skip], clip)
    assert seen[:: GENERATE.interpolation.steps] == known


def test_filled_frames_begin_from_their_neighbours_moved_by_optical_flow(cascade):
    """With next to no noise, so that what the network is first shown is where its sampling starts."""
    seen = []

    def watch(x, t, **conditions):
        seen.append(x)
        return cascade.interpolation.network(x, t, **conditions)

    sizes = dataclasses.replace(SIZES, frame_skip=2)
    interpolation = dataclasses.replace(cascade.interpolation, network=watch)
    generate = dataclasses.replace(GENERATE, interpolation_start=0.003)
    run = CascadeBatch(dataclasses.replace(cascade, sizes=sizes, interpolation=interpolation), [5], generate)
    scene = Scene("red", "circle", (0.3, 0.5), 0.25, (0.4, 0.0), "smooth", 3)
    filmed = to_unit(torch.from_numpy(draw_clip(scene, 32, 7, 8.0)).permute(0, 3, 1, 2))[None]
    run.fill(filmed[:, ::2], run.embed_prompts(PROMPTS[:1]))
    blended = (filmed[:, 0] + filmed[:, 2]) / 2
    missed = (seen[0][:, 1] - filmed[:, 1]).abs().mean()
    assert missed < 0.7 * (blended - filmed[:, 1]).abs().mean()


def test_super_resolution_windows_agree_and_high_resolution_noise_is_shared(cascade):
    still = torch.rand(1, 1, 3, 8, 8, generator=generator(0, "still")) * 2 - 1
    run = CascadeBatch(cascade, [3], GENERATE, time=False)
    low = run.upsample_low(still.expand(-1, 10, -1, -1, -1))
    assert low.shape == (1, 10, 3, 16, 16)
    assert not torch.allclose(low[:, 0], low[:, 1])  # its own noise a frame
    first_window = CascadeBatch(cascade, [3], GENERATE, time=False).upsample_low(still.expand(-1, 4, -1, -1, -1))
    torch.testing.assert_close(low[:, :4], first_window, rtol=1e-4, atol=1e-4)
    high = run.upsample_high(low[:, :1].expand(-1, 10, -1, -1, -1))
    assert np.abs(high.astype(int) - high[:, :1]).max() <= 1


def test_images_and_videos_start_videos_too(cascade):
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(2, 32, 32, 3), dtype=np.uint8)
    videos = rng.integers(256, size=(2, 5, 32, 32, 3), dtype=np.uint8)
    shape = (2, SIZES.long_frames, 32, 32, 3)
    assert cascade.animate(images, [1, 2], GENERATE).shape == shape
    assert cascade.interpolate(images, images[::-1].copy(), [1, 2], GENERATE).shape == shape
    assert cascade.vary(videos, [1, 2], GENERATE).shape == shape


def test_best_candidate_is_the_one_closest_to_the_text(cascade):
    many = dataclasses.replace(GENERATE, prior_candidates=6)
    text = cascade.clip.encode_text(cascade.clip.tokenize(PROMPTS))
    one, best = (
        CascadeBatch(cascade, [1, 2, 3], g).embed_prompts(PROMPTS)
        for g in (dataclasses.replace(GENERATE, prior_candidates=1), many)
    )
    assert ((best * text).sum(-1) >= (one * text).sum(-1) - 1e-6).all()
    torch.testing.assert_close(best.norm(dim=-1), torch.ones(3))


def test_the_stage_writes_its_videos_once(cascade, tmp_path, monkeypatch, small_recipe):
    monkeypatch.setattr(Cascade, "load", classmethod(lambda cls, *_: cascade))
    out, world = Folder(str(tmp_path / "out")), Folder(str(tmp_path / "world"))
    world.write_json("prompts.json", [{"prompt": p, "colour": p.split()[1], "shape": p.split()[2]} for p in PROMPTS])
    recipe = dataclasses.replace(
        small_recipe, cascade=SIZES, generate=dataclasses.replace(GENERATE, batch_size=2, time_off_twin=True)
    )
    lines = []
    metrics = generate_videos(recipe, {"demo-world": world}, out, lines.append)
    assert metrics == {"videos": 3, "frames": 10, "size": 32, "fps": 24.0}
    assert lines[-1] == {"stage": "generate", "samples": 6, "total": 6}
    rows = json.loads(out.read_bytes("videos.json"))
    assert [row["colour"] for row in rows] == ["red", "blue", "green"]
    assert rows[2]["twin"] == "time-off/00002.mp4"
    assert read_frames(out.read_bytes(rows[2]["file"])).shape == (10, 32, 32, 3)
    before = out.read_bytes("videos/00002.mp4")
    out.remove("videos/00002.mp4")
    monkeypatch.setattr(Cascade, "sample", _only(cascade.sample, PROMPTS[2:]))
    generate_videos(recipe, {"demo-world": world}, out)
    assert out.read_bytes("videos/00002.mp4") == before


def _only(real, prompts):
    def sample(self, asked, *rest, **options):
        assert asked == prompts  # what is there is not made again
        return real(asked, *rest, **options)

    return sample


def test_no_prompt_is_one_sentence(tmp_path, small_recipe):
    with pytest.raises(UserError, match=r"generate\.prompts"):
        read_prompts(small_recipe, {})
    empty = tmp_path / "prompts.txt"
    empty.write_text("\n\n")
    with pytest.raises(UserError, match="holds no prompt"):
        read_prompts(dataclasses.replace(small_recipe, generate=Generate(prompts=str(empty))), {})
