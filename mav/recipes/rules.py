"""What a type cannot say of a recipe: how values of different sections must fit together."""

import json
import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from mav.errors import nearest
from mav.recipes.data import World
from mav.recipes.evaluation import LEAST_CARD_CLIPS
from mav.recipes.networks import UNetConfig, clip_sizes, open_clip_architectures
from mav.recipes.recipe import Recipe
from mav.recipes.training import TrainImage, TrainVideo, crop_side

KEY = re.compile(r"`([\w.]+)`")
PROXY = re.compile(r"(http://([^\s/@:\[\]]+|\[[0-9a-fA-F:.]+\]):(?P<port>[0-9]{1,5})/?)?")
Need = Callable[[bool, str, str, str], None]  # whether it holds, the key, what its value must be, the remedy


class Word(str):
    """What stands in a sentence in place of a value."""


GIVEN, MISSING = Word("given"), Word("missing")


@dataclass(frozen=True)
class Problem:
    """One wrong value of a recipe: its key, the value, why it is wrong, and what to do."""

    key: str
    value: Any
    why: str
    remedy: str

    def __str__(self) -> str:
        end = "?" if self.remedy.startswith("did you mean") else "."
        return f"`{self.key}` is {shown(self.value)}, but {self.why}: {self.remedy}{end}"

    @property
    def keys(self) -> set[str]:
        """All keys that the sentence is about."""
        return {self.key, *KEY.findall(self.why), *KEY.findall(self.remedy)}


def shown(value: Any) -> str:
    """Returns a value as a recipe would write it."""
    if isinstance(value, Word):
        return value
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    text = repr(value) if isinstance(value, (str, int, float)) else json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def problems_of(recipe: Recipe) -> list[Problem]:
    """Returns every contradiction in a recipe whose values have the right types and ranges."""
    found: list[Problem] = []

    def need(holds: bool, key: str, why: str, remedy: str) -> None:
        if not holds:
            value = operator.attrgetter(key)(recipe)
            found.append(Problem(key, value if isinstance(value, (str, int, float, tuple)) else GIVEN, why, remedy))

    for rules in (_sources, _world, _sizes, _clip, _networks, _videos, _objectives, _lengths, _sampling):
        rules(recipe, need)
    return found


def _sources(recipe: Recipe, need: Need) -> None:
    given = bool(recipe.world or recipe.image_metadata.sources or recipe.video_shards.sources)
    why = "neither `video_shards.sources` nor `world` is given, so there is nothing to read"
    need(given, "image_metadata.sources", why, "name your parquet files or your video lists")
    for key, path in recipe.paths():
        why = f"names {path!r}, and neither variables nor ~ are expanded"
        need(bool(path.strip()), key, f"names {path!r}, which is blank", "name a file, or leave it out")
        need("$" not in path and not path.startswith("~"), key, why, "write the path out")
    for key, proxy in (("image_download", recipe.image_download.proxy), ("video_shards", recipe.video_shards.proxy)):
        fits = (address := PROXY.fullmatch(proxy)) is not None and int(address["port"] or 0) < 1 << 16
        need(fits, f"{key}.proxy", "is no address of a proxy", "write http://HOST:PORT, or leave it empty")
    screening, evaluate, select = recipe.screening, recipe.evaluate, recipe.image_select
    why = f"must not be above `screening.max_caption` ({screening.max_caption})"
    need(screening.min_caption <= screening.max_caption, "screening.min_caption", why, "lower it")
    why = "is the longer side over the shorter one, which is at least 1"
    need(not 0 < screening.max_aspect < 1, "screening.max_aspect", why, "give at least 1, or 0 for any")
    why = "`image_select.aesthetic_head` is empty, so no picture has a score"
    need(not select.aesthetic or bool(select.aesthetic_head), "image_select.aesthetic", why, "name its file")
    why = "cuts by `video_shards.shot_weights` have probabilities, none of which is above 1"
    need(not recipe.video_shards.shot_weights or recipe.video_select.cut < 1, "video_select.cut", why, "give 0.5")
    why = f"is {evaluate.card_clips}, and a validity card takes {LEAST_CARD_CLIPS} at least"
    need(not 0 < evaluate.card_clips < LEAST_CARD_CLIPS, "evaluate.card_clips", why, "give so many, or 0 for no card")
    drawn = recipe.world.evaluation_clips if recipe.world and not (evaluate.ucf101 and evaluate.msrvtt) else None
    why = f"is {drawn}, and a validity card takes {LEAST_CARD_CLIPS} at least"
    enough = drawn is None or not evaluate.card_clips or drawn >= LEAST_CARD_CLIPS
    need(enough, "world.evaluation_clips", why, "give so many, or `evaluate.card_clips: 0`")
    why = "published features are computed by weights in `evaluate.weights_dir`, which is empty"
    need(evaluate.features == "demo" or bool(evaluate.weights_dir), "evaluate.features", why, "name their folder")


