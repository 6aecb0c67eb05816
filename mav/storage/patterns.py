"""Paths with `*` in them: the part that names a folder or file which is there is a name, the rest is a pattern."""

import posixpath
import re
from collections.abc import Iterable

import fsspec
from fsspec.utils import glob_translate

from mav.storage.urls import storage_of

HIDDEN = (".", "__MACOSX", "@eaDir")


def visible(names: Iterable[str]) -> list[str]:
    """Leaves out what systems put beside a user's files: hidden files and folders, and the shadows of a Mac's zip."""
    return [name for name in names if not any(part.startswith(HIDDEN) for part in name.split("/"))]


def matching_paths(url: str, hidden: list[str] | None = None) -> list[str]:
    """Returns the files that a path names, sorted; more or fewer than one only where it holds a `*`.

    As in shells, `*` matches no hidden file and nothing in a hidden folder, unless the pattern itself has the dot; the
    names that it leaves out are added to `hidden`. Brackets and question marks in names are letters like others; where
    nothing has such a name, they are patterns too.
    """
    if "*" not in url:
        return [url]
    fs, path = storage_of(url)
    if fs.exists(path):
        return [url]
    base, rest = posixpath.dirname(path), [posixpath.basename(path)]
    while "*" in base and not fs.isdir(base):
        base, rest = posixpath.dirname(base), [posixpath.basename(base), *rest]
    pattern = "/".join(rest)
    names = re.sub(r"([\[?])", r"[\1]", pattern)
    hidden = [] if hidden is None else hidden
    found = _below(fs, base, names, hidden) or _below(fs, base, pattern, hidden) or _globbed(fs, path, hidden)
    return [fs.unstrip_protocol(name) for name in found] if "://" in url else found


def _below(fs: fsspec.AbstractFileSystem, base: str, pattern: str, hidden: list[str]) -> list[str]:
    """Returns the paths below a folder that match a pattern, which is relative to it."""
    depth = None if "**" in pattern else pattern.count("/") + 1
    matches = re.compile(glob_translate(pattern)).match
    start = len(base.rstrip("/")) + 1 if base else 0
    found = [path[start:] for path in fs.find(base, maxdepth=depth) if matches(path[start:])]
    return sorted(f"{base.rstrip('/')}/{name}" if base else name for name in _shown(found, pattern, hidden))


def _globbed(fs: fsspec.AbstractFileSystem, pattern: str, hidden: list[str]) -> list[str]:
    """Returns the matches of a pattern whose folder is one too."""
    name = posixpath.basename(pattern)
    return sorted(path for path in map(str, fs.glob(pattern)) if _shown([posixpath.basename(path)], name, hidden))


def _shown(names: list[str], pattern: str, hidden: list[str]) -> list[str]:
    if any(part.startswith(".") for part in pattern.split("/")):
        return names
    shown = visible(names)
    hidden += sorted({*names} - {*shown} - {*hidden})
    return shown
