"""The environment variables that Prefect and Ray read when they are imported."""

import importlib.metadata
import os
from contextlib import suppress

from mav.errors import UserError

DEFAULTS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_FLUSH_DRIVER_LOGS": "1",  # Ray's lines and ours appear in the order in which they happened, in a file too
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "RAY_TRAIN_V2_ENABLED": "1",
    # On loopback, for one user, a token guards nothing. A cluster's own RAY_AUTH_MODE stays as its operator set it.
    "RAY_AUTH_MODE": "disabled",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "NO_ALBUMENTATIONS_UPDATE": "1",  # img2dataset's resizing library would ask the package index for updates
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
    with suppress(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("dataclasses")
        raise UserError(
            "The Python 3.6 backport `dataclasses` is installed and breaks Prefect's server: "
            "install from requirements.lock, or `pip uninstall dataclasses`."
        )
