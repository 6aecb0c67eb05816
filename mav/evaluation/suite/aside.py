"""What lies in a folder of videos and is none of those that are measured."""

import posixpath
from collections.abc import Sequence

from mav.data.list_files import storable
from mav.evaluation.reading import LIST, Entry
from mav.storage import Folder

NAMED = 5  # files of a remark that are told by name


def left_aside(folder: Folder, entries: Sequence[Entry]) -> list[str]:
    """Returns the files below a folder that belong to none of these videos."""
    used = {entry.file for entry in entries}
    return [n for n in folder.names() if n != LIST and n not in used and posixpath.dirname(n) not in used - {""}]


def remark(aside: Sequence[str]) -> list[str]:
    """Returns what a result says of such files, the first five by name; nothing where there are none."""
    more = f" and {len(aside) - NAMED:,} more" if aside[NAMED:] else ""
    return [f"left aside: {', '.join(map(storable, aside[:NAMED]))}{more}"] if aside else []
