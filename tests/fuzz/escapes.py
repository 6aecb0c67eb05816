"""What an input must never do, and how it is noticed."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

SECRET = b"the secret that no input may reach"
Target = Callable[[bytes], str]


class EscapeError(BaseException):
    """An input reached what it must not reach. No parser catches it."""


def guarded(folder: Path) -> None:
    """Makes this process raise, and remember, whatever an input must not do: run a program, leave loopback, write
    outside of its folder."""
    allowed = {"127.0.0.1"}

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork"):
            ESCAPES.append(f"{event} {arguments[0]!r}")
        elif event == "socket.connect" and isinstance(arguments[1], tuple) and arguments[1][0] not in allowed:
            ESCAPES.append(f"connected to {arguments[1][0]}")
        elif event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
            path = arguments[0]
            if isinstance(path, str) and not os.path.realpath(path).startswith((str(folder), "/dev/")):
                ESCAPES.append(f"wrote {path}")
        else:
            return
        if ESCAPES:
            raise EscapeError(ESCAPES[-1])

    sys.addaudithook(watch)


ESCAPES: list[str] = []
