"""The faults of `protocol` by the thousand, with a table: the first half of `make chaos`. Exits 1 when a figure that
must be 0 is not.

    python tests/chaos/in_process.py [--schedules N] [--trainings N] [--seed N]      writes build/chaos-in-process.json
"""

import argparse
import json
import logging
import sys
import time
import warnings
from pathlib import Path

sys.path += [str(Path(__file__).parents[1] / "training")]

from protocol import Account, in_process, stage_under, table, training_under
from small_training import small_recipe


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schedules", type=int, default=3000)
    parser.add_argument("--trainings", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("build/chaos-in-process.json"))
    chosen = parser.parse_args()
    logging.disable(logging.CRITICAL)  # torch tells every fault of a read
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
    accounts, recipe, began = {"stages": Account(), "trainings": Account()}, small_recipe(), time.monotonic()
    with in_process():
        for seed in range(chosen.seed, chosen.seed + chosen.schedules):
            stage_under(seed, recipe, accounts["stages"])
        print(f"stages, seeds from {chosen.seed}\n{table(accounts['stages'])}\n", flush=True)
        for seed in range(chosen.seed, chosen.seed + chosen.trainings):
            training_under(seed, accounts["trainings"])
        print(f"trainings, seeds from {chosen.seed}\n{table(accounts['trainings'])}\n")
    print(f"{time.monotonic() - began:.0f} s")
    result = {name: vars(account) for name, account in accounts.items()}
    chosen.json.parent.mkdir(parents=True, exist_ok=True)
    chosen.json.write_text(json.dumps({"seed": chosen.seed, **result}, indent=1, sort_keys=True) + "\n")
    return int(any(account.problems for account in accounts.values()))


if __name__ == "__main__":
    sys.exit(main())
