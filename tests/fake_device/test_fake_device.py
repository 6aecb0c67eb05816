"""Everything that takes a device, on a CUDA device that holds no numbers: a mix of devices fails here without a card.

The device itself is checked too, against what PyTorch does on a processor.
"""

import numpy as np
import pytest
import torch
from fake_inputs import GENERATE, made_up_weights, one_shard, untrained
from small_training import parents, run, small_recipe, source_of

from mav.data.images.embed import EmbedWork, ScreenWork, load_clip
from mav.data.shards import read_array
from mav.evaluation.features import WHOLE, Networks
from mav.evaluation.networks import raft
from mav.evaluation.networks.weights import NETWORKS
from mav.generation.cascade import Cascade, CascadeBatch
from mav.generation.replay import KEPT, Pool, Replayed
from mav.models.clip import ClipModel
from mav.models.heads import WatermarkClassifier
from mav.recipes import Screening
from mav.storage import Folder
from mav.training.fake_device import fake_cuda
from mav.training.monitoring import sheet
from mav.training.stages import TRAININGS

PROMPTS = ["a red circle", "a blue square"]


@pytest.fixture
def root(tmp_path):
    return Folder(str(tmp_path))


def test_what_is_kept_to_replay_shapes_is_bounded(monkeypatch):
    """A process that samples batches of many sizes would keep a graph of each."""
    replayed = Replayed(lambda x, t: x, Pool())
    with fake_cuda(), torch.no_grad():
        torch.zeros(1, device="cuda")  # torch 2.11's first one asks the driver, where one is said to be
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        for rows in range(1, KEPT + 3):
            replayed(torch.zeros(rows, 2, device="cuda"), torch.zeros(rows, device="cuda"))
    sizes = [{name: shape for name, shape, _ in key[2:]}["x"][0] for key in replayed.captured]
    assert sizes == list(range(3, KEPT + 3))


# ------------------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("stage", TRAININGS)
def test_every_stage_trains_and_two_continue(root, stage, monkeypatch):
    """What continues is the same code in every stage; it is tried with a held-out loss and without."""
    monkeypatch.setattr(sheet, "STEPS", 1)
    precision = "float32" if stage == "train-decoder" else "bfloat16"
    intervals = {"samples": 4, "log_every": 2, "checkpoint_every": 2}
    held_out = 2 if stage in ("train-sr-low", "train-decoder-video") else 0
    recipe = small_recipe(precision=precision, held_out=held_out, **intervals)
    parents(root, stage, recipe)
    with fake_cuda() as device:
        assert run(root, stage, recipe, device="cuda", out="out")["samples"] == 4
        flops = device.flops
        assert flops > 0
        if stage in ("train-prior", "train-sr-low"):
            assert run(root, stage, recipe, device="cuda", out="again")["samples"] == 4
            assert device.flops < 2 * flops  # only what ends the stage is done again


@pytest.mark.slow
def test_nothing_reads_the_device_between_log_lines(root):
    """Three steps between two lines read as often as one."""
    reads = []
    for samples in (2, 6):
        recipe = small_recipe(samples=samples, log_every=6, checkpoint_every=6)
        with fake_cuda() as device:
            run(root, "train-decoder", recipe, device="cuda", work=f"work{samples}")
        reads.append(len(device.reads))
    assert reads[0] == reads[1] > 0


# --------------------------------------------------------------------------------------------------- everything else


def test_heads_are_fitted_on_embeddings_of_the_processor(root):
    """As the `clip` stage does it, which ended here on every card."""
    torch.manual_seed(0)
    with fake_cuda():
        clip = ClipModel(small_recipe().clip.network).to("cuda")
        unit = torch.nn.functional.normalize(torch.randn(20, clip.dim), dim=-1)
        known = torch.rand(20)
        statistics = clip.fit_heads(unit, known, torch.where(known > 0.3, known, torch.nan))
        assert set(statistics) == set(clip.heads) == {"punsafe", "pwatermark"}
        assert {p.device.type for p in clip.heads.parameters()} == {"cuda"}
        assert clip.scores(unit.to("cuda"))["punsafe"].device.type == "cuda"


