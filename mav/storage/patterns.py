"""Paths with `*` in them: the part that names a folder or file which is there is a name, the rest is a pattern."""

import posixpath
import re
from collections.abc import Iterable

import fsspec
from fsspec.utils import glob_translate

HIDDEN = (".", "__MACOSX", "@eaDir")


def visible(names: Iterable[str]) -> list[str]:
    """Leaves out what systems put beside a user's files: hidden files and folders, and the shadows of a Mac's zip."""
    return [name for name in names if not any(part.startswith(HIDDEN) for part in name.split("/"))]


def matching_paths(url: str) -> list[str]:
    """Returns the files that a path names, sorted; more or fewer than one only where it holds a `*`.

    As in shells, `*` matches no hidden file and nothing in a hidden folder, unless the pattern itself has the dot.
    Brackets and question marks in names are letters like others; where nothing has such a name, they are patterns too.
    """
    if "*" not in url:
        return [url]
    fs, path = fsspec.core.url_to_fs(url)
    if fs.exists(path):
        return [url]
    base, rest = posixpath.dirname(path), [posixpath.basename(path)]
    while "*" in base and not fs.isdir(base):
        base, rest = posixpath.dirname(base), [posixpath.basename(base), *rest]
    pattern = "/".join(rest)
    names = re.sub(r"([\[?])", r"[\1]", pattern)
    found = _below(fs, base, names) or _below(fs, base, pattern) or _globbed(fs, path)
    return [fs.unstrip_protocol(name) for name in found] if "://" in url else found


def _below(fs: fsspec.AbstractFileSystem, base: str, pattern: str) -> list[str]:
    """Returns the paths below a folder that match a pattern, which is relative to it."""
    depth = None if "**" in pattern else pattern.count("/") + 1
    matches = re.compile(glob_translate(pattern)).match
    start = len(base.rstrip("/")) + 1 if base else 0
    found = [path[start:] for path in fs.find(base, maxdepth=depth) if matches(path[start:])]
    return sorted(f"{base.rstrip('/')}/{name}" if base else name for name in _shown(found, pattern))


def _globbed(fs: fsspec.AbstractFileSystem, pattern: str) -> list[str]:
    """Returns the matches of a pattern whose folder is one too."""
    return sorted(
        path for path in map(str, fs.glob(pattern)) if _shown([posixpath.basename(path)], posixpath.basename(pattern))
    )


def _shown(names: Iterable[str], pattern: str) -> list[str]:
    return list(names) if any(part.startswith(".") for part in pattern.split("/")) else visible(names)
