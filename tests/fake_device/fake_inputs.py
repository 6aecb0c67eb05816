"""What the tests on a device need: untrained networks, a shard of pictures, weights of the evaluation's networks."""

import dataclasses
import io
import json
from functools import partial

import numpy as np
import pytest
from PIL import Image
from small_training import parents

from mav.data.shards import TarWriter
from mav.evaluation.networks import weights
from mav.evaluation.networks.vit import DINO, DINOV2, VIDEOMAE, VideoMae, VisionTransformer
from mav.evaluation.networks.vjepa import VJEPA, VJepa
from mav.generation.cascade import NETWORKS
from mav.models.prior import Prior
from mav.models.unet import UNet, add_masked_frames, inflate
from mav.recipes import Generate, GuidedSampling, Recipe, Sampling
from mav.storage import Folder
from mav.training.export import export_network

STEPS = Sampling(steps=2)
GUIDED = GuidedSampling(steps=2, guidance=2.0, guidance_rescale=0.5, guidance_interval=(0.0, 0.5))
GENERATE = Generate(
    prior=GUIDED,
    decoder=GUIDED,
    interpolation=dataclasses.replace(GUIDED, sampler="ancestral"),
    sr_low=dataclasses.replace(STEPS, sampler="dpm++2m"),
    sr_high=STEPS,
    noise_augmentation=0.2,
    interpolation_start=0.8,
)


def untrained(root: Folder, recipe: Recipe) -> dict[str, Folder]:
    """The artifacts that the cascade is loaded from, of the recipe's sizes."""
    frames = recipe.cascade.frames
    decoder = inflate(UNet(recipe.train_decoder.network), frames)
    networks = {
        "prior": Prior(recipe.train_prior.network),
        "decoder": decoder,
        "interpolation": add_masked_frames(decoder),
        "sr_low": inflate(UNet(recipe.train_sr_low.network), frames),
        "sr_high": UNet(recipe.train_sr_high.network),
    }
    inputs = {"clip": parents(root, "train-decoder-video", recipe)["clip"]}
    for name, stage in NETWORKS.items():
        inputs[stage] = root.child(f"cascade/{stage}")
        export_network(inputs[stage], networks[name], recipe.section_of(stage).objective)
    return inputs


def one_shard(images: Folder) -> None:
    """Three pictures of two sizes; two of them lack a score."""
    rng = np.random.default_rng(0)
    with images.create("00000.tar") as file, TarWriter(file) as tar:
        for row, (side, punsafe) in enumerate([(32, 0.1), (48, None), (32, None)]):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(256, size=(side, side, 3), dtype=np.uint8)).save(buffer, "JPEG")
            facts = json.dumps({"key": str(row), "punsafe": punsafe, "pwatermark": 0.1}).encode()
            tar.add(str(row), {"jpg": buffer.getvalue(), "txt": b"a picture", "json": facts})


def made_up_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the evaluation find the weights that a new network has; the deep ones have 2 blocks."""
    shallow = {
        name: partial(kind, dataclasses.replace(sizes, blocks=2))
        for name, kind, sizes in (
            ("dino", VisionTransformer, DINO), ("dinov2", VisionTransformer, DINOV2),
            ("videomae", VideoMae, VIDEOMAE), ("vjepa", VJepa, VJEPA),
        )
    }  # fmt: skip
    monkeypatch.setattr(weights, "NETWORKS", weights.NETWORKS | shallow)
    monkeypatch.setattr(weights, "find", lambda network, folder: (network, ""))
    monkeypatch.setattr(weights, "read_state", lambda network: weights.NETWORKS[network]().state_dict())
