"""`make chaos`: the tiny recipe on a local Ray cluster of three nodes while everything under it is killed, starved, cut
off and falsified.

A storm of faults at seeded random moments falls upon runs of the graph; whoever dies is started again, by the same
command. Then come the faults that need a scene of their own. In the end every artifact must have the sha256 of an
undisturbed run's, every row must be there once, and `mav clean` must leave nothing half done. Prints a table, writes
build/chaos.json, exits 1 when a figure is not 0.

    python tests/chaos/chaos.py [--seed N] [--subset] [--only PART ...]

The subset has one node, the image data alone and a dozen faults.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from checks import Account, compare, left_behind
from faults import FATAL, Striker
from scenes import SCENES
from stand import QUICK_DEATH, Flow, Nodes, Prefect

from flows.engine.store import Store
from flows.make_a_video import make_a_video
from flows.services.environment import configure_environment
from flows.services.ports import reserve_port
from mav.recipes.reader import load_recipe

DATA, TRAININGS = "image-download", "train-decoder-video"  # how far the two storms go
STORMS = {
    DATA: {
        "kill -9 of a worker": 30,
        "kill -9 of a raylet": 3,
        "kill -9 of the head with its GCS": 2,
        "kill -9 of the flow": 5,
        "kill -9 of worker and flow": 3,
        "Ctrl-C of the flow": 4,
        "worker out of memory": 8,
        "SIGSTOP of a worker": 24,
        "drain of a node": 4,
        "another run on the same stage": 4,
        "Prefect's server away": 2,
    },
    TRAININGS: {
        "kill -9 of a worker": 6,
        "kill -9 of a raylet": 1,
        "kill -9 of the flow": 1,
        "kill -9 of worker and flow": 1,
        "Ctrl-C of the flow": 1,
        "worker out of memory": 2,
        "SIGSTOP of a worker": 4,
        "drain of a node": 3,
        "another run on the same stage": 1,
        "Prefect's server away": 1,
    },
}
SUBSET = {
    DATA: {
        "kill -9 of a worker": 3,
        "kill -9 of the flow": 1,
        "Ctrl-C of the flow": 1,
        "SIGSTOP of a worker": 1,
        "worker out of memory": 1,
        "another run on the same stage": 1,
    }
}
PATIENCE = 300.0  # seconds a run may take without a fault
TRIES = 40  # of one run


class Chaos:
    """The stand, the seeded order of faults, and the book of what came of them."""

    def __init__(self, base: Path, seed: int, subset: bool) -> None:
        self.base, self.rng, self.subset = base, random.Random(seed), subset
        self.until = DATA if subset else TRAININGS
        self.settings = (
            f"world.port={reserve_port()}",
            f"world.images={120 if subset else 240}",
            f"image_metadata.rows_per_shard={6 if subset else 10}",
            "video_shards.clips_per_shard=2",
            "cluster.dashboard=false",
        )
        self.plan = make_a_video(load_recipe("tiny", self.settings))
        self.prefect = Prefect(base / "prefect")
        self.nodes = Nodes(1 if subset else 2)
        self.prefect.wait()
        self.flows: list[Flow] = []
        self.calm = Store(str(base / "calm"))
        self.landed: Counter[str] = Counter()
        self.resumed: Counter[str] = Counter()
        self.account = Account()
        self.began = time.monotonic()

    def say(self, sentence: str) -> None:
        print(f"{time.monotonic() - self.began:6.0f} s  {sentence}", flush=True)

    def flow(self, runs: str) -> Flow:
        flow = Flow(self.base / "prefect", runs, self.base / "flows.log", self.settings)
        flow.environment = {"RAY_ADDRESS": self.nodes.address, "PREFECT_API_URL": self.prefect.api}
        self.flows.append(flow)
        return flow

    def stop(self) -> None:
        for flow in self.flows:
            if flow.alive:
                flow.kill()
        self.nodes.stop()
        self.prefect.kill()

    def settle(self, store: Store, struck: Counter[str], flow: Flow, until: str = "") -> None:
        """A run came to its end: books what it differs in from the calm one."""
        account = compare(self.plan.until(until or self.until), self.calm, store)
        cleaned = flow("clean", "tiny", "--keep-last", "0", "--delete")
        account.problems += (
            [cleaned.stderr] if cleaned.returncode else [f"{name} is left behind" for name in left_behind(store)]
        )
        self.landed += struck
        if not account.differing:
            self.resumed += struck
        self.account.lost += account.lost
        self.account.doubled += account.doubled
        self.account.differing += account.differing
        self.account.problems += account.problems
        worse = account.differing + account.problems
        self.say(
            f"done after {struck.total()} faults: {account.lost} lost, {account.doubled} doubled, "
            f"{worse or 'all as in the calm run'}"
        )

    def quiet(self) -> None:
        """The undisturbed run."""
        flow = self.flow(self.calm.root.url)
        flow.start("run", "tiny", "--until", self.until)
        if code := flow.wait(PATIENCE * 2):
            raise SystemExit(f"the calm run ended with {code}: see {flow.log}")
        self.say("calm run done")

    def storms(self) -> None:
        """Run after run, until every fault of the schedules has struck."""
        number = 0
        for until, kinds in (SUBSET if self.subset else STORMS).items():
            self.until = until
            schedule = [kind for kind, count in kinds.items() for _ in range(count)]
            self.rng.shuffle(schedule)
            while schedule:
                number += 1
                store = Store(str(self.base / f"storm{number}"))
                flow, struck = self.flow(store.root.url), Counter[str]()
                self._through(flow, Striker(self, flow), schedule, struck)
                self.settle(store, struck, flow)
                shutil.rmtree(store.root.root)

    def _through(self, flow: Flow, striker: Striker, schedule: list[str], struck: Counter[str]) -> None:
        """One run to its end, whatever strikes it."""
        for _ in range(TRIES):
            self.prefect.wait()
            flow.environment["RAY_ADDRESS"] = self.nodes.address
            flow.start("run", "tiny", "--until", self.until)
            while flow.alive and schedule:
                time.sleep(self.rng.uniform(0.2, 2.0))
                self.nodes.heal()
                if flow.alive and striker.strike(schedule[0]):
                    self.say(schedule[0])
                    struck[schedule[0]] += 1
                    if schedule.pop(0) in FATAL:
                        break
            ends = time.monotonic() + PATIENCE
            while flow.alive and time.monotonic() < ends:
                self.nodes.heal()
                time.sleep(0.5)
            code = flow.wait(1)
            striker.join()
            if code == 0:
                return
            self.say(f"flow ended with {code}; once more")
        raise SystemExit(f"{self.until} is not done after {TRIES} tries: see {flow.log}")

    def table(self) -> str:
        width = max(map(len, self.landed))
        lines = [f"{'fault':{width}}  faults  resumed"]
        lines += [f"{kind:{width}}  {count:6}  {self.resumed[kind]:7}" for kind, count in sorted(self.landed.items())]
        lines += [f"{'all':{width}}  {self.landed.total():6}  {self.resumed.total():7}"]
        return "\n".join(
            [
                *lines,
                "",
                f"lost {self.account.lost}, doubled {self.account.doubled}, "
                f"differing artifacts {len(self.account.differing)}",
            ]
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=8)
    parser.add_argument("--subset", action="store_true")
    parts = ["storms", *(scene.__name__ for scene in SCENES)]
    parser.add_argument("--only", nargs="+", choices=parts, help="the others are left out")
    parser.add_argument("--json", type=Path, default=Path("build/chaos.json"))
    chosen = parser.parse_args()
    configure_environment()
    os.environ.update(QUICK_DEATH)
    os.environ.pop("RAY_ADDRESS", None)
    base = Path(tempfile.mkdtemp(prefix="mav-chaos-"))
    chaos = Chaos(base, chosen.seed, chosen.subset)
    try:
        chaos.quiet()
        wanted = chosen.only or ([SCENES[0].__name__, "storms"] if chosen.subset else parts)
        for scene in SCENES:
            if scene.__name__ in wanted:
                scene(chaos)
        if "storms" in wanted:
            chaos.storms()
    finally:
        chaos.stop()
    print(f"\n{chaos.table()}\n{time.monotonic() - chaos.began:.0f} s, seed {chosen.seed}")
    for problem in chaos.account.differing + chaos.account.problems:
        print(problem)
    result = {
        "faults": chaos.landed.total(), "resumed": chaos.resumed.total(), "lost": chaos.account.lost,
        "doubled": chaos.account.doubled,
        "differing_artifacts": len(chaos.account.differing), "problems": chaos.account.problems, "seed": chosen.seed,
        "kinds": dict(sorted(chaos.landed.items())), "seconds": round(time.monotonic() - chaos.began),
    }  # fmt: skip
    chosen.json.parent.mkdir(parents=True, exist_ok=True)
    chosen.json.write_text(json.dumps(result, indent=1) + "\n")
    whole = result["faults"] == result["resumed"] and not (
        chaos.account.lost or chaos.account.doubled or chaos.account.differing or chaos.account.problems
    )
    if whole:
        shutil.rmtree(base, ignore_errors=True)
    else:
        print(f"What happened is in {base}.")
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
