"""The loop and the stages on synthetic sources: exact resume, one step of every stage, and no text in a video stage."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

from mav.artifact import Folder
from mav.diffusion.noise import Draws
from mav.errors import UserError
from mav.models.clip import Clip
from mav.models.unet import UNet
from mav.recipe import (
    Cascade,
    ClipConfig,
    Level,
    Objective,
    Optimisation,
    PriorConfig,
    Recipe,
    TrainImage,
    TrainPrior,
    TrainVideo,
    UNetConfig,
    World,
)
from mav.recipe import Clip as ClipSection
from mav.training.export import CURVES, FACTS, WEIGHTS, export_network, load_network
from mav.training.loop import CHECKPOINT, Task, learning_rate, prefetch, train
from mav.training.sheet import SHEET
from mav.training.stages import INPUTS, VIDEO_STAGES, random_mask, run_stage

DIM, CONTEXT, FRAMES = 8, 16, 4


def small_recipe(**optimisation) -> Recipe:
    o = Optimisation(**{"samples": 12, "batch_size": 2, "learning_rate": 1e-3, "log_every": 4, "checkpoint_every": 4} | optimisation)
    sr = UNetConfig(levels=(Level(channels=8, blocks=1),), low_resolution=True)
    decoder = UNetConfig(
        levels=(Level(channels=8, blocks=1), Level(channels=8, blocks=1, attention=True)), embedding_dim=DIM, head_channels=8
    )
    upsampler = TrainImage(network=sr, optimisation=o, crop=0.5, noise_augmentation=0.3, blur_sigma=0.6)
    tiny_clip = ClipConfig(embedding_dim=DIM, image_size=32, vision_width=2, text_width=16, text_layers=1)
    return Recipe(
        name="small",
        world=World(),
        cascade=Cascade(frames=FRAMES, base_size=8, low_size=16, high_size=32, frame_skip=3),
        clip=ClipSection(network=tiny_clip, optimisation=dataclasses.replace(o, batch_size=4)),
        train_prior=TrainPrior(network=PriorConfig(embedding_dim=DIM, text_context=CONTEXT, width=16, depth=1, heads=2), optimisation=o),
        train_decoder=TrainImage(network=decoder, optimisation=o),
        train_sr_low=upsampler,
        train_sr_high=upsampler,
        train_decoder_video=TrainVideo(optimisation=o),
        train_interpolation=TrainVideo(optimisation=o),
        train_sr_low_video=TrainVideo(optimisation=o, crop=0.5),
    )


class Pairs:
    """Images with all that image stages read; sample n is a function of n."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return 8

    def batch(self, first: int, count: int) -> dict[str, torch.Tensor]:
        draws = Draws((7, "pairs", n % len(self)) for n in range(first, first + count))
        unit = torch.nn.functional.normalize
        return {
            "pixels": (draws.uniform(3, self.size, self.size) * 255).to(torch.uint8),
            "image_embedding": unit(draws.normal(DIM)),
            "text_embedding": unit(draws.normal(DIM)),
            "tokens": draws.integers(49_000, CONTEXT),
            "punsafe": draws.uniform(),
            "pwatermark": draws.uniform(),
        }


class Clips:
    """Uncaptioned clips."""

    def __init__(self, size: int, **more: torch.Tensor) -> None:
        self.size, self.more = size, more

    def __len__(self) -> int:
        return 8

    def batch(self, first: int, count: int) -> dict[str, torch.Tensor]:
        draws = Draws((7, "clips", n % len(self)) for n in range(first, first + count))
        pixels = (draws.uniform(FRAMES, 3, self.size, self.size) * 255).to(torch.uint8)
        return {"pixels": pixels, "fps": 4 + 20 * draws.uniform(), **self.more}


def source_of(stage: str, recipe: Recipe):
    cascade = recipe.cascade
    if stage in VIDEO_STAGES:
        return Clips(cascade.low_size)
    return Pairs({"train-decoder": cascade.base_size, "train-sr-high": cascade.high_size}.get(stage, cascade.low_size))


