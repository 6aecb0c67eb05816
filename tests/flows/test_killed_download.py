"""One download stage whose workers, raylets and driver are killed with -9 twenty times and more: the set comes out as if nothing had been.

The cluster is one of Ray's own for tests, several nodes on this machine; the driver is a process of its own (this file as a script).
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
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mav.artifact import Artifact, Folder, unbalanced
from mav.data.shards import read_tar

ROWS, ROWS_PER_SHARD = 320, 10
KILLS = ["worker"] * 16 + ["raylet"] * 2 + ["driver"] * 3
PATIENCE = 240.0  # seconds for everything, on a slow machine


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


class Stage:
    """The driver, started again whenever it was killed, and the nodes it works on."""

    def __init__(self, cluster: Any, arguments: list[str]) -> None:
        self.cluster, self.arguments = cluster, arguments
        self.node = self.add_node()
        self.driver = self.start()

    def add_node(self) -> Any:
        return self.cluster.add_node(num_cpus=2, object_store_memory=80 << 20)

    def start(self) -> subprocess.Popen[bytes]:
        environment = os.environ | {"RAY_ADDRESS": self.cluster.address}
        return subprocess.Popen(
            [sys.executable, __file__, *self.arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def raylet(self) -> int:
        return int(self.node.all_processes["raylet"][0].process.pid)

    def kill(self, what: str, rng: random.Random) -> bool:
        """Kills one such process if there is one at work now."""
        workers = children(self.raylet(), "ray::image-download")
        if not workers or self.driver.poll() is not None:
            return False
        if what == "worker":
            os.kill(rng.choice(workers), signal.SIGKILL)
        elif what == "driver":
            self.driver.kill()
            self.driver.wait()
            self.driver = self.start()
        else:
            os.kill(self.raylet(), signal.SIGKILL)
            self.cluster.remove_node(self.node, allow_graceful=False)
            self.node = self.add_node()
        return True

    def finish(self, until: float) -> None:
        output, _ = self.driver.communicate(timeout=max(until - time.monotonic(), 1))
        assert self.driver.returncode == 0, output.decode()


@pytest.mark.slow
def test_twenty_kills_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster as RayCluster

    until, rng = time.monotonic() + PATIENCE, random.Random(20)
    kills = rng.sample(KILLS, len(KILLS))
    done: list[str] = []
    cluster = RayCluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": 80 << 20})
    stages = []
    try:
        with Server(("127.0.0.1", 0), Web) as server:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
            base = f"127.0.0.1:{server.server_address[1]}"
            rows = {"url": [f"http://{base}/{i}.jpg" for i in range(ROWS)], "caption": [f"number {i}" for i in range(ROWS)]}
            pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
            stages.append(Stage(cluster, [str(tmp_path / "rows.parquet"), base, str(tmp_path / "killed")]))
            while len(done) < len(kills):
                assert time.monotonic() < until, f"only {done} until now"
                assert stages[0].driver.poll() is None, (
                    f"the stage ended after {len(done)} kills: {stages[0].driver.communicate()[0].decode()}"
                )
                time.sleep(rng.uniform(0.1, 0.9))
                if stages[0].kill(kills[len(done)], rng):
                    done.append(kills[len(done)])
            stages[0].finish(until)
            stages.append(Stage(cluster, [str(tmp_path / "rows.parquet"), base, str(tmp_path / "calm")]))
            stages[1].finish(until)
            server.shutdown()
    finally:
        for stage in stages:
            stage.driver.kill()
        cluster.shutdown()

    killed, calm = (
        Artifact.open(Folder(str(next((tmp_path / name / "artifacts/image-download").iterdir())))) for name in ("killed", "calm")
    )
    assert len(done) >= 20
    assert killed.manifest.content == calm.manifest.content, "every file's sha256"
    assert list(killed.problems()) == []
    assert not list(unbalanced(killed.manifest.counts))
    assert killed.manifest.counts == calm.manifest.counts
    assert (killed.manifest.counts["rows_in"], killed.manifest.counts["failed"]) == (ROWS, {"http_404": ROWS // 10})
    captions = [files["txt"].decode() for name in killed.files(suffix=".tar") for _, files in read_tar(killed.folder, name)]
    assert sorted(captions) == sorted(f"number {i}" for i in range(ROWS) if i % 10)


def drive(table: str, base: str, runs: str) -> None:
    """The driver: builds the stage, or goes on with it."""
    from flows import images
    from flows.build import build
    from flows.console import Screen
    from flows.runtime import configure_environment
    from flows.stage import Plan, Run, Store
    from mav.recipe import Cluster, ImageDownload, ImageMetadata
    from mav.recipe_file import load_recipe

    configure_environment()
    recipe = dataclasses.replace(
        load_recipe("tiny"),
        world=None,
        image_metadata=ImageMetadata(sources=(table,), rows_per_shard=ROWS_PER_SHARD),
        image_download=ImageDownload(image_size=32, threads=8, allow_addresses=(base,), success_floor=0.8),
        cluster=Cluster(attempts=50),
    )
    plan = Plan(recipe)
    images.image_download(plan, images.image_metadata(plan))
    with ExitStack() as services:
        run = Run(recipe, Store(runs), Screen(), services)
        for node in plan.nodes.values():
            build(node, run)


if __name__ == "__main__":
    drive(*sys.argv[1:])
