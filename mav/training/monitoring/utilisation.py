"""How much of a device's arithmetic a training uses: the model's FLOPs over the rate of a large matrix product.

Model FLOPs are those of the forward pass, counted as PyTorch executes it, times three, as is usual: the backward pass
makes two products for each of the forward pass. What checkpointed levels compute again is no work of the
model. PyTorch counts no attention on a CPU, nor what the kernels of `mav.models.kernels` do themselves, such as
attention over frames: both are a small part.
"""

import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

T = TypeVar("T")
SIDES = {"cuda": 8192, "cpu": 512}  # of the square matrices, large enough for the device's full rate
TRIES = 10


def matrix_rate(device: torch.device, precision: str) -> float | None:
    """Returns the FLOPs a second of a matrix product in this precision, the best of some; None without the device."""
    on_card = device.type == "cuda"
    if on_card and not torch.cuda.is_available():
        return None
    dtype, side = torch.bfloat16 if precision == "bfloat16" else torch.float32, SIDES[device.type]
    a = torch.ones(side, side, dtype=dtype, device=device)
    seconds = []
    for _ in range(TRIES):
        began = time.perf_counter()
        a @ a
        if on_card:
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    del a
    if on_card:
        torch.cuda.reset_peak_memory_stats(device)
    return 2 * side**3 / min(seconds)


def counted(forward: Callable[[], T]) -> tuple[T, float]:
    """Calls a forward pass; returns its result and the model's FLOPs of a pass forward and backward."""
    with FlopCounterMode(display=False) as counter:
        result = forward()
    return result, 3.0 * counter.get_total_flops()