def parents(root: Folder, stage: str, recipe: Recipe) -> dict[str, Folder]:
    """The inputs of a stage that hold networks, untrained; the data inputs are replaced by `source`."""
    inputs = {}
    for name in INPUTS[stage]:
        folder = root.child(name)
        if name == "clip" and not folder.exists("clip.json"):
            torch.manual_seed(0)
            Clip.create(recipe.clip).save(folder)
        elif name == "train-decoder-video" and not folder.exists(FACTS):
            run(root, name, recipe)
        elif name.startswith("train-") and not folder.exists(FACTS):
            torch.manual_seed(0)
            section = getattr(recipe, name.replace("-", "_"))
            export_network(folder, UNet(section.network), section.objective)
        inputs[name] = folder
    return inputs


def run(root: Folder, stage: str, recipe: Recipe, *, work: str = "work", out: str = "", **options):
    inputs = parents(root, stage, recipe)
    options.setdefault("source", source_of(stage, recipe))
    return run_stage(stage, recipe, inputs, root.child(f"{work}/{stage}"), root.child(out or stage), **options)


class Killed(BaseException):
    pass


# ----------------------------------------------------------------------------------------------------------------- stages


@pytest.mark.parametrize("stage", sorted(INPUTS))
def test_every_stage_trains_and_exports_what_loads_again(stage, tmp_path):
    root, recipe, lines = Folder(str(tmp_path)), small_recipe(), []
    metrics = run(root, stage, recipe, report=lines.append)
    assert metrics["samples"] == 12
    assert metrics["loss"] > 0
    assert {"samples", "total", "loss", "samples_per_second", "stage"} <= set(lines[-1])
    curves = [json.loads(line) for line in root.read_bytes(f"{stage}/{CURVES}").splitlines()]
    assert [line["samples"] for line in curves] == [4, 8, 12]
    if stage == "clip":
        assert Clip.load(root.child(stage)).scores(torch.randn(2, DIM)).keys() == {"punsafe", "pwatermark"}
        return
    export = load_network(root.child(stage))
    moved = sum(
        float(p.abs().sum()) for name, p in export.network.named_parameters() if name.startswith(("output.spatial", "output.weight"))
    )
    assert moved > 0  # the zero-started output has learned something
    assert export.facts["stage"] == stage
    assert root.exists(f"{stage}/{SHEET}") == (stage != "train-prior")
    if stage in VIDEO_STAGES:
        assert export.network.config.max_frames == FRAMES
        assert export.network.config.masked_frames == (stage == "train-interpolation")


@pytest.mark.parametrize("stage", VIDEO_STAGES)
def test_no_text_reaches_a_video_stage(stage, tmp_path):
    """By name: its inputs hold no pairs. By key: a batch that carries anything besides pixels and fps is refused."""
    root, recipe = Folder(str(tmp_path)), small_recipe()
    assert not {"image-embed", "image-download", "image-metadata", "train-prior"} & set(INPUTS[stage])
    inputs = parents(root, stage, recipe)
    with pytest.raises(ValueError, match=f"{stage} takes .* and nothing else, not image-embed"):
        run_stage(stage, recipe, inputs | {"image-embed": root}, root.child("work"), root.child("out"))
    captioned = Clips(recipe.cascade.low_size, tokens=torch.zeros(2, CONTEXT, dtype=torch.long))
    with pytest.raises(ValueError, match="text never meets motion, but its batch holds fps, pixels, tokens"):
        run_stage(stage, recipe, inputs, root.child("work"), root.child("out"), source=captioned)


