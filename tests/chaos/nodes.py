"""`make chaos-nodes`: a whole recipe, from a bucket, on three Ray nodes, in trainings of three workers. One node is
killed and another one added while D^t is trained. The recipe is `tiny`, or `demo` with `--recipe demo`; its data are
whole, and its trainings shorter.

The training goes on with the two workers that are left and takes a third one in. An undisturbed run on the same nodes
is beside it. Every training must have seen the same samples, with the same noise, in the same order. A training by
other numbers of workers may differ by the order of its sums, as D^t does and any that begins while a node is short of
cores, and with it what descends from it; by how much the weights do is told. All else must have the undisturbed run's
bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seen_samples import FOLDER, SITE, SLOW
from stand import QUICK_DEATH, Flow, Nodes, Prefect
from storage import FaultyS3

from flows.engine.stage import Node
from flows.engine.store import Store
from flows.make_a_video import make_a_video
from flows.services.environment import configure_environment
from flows.services.ports import reserve_port
from mav.recipes.reader import load_recipe
from mav.training.export import load_network
from mav.training.stages import TRAININGS

STRUCK, WORKERS = "train-decoder-video", 3
ENOUGH = 24  # samples that a group of workers takes before it is struck
PATIENCE = 1800.0  # seconds for a run, and for what is waited for within one
IMAGES = ("clip", "train_prior", "train_decoder", "train_sr_low", "train_sr_high")
VIDEOS = ("train_decoder_video", "train_interpolation", "train_sr_low_video")
STEPS = {"tiny": (2, 60), "demo": (40, 200)}  # of every training but D^t, and of D^t, whose checkpoints are 5 apart
CLUSTER = (f"cluster.workers={WORKERS}", "cluster.min_workers=1", "cluster.dashboard=false")


def settings(name: str) -> tuple[str, ...]:
    """What the recipe is changed in: few steps of batches that three workers share, and a port for its world."""
    recipe, changed, (short, long) = load_recipe(name), [], STEPS[name]
    for section in (*IMAGES, *VIDEOS):
        batch = -(-getattr(recipe, section).optimisation.batch_size // WORKERS) * WORKERS
        steps, apart = (long, 5) if section == VIDEOS[0] else (short, short)
        values = {"batch_size": batch, "samples": steps * batch, "checkpoint_every": apart * batch, "threads": 1}
        values |= {"warmup_samples": 0, "cooldown_samples": 0, "log_every": apart * batch}
        changed += [f"{section}.optimisation.{key}={value}" for key, value in values.items()]
    return (*changed, *CLUSTER, f"world.port={reserve_port()}")


@dataclass(frozen=True)
class Life:
    """The steps that one group of workers made of a training."""

    begun: float  # when its first step was, by the clock
    workers: int
    first: int  # sample
    seen: list[str]  # digests of its samples, in the order of their numbers

    @property
    def end(self) -> int:
        return self.first + len(self.seen)


def lives(folder: Path, stage: str, batch: int) -> list[Life]:
    """The lives of a training, as its workers wrote them down. Raises ValueError when one took a sample twice or left
    one out, but for the step in which it was killed."""
    lines: dict[str, list[dict[str, Any]]] = {}
    for file in folder.glob(f"{stage}.*.jsonl"):
        for text in file.read_text().splitlines():
            line = json.loads(text)
            lines.setdefault(line["life"], []).append(line)
    found = []
    for life in lines.values():
        samples: dict[int, str] = {}
        for line in life:
            for number, digest in enumerate(line["seen"] if line["counts"] else (), line["first"]):
                if number in samples:
                    raise ValueError(f"{stage}: sample {number} was taken twice by {line['world']} workers")
                samples[number] = digest
        first = end = min(samples)
        while end in samples:
            end += 1
        end -= (end - first) % batch
        if max(samples) >= end + batch:
            raise ValueError(f"{stage}: sample {end} or one soon after was left out by {life[0]['world']} workers")
        begun = min(line["time"] for line in life)
        found.append(Life(begun, life[0]["world"], first, [samples[number] for number in range(first, end)]))
    return sorted(found, key=lambda life: life.begun)


def in_order(stage: str, lived: list[Life]) -> tuple[list[str], list[int]]:
    """The samples that made the network, and how many of them each life but the first made again."""
    seen: list[str] = []
    again = []
    for life in lived:
        if life.first > len(seen):
            raise ValueError(f"{stage}: samples {len(seen)} to {life.first - 1} were left out between two lives")
        again.append(len(seen) - life.first)
        seen[life.first :] = life.seen
    return seen, again[1:]


class Trial:
    """The nodes, the bucket, and what was found."""

    def __init__(self, name: str, base: Path, seed: int) -> None:
        self.name, self.base, self.rng, self.began = name, base, random.Random(seed), time.monotonic()
        self.settings = settings(name)
        self.recipe = load_recipe(name, self.settings)
        self.graph = make_a_video(self.recipe)
        self.problems: list[str] = []

    def say(self, sentence: str) -> None:
        print(f"{time.monotonic() - self.began:6.0f} s  {sentence}", flush=True)

    def expect(self, true: bool, sentence: str) -> None:
        if not true:
            self.problems.append(sentence)
            self.say(sentence)

    def wait(self, flow: Flow, what: str, true: Callable[[], bool]) -> None:
        ends = time.monotonic() + PATIENCE
        while not true():
            if not flow.alive or time.monotonic() > ends:
                raise SystemExit(f"{what} was waited for in vain: see {flow.log}")
            time.sleep(0.5)
        self.say(what)

    def seen(self, name: str, stage: str) -> list[Life]:
        batch = self.recipe.section_of(stage).optimisation.batch_size
        return lives(self.base / name, stage, batch)

    def run(self, name: str, disturb: Callable[[Flow, Nodes], None] | None = None) -> Store:
        """A run on nodes of its own, which write down there what they see. Returns its artifacts."""
        place = self.base / name
        place.mkdir()
        (place / "sitecustomize.py").write_text(SITE)
        paths = [str(place), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        before = os.environ.copy()
        os.environ |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), FOLDER: str(place)}
        if disturb:
            os.environ[SLOW] = f"{STRUCK}:{place / 'struck'}"
        nodes = Nodes(WORKERS)
        prefect = Prefect(self.base / "prefect")
        try:
            prefect.wait()
            store = Store(f"s3://mav/{name}")
            flow = Flow(self.base / "prefect", store.root.url, self.base / f"{name}.log", self.settings)
            flow.environment = {"RAY_ADDRESS": nodes.address, "PREFECT_API_URL": prefect.api}
            flow.start("run", self.name)
            if disturb:
                disturb(flow, nodes)
                (place / "struck").touch()
            code = flow.wait(PATIENCE)
            self.expect(code == 0, f"the {name} run ended with {code}: see {flow.log}")
            self.say(f"the {name} run is done")
        finally:
            nodes.stop()
            prefect.kill()
            os.environ.clear()
            os.environ.update(before)
        return store

    def disturb(self, flow: Flow, nodes: Nodes) -> None:
        """Kills a node and adds one, each once the training has come a few checkpoints further."""

        def trained(number: int, workers: int) -> bool:
            lived = self.seen("disturbed", STRUCK)
            return len(lived) >= number and lived[-1].workers == workers and len(lived[-1].seen) >= ENOUGH

        self.wait(flow, f"{STRUCK} is trained by three workers", lambda: trained(1, WORKERS))
        nodes.lose_node(self.rng.randrange(WORKERS))
        self.say("a node was killed")
        self.wait(flow, "it goes on with two", lambda: trained(2, WORKERS - 1))
        nodes.add_node()
        self.say("a node was added")
        self.wait(flow, "it goes on with three", lambda: trained(3, WORKERS))

    def compare(self, calm: Store, disturbed: Store) -> dict[str, Any]:
        """What the two runs made and saw."""
        same, weights = list[str](), dict[str, float]()
        trainings = {node.name: self._seen_alike(node) for node in self.graph.nodes.values() if node.name in TRAININGS}
        resized = {
            name for name, found in trainings.items() if found.get("workers") != found.get("workers_undisturbed")
        }
        for node in self.graph.nodes.values():
            one, two = calm.find(node), disturbed.find(node)
            if one is None or two is None:
                self.expect(False, f"{node.name} is not there")
            elif not resized & {node.name, *(above.name for above in node.upstream())}:
                equal = (one.manifest.content, one.manifest.counts) == (two.manifest.content, two.manifest.counts)
                self.expect(equal, f"{node.name} has other bytes than in the calm run")
                same += [node.name] * equal
            elif node.name in TRAININGS:
                there = load_network(two.folder).network.state_dict()
                here = load_network(one.folder).network.state_dict()
                weights[node.name] = max(float((here[key] - there[key]).abs().max()) for key in here)
        return {"equal_artifacts": same, "weights_differ_by": weights, "trainings": trainings}

    def _seen_alike(self, node: Node) -> dict[str, Any]:
        undisturbed, lived = (self.seen(name, node.name) for name in ("calm", "disturbed"))
        try:
            before, _ = in_order(node.name, undisturbed)
            after, again = in_order(node.name, lived)
        except ValueError as error:
            self.expect(False, str(error))
            return {}
        self.expect(before == after, f"{node.name} saw other samples than in the calm run, or in another order")
        total = self.recipe.section_of(node.name).optimisation.samples
        self.expect(len(after) == total, f"{node.name} saw {len(after)} of {total} samples")
        workers = {"workers": lived, "workers_undisturbed": undisturbed}  # and the sample from which there were so many
        numbers = {name: [(life.workers, life.first) for life in each] for name, each in workers.items()}
        return {"samples": len(after), **numbers, "made_again": again}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="tiny", choices=("tiny", "demo"))
    parser.add_argument("--seed", type=int, default=29)
    parser.add_argument("--json", type=Path, default=Path("build/chaos-nodes.json"))
    chosen = parser.parse_args()
    configure_environment()
    os.environ.update(QUICK_DEATH)
    os.environ.pop("RAY_ADDRESS", None)
    base = Path(tempfile.mkdtemp(prefix="mav-nodes-"))
    trial = Trial(chosen.recipe, base, chosen.seed)
    with FaultyS3(chosen.seed) as server:
        os.environ.update(server.environment)
        disturbed = trial.run("disturbed", trial.disturb)
        found = trial.compare(trial.run("calm"), disturbed)
        found["s3_calls"] = server.calls
    found |= {
        "recipe": chosen.recipe,
        "seconds": round(time.monotonic() - trial.began),
        "seed": chosen.seed,
        "problems": trial.problems,
    }
    chosen.json.parent.mkdir(parents=True, exist_ok=True)
    chosen.json.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    if trial.problems:
        print(f"What happened is in {base}.")
        return 1
    shutil.rmtree(base, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
