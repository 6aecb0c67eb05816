"""Errors, foreseen or not, are one sentence and exit 2."""

import errno
import io
import sys
from pathlib import Path

import pytest

from flows.cli import main as command


class OddError(Exception):
    """An error of a library."""


CASES = {
    "full disk": (OSError(errno.ENOSPC, "No space left on device", "/runs/a"), ["/runs/a", "no space left"]),
    "read-only": (OSError(errno.EROFS, "Read-only file system", "/runs/a"), ["/runs/a", "read-only"]),
    "not allowed": (PermissionError(errno.EACCES, "Permission denied", "/runs/a"), ["/runs/a", "permission denied"]),
    "two names": (
        OSError(errno.EXDEV, "Invalid cross-device link", "/a", None, "/runs/b"),
        ["/runs/b", "cross-device"],
    ),
    "no name": (OSError(errno.EMFILE, "Too many open files"), ["too many open files"]),
    "no number": (ConnectionError("nobody answers"), ["nobody answers", "ConnectionError"]),
    "Ray's bare one": (Exception("The current node timed out during startup."), ["timed out during startup"]),
    "Ray's long one": (OddError("task failed\nTraceback ...\nValueError: the cause"), ["OddError", "the cause"]),
    "without words": (OddError(), ["OddError"]),
    "an empty file": (EOFError("No data left in file"), ["EOFError", "No data left"]),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("debug", [False, True])
def test_an_error_is_one_sentence(name, debug, monkeypatch, capsys, tmp_path):
    error, words = CASES[name]

    def fails(**_):
        raise error

    monkeypatch.setattr(command, "app", fails)
    monkeypatch.setattr(command.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["mav", "run", "demo", *(["--debug"] if debug else [])])
    with pytest.raises(SystemExit) as caught:
        command.main()
    err = capsys.readouterr().err
    assert caught.value.code == 2
    assert "--debug" not in sys.argv
    assert all(word in err for word in words)
    assert ("Traceback (most recent call last)" in err) == debug
    if not debug:
        assert err.count("\n") == 1
        (file,) = tmp_path.iterdir()
        assert str(file) in err
        assert "Traceback (most recent call last)" in file.read_text()


def test_no_room_for_the_traceback(monkeypatch, capsys, tmp_path):
    def fails(**_):
        raise OddError("a cause")

    monkeypatch.setattr(command, "app", fails)
    monkeypatch.setattr(command.tempfile, "tempdir", str(tmp_path / "gone"))
    monkeypatch.setattr(sys, "argv", ["mav", "run", "demo"])
    with pytest.raises(SystemExit):
        command.main()
    assert "--debug shows its traceback" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["file/runs", "file"])
def test_runs_that_cannot_be_a_folder(option, mav, tmp_path: Path):
    (tmp_path / "file").write_text("")
    for arguments in (["run", "tiny"], ["status", "tiny"], ["report", "tiny"], ["verify", "tiny"], ["clean", "tiny"]):
        code, _, err = mav(*arguments, "--runs", str(tmp_path / option))
        assert (code, err.count("\n")) == (2, 1), arguments
        assert f"--runs {tmp_path / option} cannot be a folder" in err


def test_a_terminal_without_the_letters(monkeypatch):
    """Its encoding has neither the line of a progress bar nor every letter of a user's words."""
    out = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(command, "app", lambda **_: print("caf\u00e9 \u2501 \udce9"))
    monkeypatch.setattr(sys, "argv", ["mav", "status", "tiny"])
    with pytest.raises(SystemExit) as caught:
        command.main()
    out.flush()
    assert (caught.value.code, out.buffer.getvalue()) == (0, b"caf\\xe9 \\u2501 \\udce9\n")


def test_the_end_of_a_file_is_not_ctrl_c(mav, monkeypatch, tmp_path):
    """The library of commands takes an EOFError for the user's end of a dialogue."""

    def fails(*_, **__):
        raise EOFError("No data left in file")

    monkeypatch.setattr("flows.cli.plan.open_graph", fails)
    monkeypatch.setattr(command.tempfile, "tempdir", str(tmp_path))
    code, _, err = mav("plan", "tiny")
    assert (code, "EOFError: No data left" in err, "stopped" in err) == (2, True, False)
