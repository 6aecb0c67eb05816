"""Paths with `*` in them: the part that names a folder or file which is there is a name, the rest is a pattern."""

import posixpath
import re

import fsspec
from fsspec.utils import glob_translate


def matching_paths(url: str) -> list[str]:
    """Returns the files that a path names, sorted; more or fewer than one only where it holds a `*`.

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
    found = _below(fs, base, names) or _below(fs, base, pattern) or sorted(map(str, fs.glob(path)))
    return [fs.unstrip_protocol(name) for name in found] if "://" in url else found


def _below(fs: fsspec.AbstractFileSystem, base: str, pattern: str) -> list[str]:
    """Returns the paths below a folder that match a pattern, which is relative to it."""
    depth = None if "**" in pattern else pattern.count("/") + 1
    matches = re.compile(glob_translate(pattern)).match
    start = len(base.rstrip("/")) + 1 if base else 0
    return sorted(path for path in fs.find(base, maxdepth=depth) if matches(path[start:]))
