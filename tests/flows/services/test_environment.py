"""What Prefect and Ray need of a machine: loopback without a proxy, folders with room that can be written."""

import os
import subprocess
import sys
import urllib.request
from types import SimpleNamespace

import pytest
from alone import alone, can_be_alone

from flows.services import environment
from flows.services.environment import LOOPBACK, can_be_folder, configure_environment, require_places
from mav.errors import UserError


@pytest.mark.parametrize("given", [{}, {"no_proxy": "intern.example"}, {"NO_PROXY": "intern.example, 10.0.0.0/8"}])
def test_no_proxy_catches_loopback(given: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    configure_environment()
    configure_environment()
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"]
    assert all(urllib.request.proxy_bypass(host) for host in (*LOOPBACK[:2], *(["intern.example"] if given else [])))
    assert not urllib.request.proxy_bypass("example.invalid")
    assert os.environ["no_proxy"].count("127.0.0.1") == 1


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A machine whose temporary folder and home are in the test's folder; what cannot be written is in the set."""
    closed: set[str] = set()
    for name in ("RAY_TMPDIR", "PREFECT_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, folder in (("TMPDIR", "tmp"), ("HOME", "home")):
        (tmp_path / folder).mkdir()
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.setattr(environment.os, "access", lambda path, mode: os.fspath(path) not in closed)
    yield SimpleNamespace(tmp=str(tmp_path / "tmp"), home=str(tmp_path / "home"), closed=closed)
    os.environ.pop("PREFECT_HOME", None)


def test_a_home_that_cannot_be_written_is_not_needed(places):
    require_places()
    assert "PREFECT_HOME" not in os.environ
    places.closed.add(places.home)
    require_places()
    assert os.environ["PREFECT_HOME"].startswith(places.tmp)
    require_places()


def test_what_cannot_be_used_is_named(places, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("TMPDIR", "RAY_TMPDIR", "PREFECT_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "file/below"))
        with pytest.raises(UserError, match=f"{tmp_path}/file/below cannot be written.*{name}"):
            require_places()
        monkeypatch.setenv(name, places.tmp)
    monkeypatch.setattr(environment.os, "statvfs", lambda path: SimpleNamespace(f_bavail=100, f_frsize=1000))
    with pytest.raises(UserError, match=r"is full \(0.1 MB are left.*RAY_TMPDIR"):
        require_places()


def test_folders_that_are_or_can_be(tmp_path):
    (tmp_path / "file").write_text("")
    assert can_be_folder(str(tmp_path))
    assert can_be_folder(str(tmp_path / "new/deep"), written=True)
    assert not can_be_folder(str(tmp_path / "file"))
    assert not can_be_folder(str(tmp_path / "file/below"))


CONNECT = """
import socket
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    with socket.socket(type=kind) as s:
        s.connect_ex(("127.0.0.1", 80))
"""


def test_what_has_nowhere_to_go_is_counted(tmp_path):
    """The namespace in which the whole graph is tried; without loopback nothing leads even there."""
    if not can_be_alone():
        pytest.skip("this machine lets nobody make a network namespace")
    for loopback, tries in ((True, "0"), (False, "2")):
        command = alone([sys.executable, "-c", CONNECT], tmp_path / "tries", loopback)
        subprocess.run(command, check=True)
        assert (tmp_path / "tries").read_text() == tries
