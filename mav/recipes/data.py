"""The sections of the data stages: the demo world, screening, images and videos."""

from typing import Annotated, Literal

from annotated_types import Ge, Le, MinLen

from mav.recipes.sections import (
    DEADLINE,
    OPERATIONAL,
    Number,
    Operational,
    Positive,
    PositiveNumber,
    Share,
    Small,
    SmallOrNone,
    Whole,
    section,
)

Text = Annotated[str, MinLen(1)]
Texts = tuple[Text, ...]
Colour = Literal["red", "green", "blue", "yellow", "cyan", "magenta"]
Shape = Literal["circle", "square", "triangle", "cross"]

HashBits = Annotated[int, Ge(0), Le(6)]  # with more, bands of the hashes are too short to tell rows apart

IF_DIGITS = Operational(counts_if=lambda world: world.kind == "digits")
IF_SHAPES = Operational(counts_if=lambda world: world.kind == "shapes")


@section
class World:
    """The demo world: coloured shapes that move over textured grounds, or handwritten digits over plain ones.

    The run draws it and serves it on loopback.
    """

    kind: Literal["shapes", "digits"] = "shapes"
    files: Annotated[str, IF_DIGITS] = ""  # folder of MNIST's idx files, gzipped or not, for `kind: digits`
    images: Positive = 1500
    clips: Positive = 240
    size: Small = 64  # side of images and clips, pixels
    clip_frames: Small = 48
    clip_fps: Small = 24
    colours: Annotated[tuple[Colour, ...], MinLen(1), IF_SHAPES] = ("red", "green", "blue", "yellow", "cyan", "magenta")
    shapes: Annotated[tuple[Shape, ...], MinLen(1), IF_SHAPES] = ("circle", "square", "triangle", "cross")
    objects: Annotated[Positive, Le(2)] = 1  # most objects in a frame; with 2 there are one or two, of two colours
    planted_clips: Whole = 0  # clips of each kind that `video-select` should drop; 0: one for every 60 clips
    evaluation_clips: Positive = 96  # held-out clips of the UCF-101-style and MSR-VTT-style sets
    port: Annotated[Positive, Le(65_535)] = 8787  # port of the loopback server; it is part of every URL of the world


@section
class Screening:
    """What may enter the image-text set: no NSFW image, no toxic words, no watermark (paper, section 4.1)."""

    punsafe_threshold: Share = 0.5  # rows at or above it are dropped
    pwatermark_threshold: Share = 0.5  # rows at or above it are dropped
    unknown_scores: Literal["score", "keep", "drop"] = "score"  # for rows whose score is null; "score" computes it
    word_lists: Texts = ("en",)  # shipped languages, or paths of one-phrase-a-line files
    word_exceptions: Texts = ()  # phrases that never count as toxic
    obfuscations: bool = False  # also match f*ck, sh1t and the like
    min_side: Whole = 0  # pixels, according to the table
    max_aspect: Number = 0.0  # longer over shorter side; 0 = any
    min_caption: Whole = 1  # characters
    max_caption: Whole = 2000  # characters
    duplicates: Literal["part", "all"] = "part"  # compares URL and caption with rows of the same table, or of all


@section
class ImageMetadata:
    """`image-metadata` screens LAION-style parquet tables."""

    sources: Texts = ()  # parquet paths or globs; empty: the demo world's tables
    rows_per_shard: Annotated[Positive, Le(100_000)] = 10_000  # of which a row's key holds five digits


@section
class ImageDownload:
    """`image-download` fetches the screened rows and writes WebDataset tars."""

    image_size: Small = 256  # shorter side after resizing, pixels
    encode_quality: Annotated[Positive, Le(100)] = 95
    threads: Annotated[Small, OPERATIONAL] = 32  # concurrent fetches of one shard
    timeout_seconds: Annotated[PositiveNumber, DEADLINE] = 10.0  # for connecting and for each read
    deadline_seconds: Annotated[PositiveNumber, DEADLINE] = 30.0  # for one URL in total, with redirects
    max_bytes: Positive = 50_000_000
    max_pixels: Positive = 100_000_000
    per_host: Annotated[Small, OPERATIONAL] = 8  # concurrent fetches from one host
    contact: Annotated[str, OPERATIONAL] = ""  # e-mail or address of the operator, sent in the user agent
    # http://HOST:PORT that all is fetched through; the environment's is never used
    proxy: Annotated[str, OPERATIONAL] = ""
    allow_addresses: Texts = ()  # private or loopback host:port that may be fetched (demo, tests)
    refuse_directives: Texts = ("noai", "noimageai", "noindex", "noimageindex", "noml", "tdm-reservation")
    success_floor: Annotated[Share, OPERATIONAL] = 0.5  # share of rows that must succeed, or the stage fails
    shard_floor: Annotated[Share, OPERATIONAL] = 0.0  # share of each shard's rows that must succeed, or the stage fails


