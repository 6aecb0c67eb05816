"""What the faults strike: a Ray cluster of several nodes, a Prefect server, a run as its own process. All on loopback,
all ended by pid."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

from flows.services.ports import reserve_port

STORE_BYTES = 100 << 20
QUICK_DEATH = {"RAY_gcs_rpc_server_reconnect_timeout_s": "20"}  # who has lost its head ends sooner than after a minute


def processes() -> dict[int, tuple[int, str]]:
    """Parent and command line of every process there is."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            found[int(entry.name)] = (
                parent,
                (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip(),
            )
    return found


class Nodes:
    """A head that runs no tasks, and nodes of one CPU each; any of them may be killed and comes back."""

    def __init__(self, nodes: int) -> None:
        self.wanted = nodes
        self._start()

    def _start(self) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES}
        self.cluster: Any = Cluster(initialize_head=True, head_node_args=head)
        self.nodes = [self._add() for _ in range(self.wanted)]

    def _add(self) -> Any:
        return self.cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def raylet(self, node: Any) -> int:
        return int(node.all_processes["raylet"][0].process.pid)

    def workers(self) -> list[int]:
        """Processes that execute a task right now."""
        raylets = {self.raylet(node) for node in self.nodes}
        busy = {
            pid: title
            for pid, (parent, title) in processes().items()
            if parent in raylets and title.startswith("ray::")
        }
        return sorted(
            pid for pid, title in busy.items() if "IDLE" not in title and "Agent" not in title
        )  # a raylet dies with its agents

    def heal(self) -> None:
        """Brings back nodes that were taken for dead because this machine was too busy to hear of them."""
        for node in list(self.nodes):
            if node.all_processes["raylet"][0].process.poll() is not None:
                self.nodes.remove(node)
                self.cluster.remove_node(node, allow_graceful=False)
                self.nodes.append(self._add())

    def kill_node(self, index: int) -> None:
        self.lose_node(index)
        self.add_node()

    def lose_node(self, index: int) -> None:
        """A node that does not come back."""
        node = self.nodes.pop(index)
        os.kill(self.raylet(node), signal.SIGKILL)
        self.cluster.remove_node(node, allow_graceful=False)

    def add_node(self) -> None:
        self.nodes.append(self._add())

    def drain_node(self, index: int, seconds: float) -> int:
        """Lets Ray tell all that a node will be gone; returns the process whose end that is."""
        from ray._raylet import GcsClient
        from ray.core.generated import autoscaler_pb2

        node = self.nodes[index]
        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        until = int((time.time() + seconds) * 1000)
        GcsClient(address=self.address).drain_node(node.node_id, reason, "taken back", until)
        return self.raylet(node)

    def kill_head(self) -> None:
        """The head with its GCS, then a new cluster: what the old one knew is lost."""
        head = self.cluster.head_node
        for kind in ("gcs_server", "raylet"):
            os.kill(int(head.all_processes[kind][0].process.pid), signal.SIGKILL)
        time.sleep(1.0)
        self.stop()
        self._start()

    def stop(self) -> None:
        self.cluster.shutdown()


class Prefect:
    """A Prefect server with a database of its own, which outlives it."""

    def __init__(self, home: Path) -> None:
        self.home, self.port = home, reserve_port()
        self.api = f"http://127.0.0.1:{self.port}/api"
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        environment = os.environ | {"PREFECT_HOME": str(self.home), "PREFECT_API_URL": self.api}
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def wait(self) -> None:
        for _ in range(600):
            with suppress(OSError):
                urllib.request.urlopen(f"{self.api}/health", timeout=5).close()
                return
            time.sleep(0.2)
        raise TimeoutError("Prefect's server does not come up")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        self.process = self._start()


class Flow:
    """`mav run` (or another of its commands) as a process; started again it goes on."""

    def __init__(self, home: Path, runs: str, log: Path, settings: tuple[str, ...]) -> None:
        self.home, self.runs, self.log, self.settings = home, runs, log, settings
        self.environment: dict[str, str] = {}
        self.process: subprocess.Popen[bytes] | None = None

    def command(self, *arguments: str) -> tuple[list[str], dict[str, str]]:
        overrides = [word for setting in self.settings for word in ("--set", setting)]
        environment = (
            os.environ | {"PREFECT_HOME": str(self.home), "NO_COLOR": "1", "COLUMNS": "200"} | self.environment
        )
        return [sys.executable, "-m", "flows.cli", *arguments, "--runs", self.runs, *overrides], environment

    def start(self, *arguments: str) -> None:
        command, environment = self.command(*arguments)
        with self.log.open("ab") as log:
            log.write(f"\n$ {' '.join(command)}\n".encode())
            log.flush()
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Another command on the same runs folder, to its end."""
        command, environment = self.command(*arguments)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
        with self.log.open("a") as log:
            log.write(f"\n$ {' '.join(command)}\n{done.stdout}{done.stderr}exit {done.returncode}\n")
        return done

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def wait(self, seconds: float) -> int:
        """The exit code; -9 after as many seconds as that, as an operator would."""
        assert self.process is not None
        try:
            return self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return -signal.SIGKILL