def test_temporal_training_leaves_the_image_network_as_it_was(tmp_path):
    root, recipe = Folder(str(tmp_path)), small_recipe()
    for name, section in (
        ("never", TrainVideo(optimisation=recipe.train_decoder_video.optimisation, trainable="temporal")),
        ("later", TrainVideo(optimisation=recipe.train_decoder_video.optimisation, temporal_first_samples=6)),
    ):
        changed = dataclasses.replace(recipe, train_decoder_video=section)
        run(root, "train-decoder-video", changed, work=name, out=name)
    before = load_network(root.child("train-decoder")).network.state_dict()
    never, later = (load_network(root.child(name)).network.state_dict() for name in ("never", "later"))
    assert all(torch.equal(never[name], value) for name, value in before.items())
    assert any(not torch.equal(later[name], value) for name, value in before.items())
    assert any(not torch.equal(never[name], torch.zeros(())) and not torch.equal(never[name], later[name]) for name in never)


def test_masks_give_at_least_one_frame_and_leave_at_least_one():
    masks = random_mask(Draws((0, "mask", n) for n in range(400)), 8)
    assert masks.any(1).all()
    assert not masks.all(1).any()
    known = {tuple(row.nonzero().flatten().tolist()) for row in masks}
    assert {(0,), (0, 7), (0, 2, 4, 6), (1, 3, 5, 7), (0, 3, 6)} <= known


# ------------------------------------------------------------------------------------------------------------ exact resume


class DyingFolder(Folder):
    """Dies inside the n-th save, after half of the bytes."""

    def __init__(self, url: str, saves: int) -> None:
        super().__init__(url)
        self.saves = saves

    def create(self, name):
        self.saves -= 1
        if self.saves == 0:
            with open(self.path(f".tmp-{name}"), "wb") as file:
                file.write(b"half a checkpoint")
            raise Killed
        return super().create(name)


@pytest.mark.parametrize("stage", ["train-decoder", "train-interpolation", "train-prior"])
def test_killed_and_resumed_is_bit_equal_to_undisturbed(stage, tmp_path):
    root, recipe = Folder(str(tmp_path)), small_recipe(samples=20, checkpoint_every=6, log_every=8, cooldown_samples=8)
    run(root, stage, recipe, work="whole", out="whole-out")

    def dies_at(samples):
        def report(line):
            if line["samples"] == samples:
                raise Killed

        return report

    inputs, work, out = parents(root, stage, recipe), root.child("broken"), root.child("broken-out")
    source = source_of(stage, recipe)
    with pytest.raises(Killed):  # between two saves
        run_stage(stage, recipe, inputs, work, out, source=source, report=dies_at(8))
    with pytest.raises(Killed):  # inside the next save
        run_stage(stage, recipe, inputs, DyingFolder(work.url, 1), out, source=source)
    assert not out.exists(WEIGHTS)
    run_stage(stage, recipe, inputs, work, out, source=source)
    names = (WEIGHTS, FACTS, CURVES) if stage == "train-prior" else (WEIGHTS, FACTS, CURVES, SHEET)
    for name in names:
        assert out.read_bytes(name) == root.read_bytes(f"whole-out/{name}"), name