def _world(recipe: Recipe, need: Need) -> None:
    """What is drawn must be there, and long enough to train on."""
    world, shapes = recipe.world or World(), recipe.world is None or recipe.world.kind == "shapes"
    need(shapes or bool(world.files), "world.files", "digits are those of MNIST's idx files", "name their folder")
    need(shapes or world.objects == 1, "world.objects", "a world of digits has one in a frame", "say 1")
    if recipe.world and not recipe.video_shards.sources:
        least = max(8, recipe.cascade.frames)  # `video-shards` refuses clips of fewer than 8 frames
        why = f"clips of fewer than {least} frames hold no window of `cascade.frames` ({recipe.cascade.frames})"
        need(world.clip_frames >= least, "world.clip_frames", why, f"say {least} or more")
    why = "two objects (`world.objects`) have two"
    need(len(set(world.colours)) >= world.objects, "world.colours", why, "name another")


def _sizes(recipe: Recipe, need: Need) -> None:
    for small, large in (("base_size", "low_size"), ("low_size", "high_size")):
        low, high = getattr(recipe.cascade, small), getattr(recipe.cascade, large)
        whole = low * max(2, round(high / low))
        why = f"must be a multiple of `cascade.{small}` ({low}), at least twice as large"
        need(high > low and high % low == 0, f"cascade.{large}", why, f"say {whole}, for example")


def _clip(recipe: Recipe, need: Need) -> None:
    section, network, o = recipe.clip, recipe.clip.network, recipe.clip.optimisation
    why = "its weights are not named in `clip.pretrained`, and an untrained CLIP would screen and embed everything"
    need(bool(section.pretrained) or not section.architecture, "clip.architecture", why, "name their file")
    why = "`clip.architecture` does not say whose weights they are"
    remedy = "name the open_clip model, as in ViT-L-14"
    need(bool(section.architecture) or not section.pretrained, "clip.pretrained", why, remedy)
    why = "`clip.pretrained` is empty, so nothing would be trained or loaded"
    need(o.samples > 0 or bool(section.pretrained), "clip.optimisation.samples", why, "say how many samples to train")
    need(not o.sample_every, "clip.optimisation.sample_every", "it makes no pictures", "leave it at 0")
    need(not o.held_out, "clip.optimisation.held_out", "it has no loss by noise level", "leave it at 0")
    need(o.export == "last", "clip.optimisation.export", "no samples are held out to choose by", "leave it at last")
    need(network.image_size % 32 == 0, "clip.network.image_size", "must be a multiple of 32", "say 32 or 64")
    why = f"must be a multiple of `clip.network.text_heads` ({network.text_heads})"
    need(network.text_width % network.text_heads == 0, "clip.network.text_width", why, "give such a width")

    sizes, prior = clip_sizes(section.architecture, network), recipe.train_prior.network
    if sizes is None:
        known = open_clip_architectures()
        meant = nearest(section.architecture, known)
        remedy = f"did you mean {meant}" if meant else "say one of `open_clip.list_models()`"
        need(not known, "clip.architecture", "open_clip has no such model", remedy)
        return
    for key, value in sizes.items():
        why = f"that of the CLIP ({section.architecture or 'clip.network'}) is {value}"
        fits = getattr(prior, key) >= value if key == "vocabulary" else getattr(prior, key) == value
        need(fits, f"train_prior.network.{key}", why, f"say {value}")
    dim = sizes["embedding_dim"]
    why = f"that of the CLIP ({section.architecture or 'clip.network'}), whose embedding conditions it, is {dim}"
    need(recipe.train_decoder.network.embedding_dim == dim, "train_decoder.network.embedding_dim", why, f"say {dim}")


