"""What a GPU must do at least for a training step, known without one: bytes, FLOPs and calls of each kind of kernel.

    make bench-roofline
    python tests/benchmarks/bench_roofline.py --stages train-sr-high --teraflops 783 --gigabytes 4290

Each stage's network makes one micro-batch's passes on a simulated card. A kernel takes at least as long as its FLOPs at
the card's matrix rate or its bytes at its bandwidth, whichever is longer; what is read and written is counted once, and
twice where group norm reads an image for its statistics and again. The sum is the step's least time, and the share of
it that the FLOPs take is what no better kernel of the same kind can exceed. The rates are an H200's by default.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves

from mav.recipes.reader import load_recipe
from mav.training.fake_device import FakeCuda, fake_cuda
from mav.training.network_costs import STAGES, _network, _step

ROOT = Path(__file__).resolve().parents[2]
READ_TWICE = ("mav::rows_norm", "mav::rows_norm_gradient")


class Counted(FakeCuda):
    """A device that counts the calls, bytes and FLOPs of each kind of kernel, and its least seconds."""

    def __init__(self, flops_a_second: float, bytes_a_second: float) -> None:
        super().__init__()
        self._rates = flops_a_second, bytes_a_second
        self.calls, self.moved, self.work, self.seconds = Counter(), Counter(), Counter(), Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self.flops + self.recomputed_flops
        out = super().__torch_dispatch__(func, types, args, kwargs)
        read, made = (
            [x for x in tree_leaves(tree) if isinstance(x, FakeTensor) and x.device.type == "cuda"]
            for tree in ((args, kwargs or {}), out)
        )
        known = {x.untyped_storage()._cdata for x in read}
        written = [x for x in made if x.untyped_storage()._cdata not in known]
        if func._schema.is_mutable:
            written += read[:1]
        if not written:  # a view
            return out
        name = func._schema.name
        moved = sum(map(_bytes, read)) * (2 if name in READ_TWICE else 1) + sum(map(_bytes, written))
        work = self.flops + self.recomputed_flops - before
        for counter, value in ((self.calls, 1), (self.moved, moved), (self.work, work)):
            counter[name] += value
        self.seconds[name] += max(work / self._rates[0], moved / self._rates[1])
        return out


def _bytes(x: FakeTensor) -> int:
    """The bytes of a tensor in memory, where a number that is repeated lies once."""
    repeated = any(stride == 0 and size > 1 for stride, size in zip(x.stride(), x.shape, strict=True))
    return x.untyped_storage().nbytes() if repeated else x.numel() * x.element_size()


def roofline(recipe_name: str, stage: str, teraflops: float, gigabytes: float) -> dict[str, Any]:
    """Returns what a micro-batch of one stage takes at least, and each kind of kernel's part."""
    recipe = load_recipe(recipe_name)
    o = recipe.section_of(stage).optimisation
    micro = o.batch_size // (o.accumulation * recipe.cluster.workers)
    device = Counted(teraflops * 1e12, gigabytes * 1e9)
    with fake_cuda(device):
        network, inputs = _network(stage, recipe, micro)
        for counter in (device.calls, device.moved, device.work, device.seconds):
            counter.clear()  # what made the network
        _step(network.train(), inputs, o.precision, accumulates=False)
    seconds = device.seconds.total()
    kernels = [
        {"kernel": name, "calls": device.calls[name], "gigabytes": device.moved[name] / 1e9,
         "teraflops": device.work[name] / 1e12, "ms": 1e3 * least}
        for name, least in device.seconds.most_common()
    ]  # fmt: skip
    share = device.work.total() / (teraflops * 1e12) / seconds
    return {"stage": stage, "micro_batch": micro, "ms": 1e3 * seconds, "of_matrix_rate": share, "kernels": kernels}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--recipe", default="single-gpu")
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--teraflops", type=float, default=783.0, help="of the card, in bfloat16")
    parser.add_argument("--gigabytes", type=float, default=4290.0, help="a second that the card moves")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench" / "roofline.json")
    options = parser.parse_args()
    results = []
    for stage in options.stages.split(","):
        found = roofline(options.recipe, stage, options.teraflops, options.gigabytes)
        results.append(found)
        print(
            f"\n{stage}, micro-batch {found['micro_batch']}: at least {found['ms']:.1f} ms, "
            f"at most {found['of_matrix_rate']:.0%} of the matrix rate\n\n"
            "| kernel | calls | GB | TFLOP | ms |\n|---|---|---|---|---|"
        )
        for row in found["kernels"]:
            if row["ms"] > found["ms"] / 100:
                columns = f"{row['calls']:,} | {row['gigabytes']:.1f} | {row['teraflops']:.1f} | {row['ms']:.2f}"
                print(f"| {row['kernel']} | {columns} |", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
