"""What is wrong with a recipe's tables and lists is told before anything runs, from how each begins."""

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mav.data.sources import require_sources, source_problems
from mav.errors import UserError
from mav.recipes import ImageMetadata, Recipe, Screening, VideoShards

STAGES = ("image-metadata", "image-screen", "video-shards")


def table(path: Path, **columns: Any) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def told(recipe: Recipe, **sections: Any) -> list[str]:
    return [problem.sentence for problem in source_problems(dataclasses.replace(recipe, **sections), STAGES)]


def test_tables_without_addresses_or_captions_and_files_that_are_no_tables(
    small_recipe: Recipe, tmp_path: Path
) -> None:
    named = table(tmp_path / "named.parquet", image_url=["u"], text=["t"])
    mute = table(tmp_path / "mute.parquet", url=["u"])
    (tmp_path / "pairs.csv").write_text("url,caption\nu,t\n")
    sources = (named, mute, str(tmp_path / "pairs.csv"), str(tmp_path), str(tmp_path / "absent.parquet"))
    sentences = told(small_recipe, image_metadata=ImageMetadata(sources=sources))
    for sentence, words in zip(
        sentences,
        ("image_url, text, and expected", "columns url, and expected", "to_parquet", "it is a folder, whose tables"),
        strict=True,  # what is absent is told by `absent_files`
    ):
        assert words in sentence


def test_rows_that_can_have_no_score_are_told_with_the_way_out(small_recipe: Recipe, tmp_path: Path) -> None:
    bare, half = tmp_path / "bare.parquet", tmp_path / "half.parquet"
    own = {"image_metadata": ImageMetadata(sources=(table(bare, url=["u"], caption=["t"]),))}
    (sentence,) = told(small_recipe, **own)
    assert "has a column punsafe or pwatermark, and `clip.nsfw_head` and `clip.watermark_head` name no" in sentence
    assert "say `screening.unknown_scores: keep`" in sentence
    assert told(small_recipe, **own, screening=Screening(unknown_scores="keep")) == []
    clip = dataclasses.replace(small_recipe.clip, nsfw_head="head.pth", watermark_head="classifier.pt")
    assert told(small_recipe, **own, clip=clip) == []
    assert (
        "is drop, so every row" in told(small_recipe, **own, clip=clip, screening=Screening(unknown_scores="drop"))[0]
    )

    scored = ImageMetadata(sources=(str(bare), table(half, url=["u"], caption=["t"], punsafe=[0.1])))
    (sentence,) = told(small_recipe, image_metadata=scored)
    assert "has a column pwatermark, and `clip.watermark_head` names no scorer" in sentence, "some rows have the other"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("films", None, "is a folder and no list: write a CSV"),
        ("film.MP4", "\0\0", "is a video and no list: write a CSV"),
        ("names.csv", "filename\na.mp4\n", "it has the columns filename"),
        ("names.jsonl", '{"filename": "a.mp4"}\n', "it has the columns filename"),
        ("empty.jsonl", "{}\n", "it has the columns none"),
    ],
)
def test_lists_that_are_none(small_recipe: Recipe, tmp_path: Path, name: str, text: str | None, words: str) -> None:
    path = tmp_path / name
    path.mkdir() if text is None else path.write_text(text)
    recipe = dataclasses.replace(small_recipe, video_shards=VideoShards(sources=(str(path),)))
    with pytest.raises(UserError, match=words):
        require_sources(recipe, STAGES)
    require_sources(recipe, ("image-metadata",))