def test_pictures_are_screened_and_embedded(root):
    """One head reads the embedding, the other the pixels."""
    images, folder = root.child("images"), root.child("clip")
    one_shard(images)
    torch.manual_seed(0)
    clip = ClipModel(small_recipe().clip.network)
    clip.fit_heads(torch.nn.functional.normalize(torch.randn(20, clip.dim), dim=-1), torch.zeros(20), torch.zeros(0))
    clip.heads["pwatermark"] = WatermarkClassifier()
    clip.save(folder)
    with fake_cuda():
        screening = Screening(unknown_scores="score")
        counts = ScreenWork(images, folder, root.child("screen"), screening, 2, "cuda")("00000").counts
        EmbedWork(images, root.child("screen"), folder, root.child("embed"), 2, "cuda")("00000")
        load_clip.cache_clear()
    assert (counts["rows_in"], counts["rows_out"]) == (3, 3)
    assert read_array(root.child("embed"), "00000.text.npy").shape == (3, clip.dim)


# The others are made of the same parts.
@pytest.mark.parametrize(
    "use", ["sample", *(pytest.param(use, marks=pytest.mark.slow) for use in ("animate", "interpolate", "vary"))]
)
def test_the_cascade_samples(root, use):
    recipe = small_recipe()
    inputs = untrained(root, recipe)
    size, rng = recipe.cascade.high_size, np.random.default_rng(0)
    pictures = rng.integers(256, size=(2, size, size, 3), dtype=np.uint8)
    videos = rng.integers(256, size=(2, 3, size, size, 3), dtype=np.uint8)
    given = {"sample": [PROMPTS], "animate": [pictures], "vary": [videos],
             "interpolate": [pictures, pictures]}  # fmt: skip
    with fake_cuda():
        made = getattr(Cascade.load(recipe, inputs, "cuda"), use)(*given[use], [1, 2], GENERATE)
    assert made.shape[0] == 2
    assert made.shape[2:] == (size, size, 3)


@pytest.mark.parametrize(("device", "kind"), [("cuda", torch.bfloat16), ("cpu", torch.float32)])
def test_products_of_sampling_are_bfloat16_on_a_gpu_and_samples_float32(root, device, kind):
    recipe = small_recipe()
    inputs, kinds = untrained(root, recipe), []
    with fake_cuda():
        cascade = Cascade.load(recipe, inputs, device)
        for layer in cascade.decoder.network.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.register_forward_hook(lambda layer, given, made: kinds.append(made.dtype))
        run = CascadeBatch(cascade, [1], GENERATE)
        made = run.decode(torch.zeros(1, recipe.train_decoder.network.embedding_dim, device=device))
    assert set(kinds) == {kind}
    assert made.dtype == torch.float32


def test_the_networks_of_the_evaluation_see_videos(root, monkeypatch):
    clip = parents(root, "train-decoder-video", small_recipe())["clip"]
    made_up_weights(monkeypatch)
    monkeypatch.setattr(raft, "UPDATES", 2)
    video = np.random.default_rng(0).integers(256, size=(16, 40, 40, 3), dtype=np.uint8)
    one_row = {"demo": 16, "i3d": 400, "c3d": 101, "videomae": 1408, "vjepa": 1280}
    each_frame = ("inception", "dino", "dinov2", "musiq")
    networks = Networks((*one_row, *each_frame, "whole raft"), "", clip, "cuda")
    assert {name.removeprefix(WHOLE) for name in networks.names} == {"demo", *NETWORKS}
    with fake_cuda():
        found = networks([video])
        with torch.backends.cudnn.flags(enabled=False):  # its sampler of grids has no fake kernel; PyTorch's own has
            found |= networks.rows(video[:3], 8.0)
        assert networks.texts("demo", PROMPTS).shape[0] == 2
        assert networks.temperature("demo") >= 0
    assert {name: len(found[name][0]) for name in one_row} == one_row
    assert [len(found[name][0]) for name in each_frame] == [16] * len(each_frame)
    assert found["whole raft"].shape == (1,)


# ---------------------------------------------------------------------------------------------------- the device itself


def test_two_devices_do_not_mix():
    with fake_cuda(), pytest.raises(RuntimeError, match="cuda"):
        torch.ones(3, device="cuda") + torch.ones(3)


def test_gradients_are_those_of_the_engine_s_shapes_and_memory_is_freed():
    source = source_of("train-decoder", small_recipe())
    pixels = source.batch(0, 2)["pixels"].float()[:, None]
    with fake_cuda() as device:
        network = torch.nn.Sequential(torch.nn.Conv3d(1, 4, 3), torch.nn.SiLU(), torch.nn.Conv3d(4, 1, 1)).to("cuda")
        weights = device.allocated
        loss = network(pixels.to("cuda")).square().mean()
        loss.backward()
        assert [p.grad.shape for p in network.parameters()] == [p.shape for p in network.parameters()]
        del loss
        assert device.allocated == 2 * weights
        assert device.peak > 2 * weights
        assert (len(device.uploads), device.reads) == (1 + 4, [])
