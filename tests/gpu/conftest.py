"""The tests of a real card are skipped without one."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def card() -> Iterator[None]:
    """A card whose peak of memory starts at what is in use, and whose waiting is not watched."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    yield
    torch.cuda.set_sync_debug_mode("default")
