"""A network namespace with loopback alone, in which the kernel counts every try to reach what it has no way to."""

import os
import subprocess
import sys
from pathlib import Path

# Brings loopback up (IFF_UP is 1), runs the command, and writes how many packets and connections had nowhere to go.
INSIDE = """
import fcntl, socket, struct, subprocess, sys
with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH14x", b"lo", int(sys.argv[2])))  # SIOCSIFFLAGS
code = subprocess.run(sys.argv[3:]).returncode
names, numbers = [line.split() for line in open("/proc/net/snmp") if line.startswith("Ip:")]
tries = int(dict(zip(names, numbers))["OutNoRoutes"])
tries += sum(int(line.split()[1]) for line in open("/proc/net/snmp6") if line.startswith("Ip6OutNoRoutes"))
open(sys.argv[1], "w").write(str(tries))
sys.exit(code)
"""


def alone(command: list[str], tries: Path, loopback: bool = True) -> list[str]:
    """Returns a command that runs `command` in such a namespace and writes the number of tries into a file."""
    inside = [sys.executable, "-c", INSIDE, str(tries), str(int(loopback)), *command]
    return ["unshare", "--map-root-user", "--net", *inside]


def can_be_alone() -> bool:
    """Says whether this machine lets us make a namespace."""
    try:
        return subprocess.run(alone(["true"], Path(os.devnull)), capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False
