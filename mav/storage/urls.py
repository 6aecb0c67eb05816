"""Which storage a path or URL is on."""

from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem


def storage_of(url: str, **options: Any) -> tuple[fsspec.AbstractFileSystem, str]:
    """Returns the file system of a path or URL and the path on it; the options are the file system's.

    A path without `://` is a name on this machine's disks, whatever it holds: fsspec alone would read `a::b` as the
    place `a` inside of `b`. Raises ValueError or ImportError for a storage that is unknown or not installed.
    """
    if "://" not in url or url.startswith("file://"):
        fs = LocalFileSystem()
        return fs, str(fs._strip_protocol(url))
    fs, path = fsspec.core.url_to_fs(url, **options)
    return fs, path
