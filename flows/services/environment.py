"""The environment variables that Prefect and Ray read when they are imported."""

import importlib.metadata
import os
import tempfile
from contextlib import suppress

from mav.errors import UserError

LOOPBACK = ("127.0.0.1", "localhost", "::1")  # where a run's own servers listen: no proxy knows them
ROOM = 64 << 20  # bytes that Ray and Prefect need at least in the temporary folder
DEFAULTS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_FLUSH_DRIVER_LOGS": "1",  # Ray's lines and ours appear in the order in which they happened, in a file too
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
    # In memory, its default, a server that is started again forgets who holds a GPU slot, and never frees it.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "RAY_TRAIN_V2_ENABLED": "1",
    # On loopback, for one user, a token guards nothing. A cluster's own RAY_AUTH_MODE stays as its operator set it.
    "RAY_AUTH_MODE": "disabled",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
# Ray opens a socket to a public address to learn this machine's own. A cluster on this machine alone needs none.
ON_THIS_MACHINE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def configure_environment() -> None:
    """Sets what Prefect and Ray read when they are imported. It is called first; a user's own settings win.

    Raises UserError when a package is installed that would break Prefect's server.
    """
    alone = {} if os.environ.get("RAY_ADDRESS") else ON_THIS_MACHINE
    for name, value in (DEFAULTS | alone).items():
        os.environ.setdefault(name, value)
    # Libraries read either spelling, some only one: both name all hosts of both.
    spared = [host.strip() for name in ("no_proxy", "NO_PROXY") for host in os.environ.get(name, "").split(",")]
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(dict.fromkeys([*filter(None, spared), *LOOPBACK]))
    with suppress(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("dataclasses")
        raise UserError(
            "The Python 3.6 backport `dataclasses` is installed and breaks Prefect's server: "
            "install from requirements.lock, or `pip uninstall dataclasses`."
        )


def require_places() -> None:
    """Makes sure that Ray and Prefect can write where they will, before they try for a minute.

    Without a home folder that can be written, Prefect's files go to the temporary folder. Raises UserError.
    """
    place = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or _temporary_folder()
    option = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    if not can_be_folder(place, written=True):
        raise UserError(f"The temporary folder {place} cannot be written: name another one in {option}.")
    found = os.statvfs(_existing(place))
    if (free := found.f_bavail * found.f_frsize) < ROOM:
        room = f"{free / 1e6:.1f} MB are left there and {ROOM / 1e6:.0f} MB are needed"
        raise UserError(f"The temporary folder {place} is full ({room}): free some, or name another one in {option}.")
    home = os.environ.get("PREFECT_HOME")
    if not can_be_folder(home or os.path.expanduser("~/.prefect"), written=True):
        if home:
            raise UserError(f"Prefect's folder {home} cannot be written: name another one in PREFECT_HOME.")
        os.environ["PREFECT_HOME"] = os.path.join(place, f"prefect-{os.getuid()}")


def _temporary_folder() -> str:
    try:
        return tempfile.gettempdir()
    except FileNotFoundError as error:
        raise UserError(f"{error.strerror}: free some space, or name another folder in TMPDIR.") from None


def _existing(place: str) -> str:
    """Returns the folder itself, or the nearest one above it that is there."""
    place = os.path.abspath(place)
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    return place


def can_be_folder(place: str, written: bool = False) -> bool:
    """Says whether a path is a folder, or could become one; `written`: whether files can be made in it."""
    above = _existing(place)
    return os.path.isdir(above) and (not written or os.access(above, os.W_OK | os.X_OK))