def _networks(recipe: Recipe, need: Need) -> None:
    prior, cascade = recipe.train_prior.network, recipe.cascade
    why = f"must be a multiple of `train_prior.network.heads` ({prior.heads})"
    need(prior.width % prior.heads == 0, "train_prior.network.width", why, "give such a width")
    for name, size, small in (
        ("train_decoder", cascade.base_size, 0),
        ("train_sr_low", cascade.low_size, cascade.base_size),
        ("train_sr_high", cascade.high_size, cascade.low_size),
    ):
        section: TrainImage = getattr(recipe, name)
        network, key = section.network, f"{name}.network"
        _levels(network, key, size, need)
        need(not network.max_frames, f"{key}.max_frames", "inflation sets it", "leave it out")
        need(not network.masked_frames, f"{key}.masked_frames", "the stage of F^ sets it", "leave it out")
        wanted = "true" if small else "false"
        why = "an SR network is conditioned on its low-resolution input" if small else "D has no low-resolution input"
        need(network.low_resolution == bool(small), f"{key}.low_resolution", why, f"say {wanted}")
        if small:
            why = "an SR network is given no embedding"
            need(not network.embedding_dim, f"{key}.embedding_dim", why, "leave it at 0")
            _crop(recipe, name, network, (small, size), need)
        else:
            _without_low_resolution(recipe, name, need)
    _crop(recipe, "train_sr_low_video", recipe.train_sr_low.network, (cascade.base_size, cascade.low_size), need)


