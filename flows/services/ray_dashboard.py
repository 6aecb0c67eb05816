"""Starts Ray's dashboard without its requests to other machines; Ray runs this file in place of its own script.

Even with usage statistics off, the dashboard asks the metadata services of three clouds which cloud it runs in.
"""

import os
import runpy
import sys

from ray._common.usage import usage_lib
from ray.dashboard import dashboard

if __name__ == "__main__":
    usage_lib.get_cloud_from_metadata_requests = lambda: "unknown"
    sys.argv[0] = dashboard.__file__
    sys.path[0] = os.path.dirname(dashboard.__file__)  # not this folder, whose modules would hide others
    runpy.run_path(dashboard.__file__, run_name="__main__")
