"""Training, sampling and features on a real card; only the last needs Ray."""

import gc
import warnings

import numpy as np
import pytest
import torch
from fake_inputs import GENERATE, made_up_weights, untrained
from small_training import parents, run, small_recipe

from mav.evaluation.features import Networks
from mav.generation.cascade import Cascade
from mav.generation.replay import Pool, Replayed
from mav.models.unet import UNet, inflate
from mav.recipes.reader import load_recipe
from mav.storage import Folder
from mav.training.export import WEIGHTS, load_network
from mav.training.stages import TRAININGS

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture
def root(tmp_path):
    return Folder(str(tmp_path))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", TRAININGS)
def test_every_stage_trains(root, stage, precision):
    recipe = small_recipe(precision=precision, held_out=0 if stage == "clip" else 4)
    metrics = run(root, stage, recipe, device="cuda")
    assert metrics["samples"] == 12
    assert np.isfinite(metrics["loss"])


class StopError(Exception):
    pass


@pytest.mark.parametrize("stage", ["train-prior", "train-decoder", "train-decoder-video"])
def test_a_run_that_was_stopped_continues(root, stage):
    """The weights are those of a run in one piece, up to the order in which a card adds numbers."""
    recipe = small_recipe(samples=16)
    parents(root, stage, recipe)

    def stop(line):
        if line.get("samples") == 12:
            raise StopError

    run(root, stage, recipe, device="cuda", work="whole", out="one")
    with pytest.raises(StopError):
        run(root, stage, recipe, device="cuda", work="parts", out="two", report=stop)
    run(root, stage, recipe, device="cuda", work="parts", out="two")
    one, two = (load_network(root.child(out)).network.state_dict() for out in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(
            two[name], value, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert root.child("one").exists(WEIGHTS)


def test_nothing_waits_for_the_card_between_two_log_lines(root):
    """PyTorch warns of each wait; eight steps of a line make no more of them than two."""
    waits = []
    for samples in (4, 16):
        recipe = small_recipe(samples=samples, log_every=16, checkpoint_every=16)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            run(root, "train-decoder", recipe, device="cuda", work=f"work{samples}")
            torch.cuda.set_sync_debug_mode("default")
        waits.append([str(w.filename) + f":{w.lineno}" for w in caught if "synchronizing" in str(w.message)])
    assert len(waits[0]) == len(waits[1]), sorted(set(waits[1]))


def test_the_cascade_of_the_demo_is_the_same_on_both_devices(root):
    """New networks, whose outputs are zero: noise, schedule, windows and conditions make the same frames."""
    recipe = load_recipe("demo")
    inputs = untrained(root, recipe)
    videos = [
        Cascade.load(recipe, inputs, device).sample(["a red circle"], [1], GENERATE) for device in ("cpu", "cuda")
    ]
    difference = np.abs(videos[0].astype(int) - videos[1].astype(int))
    assert difference.mean() < 0.5
    assert np.quantile(difference, 0.99) <= 2


@pytest.mark.parametrize("frames", [0, 8])
def test_a_network_and_its_gradients_are_the_same_on_both_devices(frames):
    """With frames, through every kernel of a layer over time: the clips have different rates."""
    torch.manual_seed(0)
    image = UNet(load_recipe("demo").train_decoder.network)
    network = inflate(image, frames) if frames else image
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    given = {"x": torch.randn(4, frames or 1, 3, 16, 16), "t": torch.rand(4) * 1000, "embedding": torch.randn(4, 64)}
    given |= {"fps": torch.tensor([4.0, 8.0, 16.0, 24.0])} if frames else {}
    found = []
    for device in ("cpu", "cuda"):
        network = network.to(device).eval()
        network.zero_grad(set_to_none=True)
        y = network(**{name: value.to(device) for name, value in given.items()})
        y.square().mean().backward()
        found.append(
            {"": y.detach().cpu()} | {n: p.grad.cpu() for n, p in network.named_parameters() if p.grad is not None}
        )
    ours, expected = found[1], found[0]
    assert ours.keys() == expected.keys()
    for name, value in expected.items():  # products in TF32
        assert (ours[name] - value).norm() <= 2e-2 * value.norm() + 1e-6, name


def test_a_replayed_network_gives_what_it_gives_when_called():
    """Twice over, because the memory of the first cascade's graphs is gone when the second makes its own."""
    network = inflate(UNet(load_recipe("demo").train_decoder.network), 8).to("cuda").eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    for _ in range(2):
        pool = Pool()
        replayed = [Replayed(network, pool) for _ in range(2)]
        for turn in range(4):
            given = {"embedding": torch.randn(2, 64, device="cuda"), "fps": torch.full((2,), 8.0, device="cuda")}
            x, t = torch.randn(2, 8, 3, 16, 16, device="cuda"), torch.rand(2, device="cuda") * 1000
            with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
                expected = network(x, t, **given)
                for each in replayed:
                    torch.testing.assert_close(each(x, t, **given), expected, rtol=0, atol=0, msg=f"turn {turn}")
        del replayed, pool, each
        gc.collect()


def test_features_are_the_same_on_both_devices(root, monkeypatch):
    made_up_weights(monkeypatch)
    clip = parents(root, "train-decoder-video", small_recipe())["clip"]
    video = np.random.default_rng(0).integers(256, size=(16, 64, 64, 3), dtype=np.uint8)
    names = ("demo", "i3d", "c3d", "inception", "dino", "dinov2", "videomae", "vjepa", "musiq")
    found = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)  # the weights are drawn when they are first used
        found.append(Networks(names, "", clip, device)([video]))
    for name in names:
        scale = np.abs(found[0][name][0]).max()
        assert np.abs(found[0][name][0] - found[1][name][0]).max() < 0.02 * scale, name


def test_tasks_share_a_card():
    """Two tasks of half a GPU run side by side and see the same card."""
    ray = pytest.importorskip("ray")
    from flows.services.ray_cluster import ray_cluster
    from mav.recipes import Cluster

    with ray_cluster(Cluster(cpus=2, dashboard=False, object_store_mb=150)):

        @ray.remote(num_gpus=0.5)
        def product():
            return float((torch.ones(64, 64, device="cuda") @ torch.ones(64, 64, device="cuda")).sum())

        assert ray.get([product.remote() for _ in range(2)]) == [64.0**3] * 2
