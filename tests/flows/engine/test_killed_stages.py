"""A stage whose workers, nodes and driver are killed with -9 again and again: its set comes out as if nothing had been.

The cluster is one of Ray's own for tests, several nodes on this machine; the driver is a process of its own (this file
as a script).
"""

import dataclasses
import http.server
import io
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mav.data.shards import read_tar
from mav.data.videos.video_io import encode_mp4
from mav.storage import TEMPORARY, Artifact, Folder
from mav.storage.counts import unbalanced

PICTURES, VIDEOS, BROKEN = 320, 24, 4
KILLS = {
    "image-download": ["worker"] * 16 + ["raylet"] * 2 + ["driver"] * 3,
    "video-shards": ["worker"] * 4 + ["driver"],
}
EXPECTED = {"image-download": (PICTURES, {"http_404": PICTURES // 10}), "video-shards": (VIDEOS, {"truncated": BROKEN})}
PATIENCE = 400.0  # seconds for everything, on a slow machine


class Web(http.server.BaseHTTPRequestHandler):
    """Pictures that take their time; every tenth is not there."""

    def do_GET(self) -> None:
        number = int(Path(self.path).stem)
        time.sleep(0.15)
        body = io.BytesIO()
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(body, "JPEG")
        self.send_response(404 if number % 10 == 0 else 200)
        self.send_header("Content-Length", str(len(body.getvalue())))
        self.end_headers()
        self.wfile.write(body.getvalue())

    def log_message(self, *arguments: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients die here."""


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    """Host and port of the pictures."""
    with Server(("127.0.0.1", 0), Web) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that runs no tasks."""
    from ray.cluster_utils import Cluster as RayCluster

    started = RayCluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": 80 << 20},
    )
    yield started
    started.shutdown()


def children(parent: int, title: str) -> list[int]:
    """Processes of this parent whose command line holds `title`."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            ours = entry.name.isdigit() and int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == parent
            if ours and title in (entry / "cmdline").read_bytes().decode(errors="replace"):
                found.append(int(entry.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return sorted(found)


class Driver:
    """The driver, started again whenever it was killed, and the node it works on."""

    def __init__(self, cluster: Any, stage: str, *arguments: str) -> None:
        self.cluster, self.stage, self.arguments = cluster, stage, arguments
        self.add_node()
        self.start()

    def add_node(self) -> None:
        self.node = self.cluster.add_node(num_cpus=2, object_store_memory=80 << 20)

    def start(self) -> None:
        environment = os.environ | {"RAY_ADDRESS": self.cluster.address}
        command = [sys.executable, __file__, self.stage, *self.arguments]
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def kill(self, what: str, rng: random.Random) -> bool:
        """Kills one such process if there is one at work now."""
        raylet = int(self.node.all_processes["raylet"][0].process.pid)
        workers = children(raylet, f"ray::{self.stage}")
        if not workers:
            return False
        if what == "worker":
            os.kill(rng.choice(workers), signal.SIGKILL)
        elif what == "driver":
            self.process.kill()
            self.process.communicate()
            self.start()
        else:
            os.kill(raylet, signal.SIGKILL)
            self.cluster.remove_node(self.node, allow_graceful=False)
            self.add_node()
        return True

    def finish(self, until: float) -> None:
        try:
            output, _ = self.process.communicate(timeout=max(until - time.monotonic(), 1))
        finally:
            self.process.kill()
            self.cluster.remove_node(self.node, allow_graceful=False)
        assert self.process.returncode == 0, output.decode()


def write_sources(folder: Path, base: str) -> None:
    rows = {
        "url": [f"http://{base}/{i}.jpg" for i in range(PICTURES)],
        "caption": [f"number {i}" for i in range(PICTURES)],
    }
    pq.write_table(pa.table(rows), folder / "rows.parquet")
    (folder / "files").mkdir()
    for number in range(VIDEOS):
        ground = np.random.default_rng(number).integers(0, 255, (240, 400, 3), dtype=np.uint8)
        data = encode_mp4(np.stack([np.roll(ground, 3 * step, axis=1)[:, :320] for step in range(36)]), 24, crf=30)
        (folder / "files" / f"{number}.mp4").write_bytes(data if number % (VIDEOS // BROKEN) else data[:2000])
    (folder / "list.csv").write_text(
        "\n".join(["videoid,contentUrl,page_dir", *(f"{number},," for number in range(VIDEOS))]) + "\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("stage", list(KILLS))
def test_kills_lose_nothing_and_double_nothing(stage: str, cluster: Any, base: str, tmp_path: Path) -> None:
    until, rng = time.monotonic() + PATIENCE, random.Random(20)
    kills, done = rng.sample(KILLS[stage], len(KILLS[stage])), 0
    write_sources(tmp_path, base)
    driver = Driver(cluster, stage, str(tmp_path), base, "killed")
    try:
        while done < len(kills):
            assert time.monotonic() < until, f"only {done} kills until now"
            assert driver.process.poll() is None, (
                f"the stage ended after {done} kills: {driver.process.communicate()[0].decode()}"
            )
            time.sleep(rng.uniform(0.1, 0.7))
            done += driver.kill(kills[done], rng)
    finally:
        driver.finish(until)
    Driver(cluster, stage, str(tmp_path), base, "calm").finish(until)

    killed, calm = (
        Artifact.open(Folder(str(next((tmp_path / run / "artifacts" / stage).iterdir())))) for run in ("killed", "calm")
    )
    assert killed.manifest.content == calm.manifest.content, "every file's sha256"
    assert list(killed.problems()) == []
    assert killed.manifest.counts == calm.manifest.counts
    assert not list(unbalanced(killed.manifest.counts))
    rows, failed = EXPECTED[stage]
    assert (killed.manifest.counts["rows_in"], killed.manifest.counts["failed"]) == (rows, failed)
    keys = [key for name in killed.files(suffix=".tar") for key, _ in read_tar(killed.folder, name)]
    assert len(set(keys)) == len(keys) == rows - sum(failed.values())
    # Of a killed worker's last file a part may lie there, which is no part of the artifact and `mav clean` removes.
    assert not [path for path in calm.folder.fs.find(calm.folder.root) if TEMPORARY in path]


def drive(stage: str, folder: str, base: str, runs: str) -> None:
    """The driver: builds the stage, or goes on with it."""
    from flows import images, videos
    from flows.engine.build import build
    from flows.engine.run import Run
    from flows.engine.stage import Graph
    from flows.engine.store import Store
    from flows.services.environment import configure_environment
    from flows.services.terminal import Terminal
    from mav.recipes import Cluster, ImageDownload, ImageMetadata, VideoShards
    from mav.recipes.reader import load_recipe

    configure_environment()
    sections: dict[str, Any] = {
        "image_metadata": ImageMetadata(sources=(f"{folder}/rows.parquet",), rows_per_shard=10),
        "image_download": ImageDownload(image_size=32, threads=8, allow_addresses=(base,), success_floor=0.8),
        "video_shards": VideoShards(
            sources=(f"{folder}/list.csv",), files=f"{folder}/files", clips_per_shard=2, short_side=192
        ),
        "cluster": Cluster(attempts=50),
    }
    recipe = dataclasses.replace(load_recipe("tiny"), world=None, **sections)
    plan = Graph(recipe)
    if stage == "image-download":
        images.image_download(plan, images.image_metadata(plan))
    else:
        videos.video_shards(plan)
    with ExitStack() as services:
        for node in plan.nodes.values():
            build(node, Run(recipe, Store(f"{folder}/{runs}"), Terminal(), services))


if __name__ == "__main__":
    drive(*sys.argv[1:])
