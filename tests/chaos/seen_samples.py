"""Writes down which samples a training sees: the digest of each, where a step of the loop takes it.

`install` changes `mav.training.loop` when it is imported; the sitecustomize of `SITE` installs it in every process that
has its folder first on PYTHONPATH.
"""

import hashlib
import importlib.abc
import importlib.util
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER, SLOW = "MAV_SEEN", "MAV_SLOW"  # variables: where it is written; STAGE:FILE, slow until there is the file
SITE = "import seen_samples\nseen_samples.install()\n"
LOOP = "mav.training.loop"
PAUSE = 3.0  # seconds a slow step takes longer: Ray Train looks for new nodes once a minute


def digests(batch: dict[str, Any], count: int) -> list[str]:
    """A digest of each sample of a micro-batch, with its noise and its draws."""
    rows = [hashlib.sha256() for _ in range(count)]
    for name, values in sorted(batch.items()):
        for row, value in zip(rows, values, strict=True):
            row.update(name.encode() + value.contiguous().numpy().tobytes())
    return [row.hexdigest()[:16] for row in rows]


def changed(module: Any) -> None:
    """Lets the loop write a line for each part of a step that it takes."""
    train, prefetch, stage = module.train, module.prefetch, [""]

    def told_train(task: Any, *arguments: Any, **options: Any) -> Any:
        stage[0] = task.stage
        return train(task, *arguments, **options)

    def told_prefetch(source: Any, samples: int, o: Any, rank: int, world_size: int, *more: Any) -> Iterator[Any]:
        life = os.environ.get("MASTER_PORT", "") if world_size > 1 else str(os.getpid())
        slow, _, until = os.environ.get(SLOW, "").partition(":")
        with Path(os.environ[FOLDER], f"{stage[0]}.{life}.{rank}.jsonl").open("a") as file:
            for first, counts, batch in prefetch(source, samples, o, rank, world_size, *more):
                seen = digests(batch, len(next(iter(batch.values()))))
                line = {"stage": stage[0], "life": life, "rank": rank, "world": world_size, "time": time.time()}
                print(json.dumps(line | {"first": first, "counts": counts, "seen": seen}), file=file, flush=True)
                if stage[0] == slow and not Path(until).exists():
                    time.sleep(PAUSE)
                yield first, counts, batch

    module.train, module.prefetch = told_train, told_prefetch


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname != LOOP:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec
        loader: Any = spec.loader
        execute = loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            changed(module)

        loader.exec_module = exec_module
        return spec


def install() -> None:
    """Changes the loop once it is imported; importing it now would bring torch into every process."""
    if FOLDER in os.environ:
        sys.meta_path.insert(0, _Finder())
