"""Whether a recipe's tables and lists have forms that its stages read: told from how they begin, before anything runs.

Of a pattern that matches several files the first is looked at; the stages themselves read them all.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from mav.data.images.laion import SCORES, read_part
from mav.data.videos.clip_list import form_of
from mav.errors import UserError
from mav.recipes import Recipe
from mav.storage.patterns import matching_paths
from mav.storage.urls import storage_of

SCORERS = {"punsafe": "nsfw_head", "pwatermark": "watermark_head"}  # the keys of `clip` that name them


@dataclass(frozen=True)
class SourceProblem:
    """What is wrong with a file that a key of the recipe names: one sentence with the remedy."""

    key: str
    path: str
    sentence: str


def source_problems(recipe: Recipe, stages: Collection[str]) -> list[SourceProblem]:
    """Returns what is wrong with the sources of these stages. Files that are absent are left to others to tell."""
    found: list[SourceProblem] = []
    if "image-metadata" in stages:
        key, scored, tables = "image_metadata.sources", set[str](), 0
        for path in _first(recipe.image_metadata.sources):
            try:
                scored |= set(read_part(path)[0].columns)
                tables += 1
            except UserError as error:
                found.append(SourceProblem(key, path, str(error)))
        if tables and not found and "image-screen" in stages and (sentence := _unscored(recipe, scored)):
            found.append(SourceProblem("screening.unknown_scores", recipe.screening.unknown_scores, sentence))
    if "video-shards" in stages:
        for path in _first(recipe.video_shards.sources):
            try:
                form_of(path)
            except UserError as error:
                found.append(SourceProblem("video_shards.sources", path, str(error)))
    return found


def require_sources(recipe: Recipe, stages: Collection[str]) -> None:
    """Raises UserError that tells everything that is wrong with the sources of these stages."""
    if problems := source_problems(recipe, stages):
        raise UserError(" ".join(problem.sentence for problem in problems))


def _first(sources: Collection[str]) -> Iterator[str]:
    """Yields the first file of each source that is there."""
    for source in sources:
        for path in matching_paths(source)[:1]:
            fs, name = storage_of(path)
            if fs.exists(name):
                yield path


def _unscored(recipe: Recipe, scored: Collection[str]) -> str:
    """Returns a sentence when no row can have all scores, so that screening would drop every one; '' otherwise."""
    choice = recipe.screening.unknown_scores
    lacking = [score for score in SCORES if score not in scored]
    if choice == "score":
        lacking = [score for score in lacking if not getattr(recipe.clip, SCORERS[score])]
    if not lacking or choice == "keep":
        return ""
    scorers = " and ".join(f"`clip.{SCORERS[score]}`" for score in lacking)
    told = f"No table of `image_metadata.sources` has a column {' or '.join(lacking)}"
    if choice == "score":
        told += f", and {scorers} name{'s' if len(lacking) == 1 else ''} no scorer"
        return f"{told}, so every row would be dropped: name them, or say `screening.unknown_scores: keep`."
    return f"{told}, and `screening.unknown_scores` is drop, so every row would be dropped: say keep."