@section
class VideoShards:
    """`video-shards` makes WebDataset tars of validated clips from WebVid CSV, HD-VILA jsonl or another list."""

    sources: Texts = ()  # paths or globs of CSV, jsonl or parquet lists; empty: the demo world's list
    files: str = ""  # folder of page_dir/videoid.mp4, or of what a list's `path` names; empty: fetch the URLs
    clips_per_shard: Annotated[Positive, Le(100_000)] = 500
    reencode: bool = True  # False keeps the original bytes of every video that training can read
    short_side: Small = 256
    keyframe_interval: Small = 8  # frames; short closed GOPs for random access
    crf: Annotated[SmallOrNone, Le(51)] = 18
    max_seconds: PositiveNumber = 60.0
    # path of TransNetV2's state dict, by which cuts are found; their scores are then probabilities
    shot_weights: str = ""
    timeout_seconds: Annotated[PositiveNumber, DEADLINE] = 30.0
    deadline_seconds: Annotated[PositiveNumber, DEADLINE] = 300.0
    max_bytes: Positive = 500_000_000
    allow_addresses: Texts = ()
    contact: Annotated[str, OPERATIONAL] = ""
    proxy: Annotated[str, OPERATIONAL] = ""  # as in `image_download`
    success_floor: Annotated[Share, OPERATIONAL] = 0.5
    shard_floor: Annotated[Share, OPERATIONAL] = 0.0  # as in `image_download`


@section
class VideoSelect:
    """`video-select` chooses the clips to train on by the scores of `video-shards`; a score at its threshold is kept.

    Speeds are in shorter sides of the picture a second, of the camera or of what moves before it, whichever is faster.
    """

    # strength of the strongest cut, fade or dissolve, above which a clip is dropped; by `video_shards.shot_weights` its
    # probability, 0.5 as published
    cut: Number = 2.7
    still: Number = 0.05  # speed below which a clip is dropped
    too_fast: Number = 2.0  # speed above which a clip is dropped
    shaky: Number = 0.6  # change of the camera's speed from one frame to the next, above which a clip is dropped
    repeated: Share = 0.5  # share of frames that are the ones before them, above which a clip is dropped
    overlay: Number = 0.9  # length, in shorter sides, of edges that stand still over moving pictures; text has many
    border: Share = 0.03  # share of the picture in black or white borders above which a clip is dropped
    blank: Share = 0.1  # share of frames without a picture above which a clip is dropped
    shot_seconds: Number = 0.0  # least length of the shots into which clips with cuts are split; 0: they are dropped
    crop_borders: Share = 0.0  # share of the picture up to which borders are cropped away; 0: those clips are dropped
    hash_bits: HashBits = 0  # of 64; hashes of near duplicates' middle frames differ in fewer; 1: are equal; 0: off


@section
class ImageEmbed:
    """`image-screen` and `image-embed` run CLIP over the images."""

    batch_size: Small = 256  # images of one forward pass


@section
class ImageSelect:
    """`image-select` keeps one of each group of near duplicates, by hashes, by embeddings or by both, and no picture of
    a low aesthetic score.
    """

    hash_bits: HashBits = 0  # of 64; hashes of near duplicates differ in fewer; 1: are equal; 0: off
    near_duplicate: Share = 0.0  # cosine of two CLIP embeddings from which on they are of near duplicates; 0: off
    # path of a linear head on the CLIP's image embeddings, such as LAION's aesthetic predictors
    aesthetic_head: str = ""
    aesthetic: Number = 0.0  # score by `aesthetic_head` below which a picture is dropped; LAION's are 1 to 10; 0: off