def _levels(network: UNetConfig, key: str, size: int, need: Need) -> None:
    grid = 2 ** (len(network.levels) - 1)
    why = f"{len(network.levels)} levels halve its {size} pixels {len(network.levels) - 1} times, and {grid} does not "
    need(size % grid == 0, f"{key}.levels", f"{why}divide them", "leave levels out, or change the size in `cascade`")
    why = f"there are {len(network.levels)} levels"
    need(network.checkpoint_levels <= len(network.levels), f"{key}.checkpoint_levels", why, "give at most as many")
    for level in (level for level in network.levels if level.attention):
        heads = max(1, level.channels // network.head_channels)
        why = f"{level.channels} channels do not divide into heads of {network.head_channels}"
        need(level.channels % heads == 0, f"{key}.head_channels", why, "give a divisor of the channels")


def _crop(recipe: Recipe, name: str, network: UNetConfig, sizes: tuple[int, int], need: Need) -> None:
    """A crop is a whole number of low-resolution pixels, and the levels divide it."""
    small, size = sizes
    if size % small:
        return  # is reported by itself
    factor, grid = size // small, 2 ** (len(network.levels) - 1)
    side = crop_side(size, factor, getattr(recipe, name).crop)
    why = f"the {len(network.levels)} levels of the network do not divide a crop of {side} of {size} pixels"
    need(side % grid == 0, f"{name}.crop", why, f"choose a share that makes a multiple of {grid}")


def _without_low_resolution(recipe: Recipe, name: str, need: Need) -> None:
    for field in ("noise_augmentation", "blur_sigma"):
        why = "this network has no low-resolution input, so it would have no effect"
        need(not getattr(getattr(recipe, name), field), f"{name}.{field}", why, "leave it out")
    why = "only SR networks train on crops, so it would have no effect"
    need(getattr(recipe, name).crop == 1, f"{name}.crop", why, "leave it out")
    why = "only SR networks leave enlarged pictures out, so it would have no effect"
    need(getattr(getattr(recipe, name), "enlarged", True), f"{name}.enlarged", why, "leave it out")


VIDEOS = {
    "train_decoder_video": "train_decoder",
    "train_interpolation": "train_decoder",
    "train_sr_low_video": "train_sr_low",
}  # and the networks that they start from


def _videos(recipe: Recipe, need: Need) -> None:
    for name in VIDEOS:
        section: TrainVideo = getattr(recipe, name)
        why = f"windows have `cascade.frames` ({recipe.cascade.frames}) frames, and motion needs two"
        need(section.frames == 0 or 2 <= section.frames <= recipe.cascade.frames, f"{name}.frames", why,
             "give at most as many, or 0 for all of them")  # fmt: skip
        why = f"must not be above `{name}.fps.high` ({section.fps.high:g})"
        need(section.fps.low <= section.fps.high, f"{name}.fps.low", why, "lower it")
        first, samples = section.temporal_first_samples, section.optimisation.samples
        why = f"the training has {samples} samples (`{name}.optimisation.samples`)"
        need(first <= samples, f"{name}.temporal_first_samples", why, "give at most as many")
        if name != "train_sr_low_video":
            _without_low_resolution(recipe, name, need)


def _objectives(recipe: Recipe, need: Need) -> None:
    image = {name: name for name in ("train_decoder", "train_sr_low", "train_sr_high")}
    for name, network in (image | VIDEOS).items():
        prediction, channels = getattr(recipe, name).objective.prediction, getattr(recipe, network).network.out_channels
        wanted = 6 if prediction == "eps_learned_sigma" else 3
        why = f"`{network}.network.out_channels` is {channels}, and this prediction takes {wanted}"
        need(channels == wanted, f"{name}.objective.prediction", why, "change one of the two")
    learned = recipe.train_prior.objective.prediction == "eps_learned_sigma"
    need(not learned, "train_prior.objective.prediction", "the prior learns no variance", "say x0, v or eps")
    for name in ("train_prior", *image, *VIDEOS):
        objective = getattr(recipe, name).objective
        why = f"`{name}.objective.prediction` is {objective.prediction}, which says nothing about pure noise"
        fits = not objective.zero_terminal_snr or objective.prediction in ("x0", "v")
        need(fits, f"{name}.objective.zero_terminal_snr", why, "predict x0 or v")


def _lengths(recipe: Recipe, need: Need) -> None:
    workers = recipe.cluster.workers
    why = "it makes embeddings and no pictures"
    need(
        not recipe.train_prior.optimisation.sample_every, "train_prior.optimisation.sample_every", why, "leave it at 0"
    )
    why = f"is more than `cluster.workers` ({workers})"
    need(recipe.cluster.min_workers <= workers, "cluster.min_workers", why, "say at most as many")
    for name in ("clip", "train_prior", "train_decoder", "train_sr_low", "train_sr_high", *VIDEOS):
        o, key = getattr(recipe, name).optimisation, f"{name}.optimisation"
        if name == "clip" and not o.samples:
            continue
        why = f"it is less than one batch (`{key}.batch_size`, {o.batch_size})"
        need(o.samples >= o.batch_size, f"{key}.samples", why, "give at least one batch")
        parts = o.accumulation * workers
        why = f"must be a multiple of `{key}.accumulation` times `cluster.workers` ({o.accumulation} x {workers})"
        need(o.batch_size % parts == 0, f"{key}.batch_size", why, f"say {-(-o.batch_size // parts) * parts}")
        why = f"with `{key}.cooldown_samples` ({o.cooldown_samples}) it is longer than the {o.samples} samples of "
        fits = o.warmup_samples + o.cooldown_samples <= o.samples
        need(fits, f"{key}.warmup_samples", f"{why}`{key}.samples`", "shorten one of the two")
        if name != "clip":
            why = f"`{key}.held_out` is 0, so there are no samples to choose by"
            need(o.export == "last" or o.held_out > 0, f"{key}.export", why, "say how many samples are held out")


def _sampling(recipe: Recipe, need: Need) -> None:
    generate, start = recipe.generate, recipe.generate.interpolation_start
    networks: Iterable[tuple[str, str, float]] = (
        ("prior", "train_prior", 1.0), ("decoder", "train_decoder_video", 1.0),
        ("interpolation", "train_interpolation", start), ("sr_low", "train_sr_low_video", 1.0),
        ("sr_high", "train_sr_high", 1.0),
    )  # fmt: skip
    for name, stage, share in networks:
        most = round(getattr(recipe, stage).objective.steps * share)
        why = f"the schedule of `{stage}.objective.steps` leaves {most} steps"
        need(getattr(generate, name).steps <= most, f"generate.{name}.steps", why, "give at most as many")
        low, high = getattr(getattr(generate, name), "guidance_interval", (0, 1))
        need(low <= high, f"generate.{name}.guidance_interval", "it ends before it begins", "say the lower share first")
    rates = [f"{rate:g}" for rate in generate.frame_rates]
    need(len(set(rates)) == len(rates), "generate.frame_rates", "a rate stands twice", "keep each once")
