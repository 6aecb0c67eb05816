"""Shared by all tests: quiet settings for Prefect and Ray, a recipe of the smallest sizes, and the real files when
there are any."""

import dataclasses
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from flows.services.environment import configure_environment
from mav.recipes import Cluster, Recipe

# The variable is read when torch is imported: the number of threads may change the last bits of a sum.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The same when a Triton kernel is defined: where there is no card, kernels run in Triton's interpreter.
if not os.path.exists("/dev/nvidiactl"):
    os.environ["TRITON_INTERPRET"] = "1"
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "ERROR")
configure_environment()
SHARED = (
    ".",
    "flows/cli",
    "benchmarks",
    "chaos",
    "data",
    "data/fetching",
    "evaluation",
    "fake_device",
    "fuzz",
    "report",
    "study",
    "training",
)  # folders with modules that tests share
sys.path += [str(Path(__file__).parent / folder) for folder in SHARED]

LONG = ("test_end_to_end", "test_killed_stages", "test_deploy_live")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files begin first, or one of two processes would be left alone with them at the end."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture
def real_data() -> Path:
    """The folder of real files; tests that need it are skipped where it is not given."""
    folder = os.environ.get("MAV_REAL_DATA", "")
    if not folder:
        pytest.skip("MAV_REAL_DATA is not set")
    return Path(folder)


@pytest.fixture
def mav(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command in this process; called with its arguments, it returns exit code, stdout and stderr."""
    from flows.cli.main import main

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mav", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    return run


@pytest.fixture(scope="session")
def small_recipe() -> Recipe:
    """A valid recipe whose networks hardly exist, for tests of everything around them."""
    from small_training import small_recipe

    return dataclasses.replace(small_recipe(), world=None, cluster=Cluster(cpus=2, dashboard=False, attempts=3))


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """An S3 server on loopback with one bucket; yields the bucket's URL. Every process started from here finds it."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        fsspec.get_filesystem_class("s3").clear_instance_cache()  # one made before remembers another address
        fsspec.filesystem("s3").mkdir("mav")
        yield "s3://mav"
    server.stop()


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray for all tests that need it."""
    from flows.services.ray_cluster import ray_cluster  # a bare machine with a card has no Ray

    with ray_cluster(Cluster(cpus=2, dashboard=False, object_store_mb=150)):
        yield
