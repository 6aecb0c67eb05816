"""The parts `stages`, `launches` and `sampling` of bench_gpu: training stages of a recipe on fixed random batches."""

from __future__ import annotations

import dataclasses
import operator
import tempfile
import time
from typing import Any

import torch
from torch import Tensor

from mav.models.clip import ClipModel
from mav.models.prior import Prior
from mav.models.unet import UNet, add_masked_frames, inflate
from mav.recipes import Recipe
from mav.recipes.reader import load_recipe
from mav.storage import Folder
from mav.training.export import Export, export_network
from mav.training.network_costs import network_cost
from mav.training.stages import run_stage

STAGES = (
    "train-prior", "train-decoder", "train-sr-low", "train-sr-high", "train-decoder-video", "train-interpolation",
    "train-sr-low-video",
)  # fmt: skip
IMAGE_NETWORK = {"interpolation": "decoder", "decoder": "decoder", "sr-low": "sr-low", "sr-high": "sr-high"}
WARM_UP, LOG_STEPS = 3, 3


class Enough(Exception):  # noqa: N818, it is no error
    """Ends a training from its report."""


class FixedBatch:
    """A source whose every batch is the same, so that nothing waits for data."""

    def __init__(self, batch: dict[str, Tensor]) -> None:
        self.rows = batch

    def __len__(self) -> int:
        return 2**20

    def batch(self, first: int, count: int) -> dict[str, Tensor]:
        return {name: value[:count] for name, value in self.rows.items()}

    def peek(self, count: int) -> dict[str, Tensor]:
        return self.batch(0, count)

    def hold_out(self, count: int, total: int) -> dict[str, Tensor]:
        return self.batch(0, count)


def machine(device: str) -> dict[str, Any]:
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda}


