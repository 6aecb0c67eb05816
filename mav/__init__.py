"""Make-A-Video as a system: what its stages do, free of the machinery that runs them."""

import importlib.metadata


def release() -> str:
    """Returns the version of the package that is installed, such as 1.2.0."""
    return importlib.metadata.version("make-a-video-system")
