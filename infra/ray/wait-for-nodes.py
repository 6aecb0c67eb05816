"""Waits until the Ray cluster at RAY_ADDRESS has this many nodes, ten minutes at most: `wait-for-nodes.py 8`.

A run refuses what the nodes that are there cannot hold, so all of them have to be there before it starts.
"""

import sys
import time

import ray

ray.init(log_to_driver=False, logging_level="ERROR")
wanted, until = int(sys.argv[1]), time.monotonic() + 600
while (there := sum(node["Alive"] for node in ray.nodes())) < wanted:
    if time.monotonic() > until:
        sys.exit(f"Only {there} of {wanted} Ray nodes started within ten minutes: see the lines of `ray start` above.")
    time.sleep(1)