def _source(recipe: Recipe, stage: str, count: int) -> FixedBatch:
    generator, sizes = torch.Generator().manual_seed(0), recipe.cascade
    width = recipe.train_prior.network.embedding_dim
    unit = torch.nn.functional.normalize(torch.randn(count, width, generator=generator), dim=-1)
    if stage == "train-prior":
        tokens = torch.randint(0, 1000, (count, recipe.train_prior.network.text_context), generator=generator)
        return FixedBatch({"image_embedding": unit, "text_embedding": unit.flip(0), "tokens": tokens})
    if not stage.endswith("-video") and stage != "train-interpolation":
        side = {"decoder": sizes.base_size, "sr-low": sizes.low_size, "sr-high": sizes.high_size}[stage[6:]]
        pixels = torch.randint(256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
        return FixedBatch({"pixels": pixels, "image_embedding": unit})
    frames = recipe.section_of(stage).frames or sizes.frames
    shape = (count, frames, 3, sizes.low_size, sizes.low_size)
    pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    return FixedBatch({"pixels": pixels, "fps": torch.full((count,), 8.0)})


def _image_section(stage: str) -> str:
    return IMAGE_NETWORK[stage.removeprefix("train-").removesuffix("-video")]


def _inputs(recipe: Recipe, stage: str, root: Folder) -> dict[str, Folder]:
    """The untrained networks that a stage continues, and a CLIP."""
    inputs = {}
    if stage in ("train-decoder-video", "train-interpolation", "train-sr-low-video"):
        section = recipe.section_of(f"train-{_image_section(stage)}")
        network, parent = UNet(section.network), f"train-{_image_section(stage)}"
        if stage == "train-interpolation":
            network, parent = inflate(network, recipe.cascade.frames), "train-decoder-video"
        inputs[parent] = root.child(parent)
        export_network(inputs[parent], network, section.objective)
        if stage != "train-sr-low-video":
            inputs["clip"] = root.child("clip")
            _clip(recipe).save(inputs["clip"])
    return inputs


def _clip(recipe: Recipe) -> ClipModel:
    """The recipe's CLIP with random weights."""
    named = recipe.clip.architecture
    return ClipModel(architecture=named) if named else ClipModel(recipe.clip.network)


def _shortened(recipe: Recipe, stage: str, micro: int) -> Recipe:
    """The recipe with steps of one micro-batch, a report every few, and neither checkpoints nor held-out samples."""
    name = stage.replace("-", "_")
    section = getattr(recipe, name)
    optimisation = dataclasses.replace(
        section.optimisation, samples=10**6 * micro, batch_size=micro, accumulation=1, held_out=0, export="last",
        log_every=LOG_STEPS * micro, checkpoint_every=10**6 * micro, warmup_samples=0,
        cooldown_samples=0,
    )  # fmt: skip
    return dataclasses.replace(recipe, **{name: dataclasses.replace(section, optimisation=optimisation)})


def _with_checkpoints(recipe: Recipe, stage: str, levels: int) -> Recipe:
    """The recipe whose stage computes the activations of so many levels again."""
    if stage == "train-prior":
        return recipe
    name = f"train_{_image_section(stage)}".replace("-", "_")
    section = getattr(recipe, name)
    network = dataclasses.replace(section.network, checkpoint_levels=levels)
    return dataclasses.replace(recipe, **{name: dataclasses.replace(section, network=network)})


def stage_pace(
    name: str, stage: str, device: str, seconds: float, matrix_teraflops: float, micro: int | None = None,
    levels: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """One stage's pace in the training loop itself, over the last `seconds`, and its peak memory."""
    recipe = load_recipe(name)
    recipe = recipe if levels is None else _with_checkpoints(recipe, stage, levels)
    o = recipe.section_of(stage).optimisation
    micro = micro or o.batch_size // (o.accumulation * recipe.cluster.workers)
    recipe = _shortened(recipe, stage, micro)
    said = network_cost(stage, recipe)
    useful = said.flops_per_sample
    root = Folder(tempfile.mkdtemp())
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    marks: list[tuple[float, dict[str, Any]]] = []
    started = time.monotonic()

    def report(progress: dict[str, Any]) -> None:
        if "samples" in progress and "loss" in progress:
            marks.append((time.monotonic(), progress))
            if len(marks) > WARM_UP and time.monotonic() - marks[WARM_UP - 1][0] > seconds:
                raise Enough

    try:
        inputs, source = _inputs(recipe, stage, root), _source(recipe, stage, micro)
        run_stage(
            stage, recipe, inputs, root.child("work"), root.child("out"), device=device, report=report, source=source
        )
    except Enough:
        pass
    except (RuntimeError, TypeError) as error:  # out of memory, or a card that cannot: the other stages still count
        print(f"  {stage}: {error!r:.300}", flush=True)
        return {"stage": stage, "micro_batch": micro, "error": repr(error)[:300]}
    (before, first), (after, last) = marks[WARM_UP - 1], marks[-1]
    pace = (last["samples"] - first["samples"]) / (after - before)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    row = {
        "stage": stage, "micro_batch": micro, "samples_per_second": pace, "steps_per_second": pace / micro,
        "teraflops": useful * pace / 1e12, "of_matrix_rate": useful * pace / 1e12 / matrix_teraflops,
        "first_steps_seconds": marks[0][0] - started, "peak_gb": peak / 1e9,
        "described_gb": (said.state_bytes + said.activation_bytes) / 1e9, "data_wait": last["data_wait"],
        "loss": last["loss"],
    }  # fmt: skip
    print("  " + "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{v}" for k, v in row.items()), flush=True)
    return row


def launches(name: str, device: str) -> dict[str, Any]:
    """Kernels and processor seconds of one step of D^t (4 clips) and of the demo's D, and the longest kernels."""
    from torch.profiler import ProfilerActivity, profile

    results = {}
    for label, recipe, clips, frames in (
        ("D^t", load_recipe(name), 4, True),
        ("demo's D", load_recipe("demo"), 32, False),
    ):
        config, sizes = recipe.train_decoder.network, recipe.cascade
        network = UNet(dataclasses.replace(config, max_frames=sizes.frames if frames else 0)).to(device).train()
        for parameter in network.parameters():  # off the neutral start, so that every branch is real
            parameter.data += 0.01 * torch.randn_like(parameter)
        side, count = sizes.base_size, sizes.frames if frames else 1
        x, t = torch.randn(clips, count, 3, side, side, device=device), torch.rand(clips, device=device) * 1000
        e = torch.nn.functional.normalize(torch.randn(clips, config.embedding_dim, device=device), dim=-1)
        more = {"fps": torch.full((clips,), 8.0, device=device)} if frames else {}

        def step(
            network: UNet = network, x: Tensor = x, t: Tensor = t, e: Tensor = e, more: dict[str, Tensor] = more
        ) -> None:
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                network(x, t, embedding=e, **more).float().square().mean().backward()

        for _ in range(3):
            step()
        if device == "cuda":
            torch.cuda.synchronize()
        started, processor = time.perf_counter(), time.process_time()
        step()
        processor = time.process_time() - processor
        if device == "cuda":
            torch.cuda.synchronize()
        wall = time.perf_counter() - started
        activities = [ProfilerActivity.CUDA, ProfilerActivity.CPU] if device == "cuda" else [ProfilerActivity.CPU]
        with profile(activities=activities) as profiler:
            step()
        spent = operator.attrgetter("self_device_time_total" if device == "cuda" else "self_cpu_time_total")  # us
        on_card = [e for e in profiler.key_averages() if str(e.device_type).endswith(device.upper()) and spent(e)]
        on_card = sorted(on_card, key=spent, reverse=True)
        total = sum(map(spent, on_card))
        results[label] = {
            "kernels": sum(e.count for e in on_card), "kernel_seconds": total / 1e6, "seconds": wall,
            "processor_seconds": processor,
        }  # fmt: skip
        print(f"  {label}: {results[label]}", flush=True)
        for e in on_card[:30]:
            print(f"    {spent(e) / 1e3:8.2f} ms {e.count:5d}x  {e.key[:110]}", flush=True)
    return results


def sampling(name: str, device: str) -> dict[str, Any]:
    """Seconds of one video through the whole cascade of a recipe with random weights, and of each network."""
    from mav.generation.cascade import Cascade

    recipe = load_recipe(name)
    decoder, low, high = recipe.train_decoder, recipe.train_sr_low, recipe.train_sr_high
    video = inflate(UNet(decoder.network), recipe.cascade.frames)
    networks = {
        "prior": (Prior(recipe.train_prior.network), recipe.train_prior.objective),
        "decoder": (video, decoder.objective),
        "interpolation": (add_masked_frames(video), decoder.objective),
        "sr_low": (inflate(UNet(low.network), recipe.cascade.frames), low.objective),
        "sr_high": (UNet(high.network), high.objective),
    }
    exports = {key: Export(network.to(device).eval(), objective, {}) for key, (network, objective) in networks.items()}
    clip = _clip(recipe).to(device).eval()
    cascade = Cascade(recipe.cascade, clip, **exports, device=device)
    for turn in range(2):  # the first also chooses algorithms
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        marks: dict[str, list[float]] = {}

        def progress(network: str, done: int, steps: int, marks: dict[str, list[float]] = marks) -> None:
            marks.setdefault(network, []).append(time.perf_counter())

        started = time.perf_counter()
        cascade.sample(["a dog runs"], [turn], recipe.generate, progress=progress)
        seconds = time.perf_counter() - started
        row = {
            "seconds": seconds, "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else 0,
            "calls": {key: len(value) for key, value in marks.items()},
            "seconds_of": {key: value[-1] - value[0] for key, value in marks.items()},
        }  # fmt: skip
        print(f"  {row}", flush=True)
    return row
