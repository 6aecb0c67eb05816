"""Which videos a suite measures, and for which prompts they were made."""

import posixpath
import re

from mav.data.prompts import read_prompts
from mav.errors import UserError
from mav.evaluation.reading import ENDINGS, LIST, Entry, composed, evenly, find_videos, videos_below
from mav.storage import Folder


def listed(folder: Folder, prompts: Folder | None, samples: int) -> list[Entry]:
    """Returns an entry for every video below a folder, by name; with `samples`, for so many of them, evenly.

    Their prompts are those of `videos.json` where the folder has one; else, with a file of prompts, that of a file's
    number, or the one that it is named after; else what a file is named after, without VBench's number (`boat-0.mp4`).
    A name of one word is no prompt. Raises UserError when there is no video, or a list cannot be read.
    """
    names = videos_below(folder)
    if not names:
        raise UserError(f"{folder.url} holds no video: give a folder of mp4, WebM, GIF, npy or pt files, or of frames.")
    if folder.exists(LIST):
        rows = folder.read_json(LIST)
        found, _ = find_videos(folder, (), len(rows) if isinstance(rows, list) else 0)
    else:
        known = [text for text, _ in read_prompts(prompts)] if prompts else None
        found = [Entry(0, name, _prompt(name, known)) for name in names]
    if samples:
        found = evenly(found, samples)
    return [Entry(index, entry.file, entry.prompt) for index, entry in enumerate(found)]


def _prompt(name: str, known: list[str] | None) -> str:
    """Returns the prompt of a file; '' = nothing says it. `known` are those of a list."""
    stem, ending = posixpath.splitext(posixpath.basename(name))
    stem = stem if ending.lower() in ENDINGS else f"{stem}{ending}"  # a folder of frames may have a full stop in it
    unnumbered = re.sub(r"-\d+$", "", stem)
    if known is None:
        return unnumbered if len(unnumbered.split()) > 1 else ""
    if stem.isdecimal() and stem.isascii():
        return known[int(stem)] if int(stem) < len(known) else ""
    named = {composed(text.replace("/", "_")): text for text in known}
    return named.get(composed(stem)) or named.get(composed(unnumbered), "")
