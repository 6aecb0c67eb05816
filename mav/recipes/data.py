"""The sections of the data stages: the demo world, screening, images and videos."""

from typing import Literal

from mav.recipes.sections import section


@section
class World:
    """The demo world: coloured shapes that move over textured grounds. The run draws it and serves it on loopback."""

    images: int = 1500
    clips: int = 240
    size: int = 64  # side of images and clips, pixels
    clip_frames: int = 48
    clip_fps: int = 24
    colours: tuple[str, ...] = ("red", "green", "blue", "yellow", "cyan", "magenta")
    shapes: tuple[str, ...] = ("circle", "square", "triangle", "cross")
    evaluation_clips: int = 96  # held-out clips of the UCF-101-style and MSR-VTT-style sets
    port: int = 8787  # port of the loopback server; it is part of every URL of the world


@section
class Screening:
    """What may enter the image-text set: no NSFW image, no toxic words, no watermark (paper, section 4.1)."""

    punsafe_threshold: float = 0.5  # rows at or above it are dropped
    pwatermark_threshold: float = 0.5  # rows at or above it are dropped
    unknown_scores: Literal["score", "keep", "drop"] = "score"  # for rows whose score is null; "score" computes it
    word_lists: tuple[str, ...] = ("en",)  # shipped languages, or paths of one-phrase-a-line files
    word_exceptions: tuple[str, ...] = ()  # phrases that never count as toxic
    obfuscations: bool = False  # also match f*ck, sh1t and the like
    min_side: int = 0  # pixels, according to the table
    max_aspect: float = 0.0  # longer over shorter side; 0 = any
    min_caption: int = 1  # characters
    max_caption: int = 2000  # characters
    duplicates: Literal["part", "all"] = "part"  # compares URL and caption with rows of the same table, or of all


@section
class ImageMetadata:
    """`image-metadata` screens LAION-style parquet tables."""

    sources: tuple[str, ...] = ()  # parquet paths or globs; empty: the demo world's tables
    rows_per_shard: int = 10_000


@section
class ImageDownload:
    """`image-download` fetches the screened rows and writes WebDataset tars."""

    image_size: int = 256  # shorter side after resizing, pixels
    encode_quality: int = 95
    threads: int = 32  # concurrent fetches of one shard
    timeout_seconds: float = 10.0  # for connecting and for each read
    deadline_seconds: float = 30.0  # for one URL in total, with redirects
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
    """`video-shards` makes WebDataset tars of validated clips from WebVid CSV, HD-VILA jsonl or another list."""

    sources: tuple[str, ...] = ()  # paths or globs of CSV, jsonl or parquet lists; empty: the demo world's list
    files: str = ""  # folder that holds page_dir/videoid.mp4, or what a list's `path` names; empty: fetch the URLs
    clips_per_shard: int = 500
    reencode: bool = True  # False keeps the original bytes of every video that training can read
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
    shard_floor: float = 0.0  # as in `image_download`


@section
class ImageEmbed:
    """`image-screen` and `image-embed` run CLIP over the images."""

    batch_size: int = 256  # images of one forward pass
