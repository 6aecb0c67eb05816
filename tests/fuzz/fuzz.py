"""`make fuzz`: more than a thousand hostile inputs for the parsers of outside bytes, each in a process of its own.

The process reports what became of each input. When it dies, the input is counted as a crash, and when it says nothing
for DEADLINE seconds as a hang; another goes on with the next one. An escape is an input that ran a program, connected
to another machine, wrote outside of its folder, or read a file outside of it.
"""

import argparse
import faulthandler
import itertools
import json
import os
import queue
import resource
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)] + [str(ROOT / "tests" / name) for name in ("data", "data/fetching", "evaluation", "study")]

from corpus import SHARES, corpus  # noqa: E402

DEADLINE = 60.0  # seconds for one input; the slowest takes a few on a quiet machine
SEED, COUNT = 20, sum(SHARES.values())
SHOWN = 4  # reasons of a parser in the table


def child(parser: str, seed: int, count: int, first: int) -> None:
    """Reads the inputs from `first` on and prints a line for each."""
    import warnings

    from escapes import ESCAPES, EscapeError, guarded
    from targets import TARGETS

    warnings.simplefilter("ignore")
    faulthandler.enable()
    folder = Path(tempfile.mkdtemp(prefix=f"mav-fuzz-{parser}-"))
    os.chdir(folder)
    run = TARGETS[parser](folder)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no report
    print(json.dumps({"ready": True}), file=out, flush=True)
    guarded(folder)
    for number, data in enumerate(corpus(parser, count, seed)):
        if number < first:
            continue
        ESCAPES.clear()
        found, began = {"number": number}, time.monotonic()
        try:
            found["reason"] = run(data)
        except EscapeError as error:
            found["escape"] = str(error)
        except BaseException as error:
            found["crash"] = "".join(traceback.format_exception(error))[-3000:]
        if ESCAPES:  # a parser may have caught it
            found["escape"] = ESCAPES[0]
        found["seconds"] = round(time.monotonic() - began, 2)
        found["megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(json.dumps(found), file=out, flush=True)


class Account:
    """What became of the inputs of one parser."""

    def __init__(self, parser: str) -> None:
        self.parser = parser
        self.reasons: Counter[str] = Counter()
        self.crashes: dict[int, str] = {}
        self.hangs: list[int] = []
        self.escapes: dict[int, str] = {}
        self.megabytes, self.slowest = 0, 0.0

    def add(self, told: dict[str, object]) -> None:
        number = int(str(told["number"]))
        if "crash" in told:
            self.crashes[number] = str(told["crash"])
        elif "escape" not in told:
            self.reasons[str(told["reason"])] += 1
        if "escape" in told:
            self.escapes[number] = str(told["escape"])
        self.megabytes = max(self.megabytes, int(str(told["megabytes"])))
        self.slowest = max(self.slowest, float(str(told["seconds"])))

    def line(self) -> str:
        most = self.reasons.most_common()
        told = ", ".join(f"{reason} {number}" for reason, number in most[:SHOWN])
        others = sum(number for _, number in most[SHOWN:])
        told += f", {len(most) - SHOWN} others {others}" if others else ""
        inputs = self.reasons.total() + len(self.crashes) + len(self.hangs) + len(self.escapes)
        figures = f"{inputs} | {len(self.crashes)} | {len(self.hangs)} | {len(self.escapes)}"
        return f"| {self.parser} | {figures} | {self.slowest:.1f} | {told} |"


def _reading(stream: IO[str]) -> queue.SimpleQueue[str]:
    """Returns the lines of a stream as they come, and an empty one at its end."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=lambda: [lines.put(line) for line in itertools.chain(stream, [""])], daemon=True).start()
    return lines


def _all(lines: queue.SimpleQueue[str]) -> Iterator[str]:
    while line := lines.get(timeout=DEADLINE):
        yield line


def fuzz(parser: str, seed: int, count: int) -> Account:
    """Runs a parser's inputs in processes of its own, one after the other."""
    account, first = Account(parser), 0
    while first < count:
        command = [sys.executable, __file__, "--child", parser, "--seed", str(seed), "--count", str(count)]
        process = subprocess.Popen(
            [*command, "--first", str(first)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
        lines, said = _reading(process.stdout), _reading(process.stderr)
        ready = False
        while first < count:
            try:
                line = lines.get(timeout=DEADLINE if ready else 300)
            except queue.Empty:
                account.hangs.append(first)
                first += 1
                break
            if not line:
                process.wait()
                account.crashes[first] = f"ended with {process.returncode}: {''.join(_all(said))[-3000:]}"
                first += 1
                break
            told = json.loads(line)
            if "ready" in told:
                ready = True
                continue
            account.add(told)
            first = told["number"] + 1
        process.kill()
        process.wait()
        process.stdout.close()
    return account


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--only", choices=sorted(SHARES), help="one parser instead of all")
    parser.add_argument("--scale", type=float, default=1.0, help="times as many inputs")
    parser.add_argument("--json", type=Path, default=ROOT / "build/fuzz.json")
    parser.add_argument("--child", choices=sorted(SHARES), help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        child(chosen.child, chosen.seed, chosen.count, chosen.first)
        return 0
    began = time.monotonic()
    print("| parser | inputs | crashes | hangs | escapes | slowest, s | what became of them |")
    print("|---|---|---|---|---|---|---|")
    accounts = []
    for name in [chosen.only] if chosen.only else SHARES:
        accounts.append(fuzz(name, chosen.seed, max(round(SHARES[name] * chosen.scale), 1)))
        print(accounts[-1].line(), flush=True)
    crashes, hangs, escapes = (
        sum(len(getattr(each, kind)) for each in accounts) for kind in ("crashes", "hangs", "escapes")
    )
    inputs = sum(each.reasons.total() for each in accounts) + crashes + hangs + escapes
    print(
        f"| all | {inputs} | {crashes} | {hangs} | {escapes} | | {time.monotonic() - began:.0f} s, seed {chosen.seed} |"
    )
    found = {each.parser: {**vars(each), "reasons": dict(sorted(each.reasons.items()))} for each in accounts}
    chosen.json.parent.mkdir(parents=True, exist_ok=True)
    chosen.json.write_text(json.dumps({"seed": chosen.seed, "parsers": found}, indent=1) + "\n")
    return 1 if crashes or hangs or escapes else 0


if __name__ == "__main__":
    sys.exit(main())
