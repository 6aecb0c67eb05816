"""`mav study serve` in a process of its own, and the small study that it serves."""

import csv
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from small_videos import frames

from flows.services.ports import reserve_port
from mav.data.videos.video_io import encode_mp4
from mav.storage import Folder
from mav.study.study import Pair, freeze
from mav.study.votes import Study

PROMPTS = (
    "A dog wearing a superhero outfit with a red cape flying through the sky",
    "A blue unicorn flying over a mystical land",
)


def make_study(folder, pairs, session):
    clips = [encode_mp4(frames(seed, 12, 64), 16) for seed in range(6)]
    rows = [Pair(PROMPTS[i % 2], "animals", ("ours", "theirs"), (clips[i % 3], clips[3 + i % 3])) for i in range(pairs)]
    freeze(rows, Folder(str(folder)), seed=1, session=session)
    return Study.load(Folder(str(folder)))


class Server:
    """`mav study serve` as people run it; can be killed and started again on the same port."""

    def __init__(self, study, votes, raters):
        self.port = reserve_port()
        self.votes = votes
        self.command = [
            sys.executable, "-m", "flows.cli", "study", "serve", str(study), "--votes", str(votes),
            "--raters", str(raters), "--port", str(self.port),
        ]  # fmt: skip
        self.starts = 0
        self.start()

    def start(self):
        self.starts += 1
        self.process = subprocess.Popen(
            self.command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2]
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.process.stderr.read().decode()
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.05)
        raise AssertionError("the server did not start")

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stderr.close()

    def tokens(self):
        with open(self.votes / "links.csv") as file:
            return [row["link"].rpartition("/")[2] for row in csv.DictReader(file)]


@contextmanager
def serving(study, votes, raters):
    server = Server(study, votes, raters)
    try:
        yield server
    finally:
        server.kill()