def test_killed_by_the_system_and_resumed_is_bit_equal(tmp_path):
    """kill -9 in another process, at a moment of the system's choosing."""
    root, recipe = Folder(str(tmp_path)), small_recipe(samples=40, checkpoint_every=4, log_every=4)
    torch.set_num_threads(1)
    run(root, "train-decoder", recipe, work="whole", out="whole-out")
    script = f"""
        import os, signal, sys, torch
        torch.set_num_threads(1)
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        from test_training import Folder, run, small_recipe

        def report(line):
            if line["samples"] == 20:
                os.kill(os.getpid(), signal.SIGKILL)

        recipe = small_recipe(samples=40, checkpoint_every=4, log_every=4)
        run(Folder({str(tmp_path)!r}), "train-decoder", recipe, work="broken", out="broken-out", report=report)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert root.exists(f"broken/train-decoder/{CHECKPOINT}")
    run(root, "train-decoder", recipe, work="broken", out="broken-out")
    assert root.read_bytes(f"broken-out/{WEIGHTS}") == root.read_bytes(f"whole-out/{WEIGHTS}")


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    root = Folder(str(tmp_path))
    run(root, "train-decoder", small_recipe())
    with pytest.raises(UserError, match="checkpoint of another recipe"):
        run(root, "train-decoder", small_recipe(learning_rate=2e-3))


# --------------------------------------------------------------------------------------------------------------- the loop


def test_the_samples_of_a_step_do_not_depend_on_the_number_of_workers():
    class Numbers:
        def __len__(self):
            return 100

        def batch(self, first, count):
            return {"n": torch.arange(first, first + count)}

    def seen(world_size, accumulation):
        o = Optimisation(samples=48, batch_size=16, accumulation=accumulation)
        ranks = [[b["n"] for _, b in prefetch(Numbers(), 16, o, rank, world_size)] for rank in range(world_size)]
        per_step = accumulation
        steps = [torch.cat([b for r in ranks for b in r[i : i + per_step]]).sort().values for i in range(0, len(ranks[0]), per_step)]
        return torch.stack(steps)

    assert torch.equal(seen(1, 1), torch.arange(16, 48).view(2, 16))
    assert torch.equal(seen(2, 1), seen(1, 1))
    assert torch.equal(seen(2, 4), seen(1, 1))


def test_accumulation_gives_the_gradient_of_the_whole_batch(tmp_path):
    root = Folder(str(tmp_path))
    for accumulation in (1, 2):
        run(root, "train-decoder", small_recipe(batch_size=4, accumulation=accumulation), work=f"w{accumulation}", out=f"o{accumulation}")
    one, two = (load_network(root.child(f"o{a}")).network.state_dict() for a in (1, 2))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5)


def test_a_loss_that_is_not_finite_stops_and_names_the_samples(tmp_path):
    network = torch.nn.Linear(2, 2)

    def loss(net, batch, draws):
        value = net(torch.ones(1, 2)).square().mean()
        return value * float("nan") if batch["pixels"].sum() == Pairs(4).batch(6, 2)["pixels"].sum() else value

    o = Optimisation(samples=16, batch_size=2, log_every=4, checkpoint_every=4)
    with pytest.raises(FloatingPointError, match="samples 6 to 7"):
        train(Task("test", network, Pairs(4), loss, "id"), o, 0, Folder(str(tmp_path)))
    saved = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert saved["progress"]["samples"] == 4
    assert all(torch.isfinite(value).all() for value in saved["network"].values())


def test_learning_rate_warms_up_and_cools_down():
    o = Optimisation(samples=1000, batch_size=10, learning_rate=1.0, warmup_samples=100, cooldown_samples=200)
    assert [round(learning_rate(o, n), 3) for n in (0, 40, 90, 500, 800, 900, 990)] == [0.1, 0.5, 1, 1, 1, 0.5, 0.05]


# ------------------------------------------------------------------------------------------------------------- checkpoints


def test_export_is_strict(tmp_path):
    from safetensors.torch import load, save

    folder = Folder(str(tmp_path))
    config = small_recipe().train_decoder.network
    network = UNet(config)
    export_network(folder, network, Objective(prediction="eps"), stage="train-decoder")
    export = load_network(folder)
    assert export.objective.prediction == "eps"
    assert export.network.config == config
    assert all(torch.equal(a, b) for a, b in zip(export.network.state_dict().values(), network.state_dict().values(), strict=True))

    tensors = load(folder.read_bytes(WEIGHTS))
    removed = tensors.pop("output.spatial.bias")
    folder.write_bytes(WEIGHTS, save(tensors | {"extra": removed}))
    with pytest.raises(UserError, match=r"lacks output.spatial.bias; it has no place for extra"):
        load_network(folder)
    folder.write_bytes(WEIGHTS, save(tensors | {"output.spatial.bias": torch.zeros(7)}))
    with pytest.raises(UserError, match=r"of another shape is output.spatial.bias"):
        load_network(folder)
    folder.write_bytes(FACTS, b'{"kind": "unet"}')
    with pytest.raises(UserError, match="cannot be read"):
        load_network(folder)
    with pytest.raises(UserError, match="run its stage first"):
        load_network(folder.child("nothing"))
