"""Which videos a suite measures, and for which prompts they were made."""

import posixpath
import re
from collections.abc import Mapping

from mav.data.prompts import read_prompts
from mav.evaluation.reading import ENDINGS, LIST, Entry, composed, evenly, read_list, require_videos
from mav.storage import Folder


def listed(folder: Folder, prompts: Folder | None, samples: int) -> list[Entry]:
    """Returns an entry for every video below a folder, by name; with `samples`, for so many of them, evenly.

    Their prompts are those of `videos.json` where the folder has one; else, with a file of prompts, that of a file's
    number, or the one that it is named after; else what a file is named after, without VBench's number (`boat-0.mp4`).
    A name of one word is no prompt. Raises UserError when there is no video, or a list cannot be read.
    """
    names = require_videos(folder)
    if folder.exists(LIST):
        found = [Entry(0, *row) for row in read_list(folder)]
    else:
        known = [text for text, _ in read_prompts(prompts)] if prompts else None
        named = {composed(text.replace("/", "_")): text for text in known or ()}
        found = [Entry(0, name, _prompt(name, known, named)) for name in names]
    if samples:
        found = evenly(found, samples)
    return [Entry(index, entry.file, entry.prompt) for index, entry in enumerate(found)]


def _prompt(name: str, known: list[str] | None, named: Mapping[str, str]) -> str:
    """Returns the prompt of a file; '' = nothing says it. known: those of a list; named: the same by names of files."""
    stem, ending = posixpath.splitext(posixpath.basename(name))
    stem = stem if ending.lower() in ENDINGS else f"{stem}{ending}"  # a folder of frames may have a full stop in it
    unnumbered = re.sub(r"-\d+$", "", stem)
    if known is None:
        return unnumbered if len(unnumbered.split()) > 1 else ""
    if stem.isdecimal() and stem.isascii():
        return known[int(stem)] if int(stem) < len(known) else ""
    return named.get(composed(stem)) or named.get(composed(unnumbered), "")
