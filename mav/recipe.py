"""The recipe: every choice of a run, typed, in one place.

A recipe is a YAML file (or the name of one shipped in `mav/recipes`). Each section below is one part of it and belongs to
the stages that name it; a stage's fingerprint covers its own sections only, so changing `generate` never retrains a network.
`cluster` says where a run happens and enters no fingerprint.

The sections are plain frozen dataclasses of the standard library, so that networks and training can import them on a
machine that has torch and nothing else. pydantic checks them when a file is loaded.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(kw_only_default=True, frozen_default=True)
def section(cls: type[T]) -> type[T]:
    """A frozen dataclass whose unknown keys and wrong types are refused when it is read from a file."""
    cls.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined]
    return dataclass(frozen=True, kw_only=True)(cls)


# ---------------------------------------------------------------------------------------------------------------- data


@section
class World:
    """The demo world: coloured shapes that move over textured grounds, drawn by the project and served on loopback."""

    images: int = 1500
    clips: int = 240
    size: int = 64  # side of images and clips, pixels
    clip_frames: int = 48
    clip_fps: int = 24
    colours: tuple[str, ...] = ("red", "green", "blue", "yellow", "cyan", "magenta")
    shapes: tuple[str, ...] = ("circle", "square", "triangle", "cross")
    evaluation_clips: int = 96  # held-out clips of the UCF-101-style and MSR-VTT-style sets
    port: int = 8787  # the loopback server's; part of every URL of the world


@section
class Screening:
    """What may enter the image-text set (the project's rule: no NSFW, no toxic words, no watermark >= 0.5)."""

    punsafe_threshold: float = 0.5  # rows at or above it are dropped
    pwatermark_threshold: float = 0.5  # the same: the boundary row is dropped
    unknown_scores: Literal["score", "keep", "drop"] = "score"  # rows whose score is null: ask our own scorers, or not
    word_lists: tuple[str, ...] = ("en",)  # shipped languages, or paths of one-phrase-a-line files
    word_exceptions: tuple[str, ...] = ()  # phrases that never count as toxic
    obfuscations: bool = False  # also match f*ck, sh1t and the like
    min_side: int = 0  # pixels, as the table claims
    max_aspect: float = 0.0  # longer over shorter side; 0 = any
    min_caption: int = 1  # characters
    max_caption: int = 2000
    duplicates: Literal["part", "all"] = "part"  # rows with the address and caption of an earlier one: in the same table, or in any


@section
class ImageMetadata:
    """`image-metadata`: LAION-style parquet to screened parquet."""

    sources: tuple[str, ...] = ()  # parquet paths or globs; empty: the demo world's tables
    rows_per_shard: int = 10_000


@section
class ImageDownload:
    """`image-download`: screened rows to WebDataset tars."""

    image_size: int = 256  # shorter side after resizing, pixels
    encode_quality: int = 95
    threads: int = 32  # concurrent fetches a shard
    timeout_seconds: float = 10.0  # for connecting and for each read
    deadline_seconds: float = 30.0  # for one URL in all, redirects included
    max_bytes: int = 50_000_000
    max_pixels: int = 100_000_000
    per_host: int = 8  # concurrent fetches from one host
    contact: str = ""  # e-mail or address of the operator, sent in the user agent
    allow_addresses: tuple[str, ...] = ()  # private or loopback host:port that may be fetched (demo, tests)
    refuse_directives: tuple[str, ...] = ("noai", "noimageai", "noindex", "noimageindex", "noml", "tdm-reservation")
    success_floor: float = 0.5  # share of rows that must succeed, or the stage fails
    shard_floor: float = 0.0  # share of each shard's rows that must succeed, or the stage fails


@section
class VideoShards:
    """`video-shards`: WebVid CSV, HD-VILA jsonl or any table of videos to WebDataset tars of validated, re-encoded clips."""

    sources: tuple[str, ...] = ()  # paths or globs of CSV, jsonl or parquet lists; empty: the demo world's list
    files: str = ""  # folder that holds page_dir/videoid.mp4, or what a list's `path` names; empty: fetch the URLs
    clips_per_shard: int = 500
    reencode: bool = True  # False: keep the original bytes of every video that training can read as they are
    short_side: int = 256
    keyframe_interval: int = 8  # frames; short closed GOPs for random access
    crf: int = 18
    max_seconds: float = 60.0
    timeout_seconds: float = 30.0
    deadline_seconds: float = 300.0
    max_bytes: int = 500_000_000
    allow_addresses: tuple[str, ...] = ()
    contact: str = ""
    success_floor: float = 0.5
    shard_floor: float = 0.0  # as `image_download`'s


# ------------------------------------------------------------------------------------------------------------ networks


@section
class Level:
    """One resolution of a U-Net."""

    channels: int
    blocks: int = 2
    attention: bool = False


@section
class UNetConfig:
    """A pixel U-Net; with `time` it is the space-time network, without it the image network."""

    levels: tuple[Level, ...]
    in_channels: int = 3  # noisy RGB; SR adds 3 (low-resolution input), F^ adds 4 (masked RGB + mask)
    out_channels: int = 3  # 6 with learned sigma
    embedding_dim: int = 0  # CLIP image embedding condition; 0 = none
    context_tokens: int = 4  # tokens the embedding becomes for attention
    head_channels: int = 64
    low_resolution: bool = False  # an SR network: conditions on the upsampled input and on its noise level
    masked_frames: bool = False  # F^: conditions on given frames
    max_frames: int = 0  # 0 = image network; else the longest clip its frame embedding covers
    dropout: float = 0.0
    checkpoint_levels: int = 0  # activation checkpointing on this many of the highest resolutions


@section
class PriorConfig:
    """The prior P: a causal transformer from text to CLIP image embedding (unCLIP section 2.2)."""

    embedding_dim: int
    vocabulary: int = 49_408  # CLIP's BPE
    text_context: int = 77
    width: int = 2048
    depth: int = 24
    heads: int = 32
    dropout: float = 0.0


@section
class ClipConfig:
    """A CLIP built by open_clip from these sizes, trained in the `clip` stage (demo), or described by name (pretrained).

    Its image tower is CLIP's ResNet: on a few hundred steps it learns shapes that a transformer of the same cost does not.
    """

    embedding_dim: int = 64
    image_size: int = 32  # a multiple of 32
    vision_width: int = 8  # channels of the stem; the last level has 32 times as many
    vision_blocks: int = 1  # bottleneck blocks in each of the four levels
    text_width: int = 64
    text_heads: int = 4
    text_layers: int = 2
    text_context: int = 16


@section
class Objective:
    """What a diffusion network predicts and how the loss is weighted."""

    schedule: Literal["cosine", "linear"] = "cosine"
    steps: int = 1000
    zero_terminal_snr: bool = False
    shift: float = 1.0  # > 1 moves the schedule towards noise (larger images, more frames)
    prediction: Literal["x0", "eps", "v", "eps_learned_sigma"] = "v"
    min_snr_gamma: float = 5.0  # 0 = unweighted
    condition_dropout: float = 0.1
    shared_noise: float = 0.0  # share of the noise's variance that all frames of a clip have in common (PYoCo's mixed noise; paper: silent)


@section
class Optimisation:
    """The training loop's values. Samples seen is the one counter: everything else is in samples."""

    samples: int
    batch_size: int  # over all workers and accumulation steps
    learning_rate: float = 1.2e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup_samples: int = 0
    cooldown_samples: int = 0  # linear to zero over the last so many samples
    gradient_clip: float = 1.0
    accumulation: int = 1
    ema_decay: float = 0.9999
    precision: Literal["float32", "bfloat16"] = "float32"
    log_every: int = 1024
    checkpoint_every: int = 16384
    compile: bool = False
    corrupted_share: float = 0.01  # of the stage's samples: more unreadable ones stop it
    held_out: int = 0  # samples kept out of the training to measure the loss on, at every checkpoint; 0 = none
    # What is handed on: the last moving average, that of the lowest loss on held-out samples, or of all widths of a power-function average
    # the one of the lowest (rebuilt when the training is over; takes two more copies of the network).
    export: Literal["last", "best", "post_hoc"] = "last"


@section
class Clip:
    """`clip`: pretrained weights from paths, or (when `pretrained` is empty) a tiny CLIP trained on the demo's captions."""

    pretrained: str = ""  # path of an open_clip state dict
    architecture: str = ""  # its open_clip model name, e.g. ViT-L-14
    nsfw_head: str = ""  # path of LAION's head
    watermark_head: str = ""  # path of a linear head on the embeddings, or LAION's classifier
    network: ClipConfig = field(default_factory=ClipConfig)
    optimisation: Optimisation = field(default_factory=lambda: Optimisation(samples=0, batch_size=64))


@section
class ImageEmbed:
    """`image-screen` and `image-embed`: how many images a CLIP forward takes."""

    batch_size: int = 256


@section
class Cascade:
    """Sizes and frame counts of y = SR_h . SR_l^t . F^ . D^t . P (paper section 3)."""

    frames: int = 16
    base_size: int = 64
    low_size: int = 256
    high_size: int = 768
    frame_skip: int = 5  # F^ makes (frames - 1) * frame_skip + 1 frames

    @property
    def long_frames(self) -> int:
        """Frames after interpolation: (16 - 1) * 5 + 1 = 76 in the paper."""
        return (self.frames - 1) * self.frame_skip + 1


@section
class FpsCurriculum:
    """Frame rates drawn through a Beta distribution that slides from high to low fps (paper 3.2; parameters: our choice)."""

    low: float = 1.0
    high: float = 30.0
    start: tuple[float, float] = (4.0, 1.5)  # Beta(a, b) over [low, high] at the first sample
    end: tuple[float, float] = (1.5, 4.0)  # and at the last
    short_clips: Literal["clamp", "skip"] = "clamp"  # too short for the rate drawn: shown at the slowest rate they allow, or passed over


@section
class TrainPrior:
    network: PriorConfig
    objective: Objective = field(default_factory=lambda: Objective(prediction="x0", min_snr_gamma=0.0))
    optimisation: Optimisation
    start: str = ""  # path of open unCLIP weights (Karlo's, or as diffusers stores them) to begin from


@section
class TrainImage:
    """D, SR_l or SR_h on images."""

    network: UNetConfig
    objective: Objective = field(default_factory=Objective)
    optimisation: Optimisation
    start: str = ""  # as `train_prior`'s, for D
    crop: float = 1.0  # side of the training crop over the side of the image (unCLIP: 0.25 for upsamplers)
    noise_augmentation: float = 0.0  # strongest noise put on the low-resolution input (share of the schedule)
    blur_sigma: float = 0.0  # Gaussian blur of the low-resolution input (unCLIP: 0.6)


@section
class TrainVideo:
    """D^t, SR_l^t or F^: the image network inflated, then trained on clips without text."""

    objective: Objective = field(default_factory=Objective)
    optimisation: Optimisation
    trainable: Literal["all", "temporal"] = "all"  # the paper says both (3.2.2, 3.4); default jointly
    temporal_first_samples: int = 0  # train only the new layers for so many samples, then as `trainable` says
    fps: FpsCurriculum = field(default_factory=FpsCurriculum)
    frames: int = 0  # frames a training clip; 0 = cascade.frames
    crop: float = 1.0
    noise_augmentation: float = 0.0
    blur_sigma: float = 0.0


# ---------------------------------------------------------------------------------------------- generation, evaluation


@section
class Sampling:
    """How one network of the cascade is sampled."""

    sampler: Literal["ddim", "ancestral", "dpm++2m"] = "ddim"
    steps: int = 25
    guidance: float = 1.0  # 1 = none
    guidance_rescale: float = 0.0


@section
class Generate:
    prompts: str = ""  # path of a file, one prompt a line; empty: the demo world's
    count: int = 0  # first so many prompts; 0 = all
    batch_size: int = 16
    fps: float = 8.0  # frame rate D^t is asked for
    prior: Sampling = field(default_factory=lambda: Sampling(steps=25, guidance=2.0))
    prior_candidates: int = 2  # keep the draw closest to the text embedding (unCLIP 2.2)
    decoder: Sampling = field(default_factory=lambda: Sampling(steps=25, guidance=2.0))
    interpolation: Sampling = field(default_factory=lambda: Sampling(steps=15))
    sr_low: Sampling = field(default_factory=lambda: Sampling(steps=10))
    sr_high: Sampling = field(default_factory=lambda: Sampling(steps=5))
    noise_augmentation: float = 0.0  # noise level the SR networks are told (and given) at sampling
    time_off_twin: bool = False  # also sample each prompt with the time layers off (the demo's comparison)


@section
class Evaluate:
    features: Literal["demo", "published"] = "demo"  # the run's own CLIP, or I3D / C3D / Inception from weights_dir
    weights_dir: str = ""
    ucf101: str = ""  # folder of UCF-101 as distributed; empty: the demo world's set
    msrvtt: str = ""
    bootstrap: int = 200  # draws for the 95 % intervals
    study_pairs: int = 24
    seed: int = 0


@section
class Cluster:
    """Where a run happens. Enters no fingerprint: the same artifact comes out of a laptop and of a cluster."""

    cpus: int = 0  # of a locally started Ray; 0 = all of this machine
    object_store_mb: int = 200
    dashboard: bool = True
    window: int = 0  # shard tasks in flight; 0 = twice the cluster's CPUs
    cpus_per_shard: float = 1.0
    attempts: int = 4  # of one shard before it is quarantined
    quarantine_floor: float = 0.0  # share of shards that may be quarantined before a stage fails
    fsync: bool = True  # a shard is on the disk before it counts as done; without, a power failure may cost finished shards
    workers: int = 1  # Ray Train workers a training stage
    cpus_per_worker: int = 1
    gpus_per_worker: float = 0.0
    sharding: Literal["ddp", "fsdp"] = "ddp"  # several workers: replicas, or a shard of every parameter on each
    stall_seconds: float = 3600.0  # a training that makes no step for so long ends and goes on from its checkpoint; 0 = it may hang
    keep_checkpoints: int = 2  # of a training, while it goes on; the one of the lowest validation loss stays besides
    gpu_stages: int = 1  # GPU stages at once, of all runs on one Prefect server
    parallel_stages: int = 2  # independent stages that may run at once


@section
class Expect:
    """What `mav plan` takes for tables and lists that are not at hand. Enters no fingerprint."""

    image_rows: int = 0  # 0: counted in the tables
    clips: int = 0


@section
class Recipe:
    """Everything a run needs to know; see the sections."""

    name: str
    about: str = ""
    seed: int = 0
    world: World | None = None  # the demo world, drawn and served by the run itself
    screening: Screening = field(default_factory=Screening)
    image_metadata: ImageMetadata = field(default_factory=ImageMetadata)
    image_download: ImageDownload = field(default_factory=ImageDownload)
    clip: Clip = field(default_factory=Clip)
    image_embed: ImageEmbed = field(default_factory=ImageEmbed)
    video_shards: VideoShards = field(default_factory=VideoShards)
    cascade: Cascade = field(default_factory=Cascade)
    train_prior: TrainPrior
    train_decoder: TrainImage
    train_sr_low: TrainImage
    train_sr_high: TrainImage
    train_decoder_video: TrainVideo
    train_interpolation: TrainVideo
    train_sr_low_video: TrainVideo
    generate: Generate = field(default_factory=Generate)
    evaluate: Evaluate = field(default_factory=Evaluate)
    cluster: Cluster = field(default_factory=Cluster)
    expect: Expect = field(default_factory=Expect)

    def paths(self) -> list[tuple[str, str]]:
        """Every outside file or folder the recipe names, with its key."""
        named = [
            ("clip.pretrained", self.clip.pretrained),
            ("clip.nsfw_head", self.clip.nsfw_head),
            ("clip.watermark_head", self.clip.watermark_head),
            ("train_prior.start", self.train_prior.start),
            ("train_decoder.start", self.train_decoder.start),
            ("train_sr_low.start", self.train_sr_low.start),
            ("train_sr_high.start", self.train_sr_high.start),
            ("video_shards.files", self.video_shards.files),
            ("generate.prompts", self.generate.prompts),
            ("evaluate.weights_dir", self.evaluate.weights_dir),
            ("evaluate.ucf101", self.evaluate.ucf101),
            ("evaluate.msrvtt", self.evaluate.msrvtt),
        ]
        named += [("image_metadata.sources", path) for path in self.image_metadata.sources]
        named += [("video_shards.sources", path) for path in self.video_shards.sources]
        named += [("screening.word_lists", path) for path in self.screening.word_lists if "/" in path or "." in path]
        return [(key, path) for key, path in named if path]

    def section_of(self, stage: str) -> Any:
        """The section of a training stage."""
        return getattr(self, stage.replace("-", "_"))

    def part(self, names: Iterable[str]) -> dict[str, Any]:
        """The named sections as plain data, for a stage's fingerprint and manifest."""
        return {name: to_plain(getattr(self, name)) for name in sorted(names)}


def to_plain(value: Any) -> Any:
    """A section as JSON-able data."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        return [to_plain(v) for v in value]
    return value


def digest(value: Any) -> str:
    """sha256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(to_plain(value), sort_keys=True, separators=(",", ":")).encode()).hexdigest()
