"""A network namespace with loopback alone, in which the kernel counts every try to reach any other address."""

import os
import subprocess
import sys
from pathlib import Path

# Brings loopback up, runs the command, and writes how many packets and connections had nowhere to go.
INSIDE = """
import fcntl, socket, struct, subprocess, sys
with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH14x", b"lo", 0x1))  # SIOCSIFFLAGS, IFF_UP
code = subprocess.run(sys.argv[2:]).returncode
names, numbers = [line.split() for line in open("/proc/net/snmp") if line.startswith("Ip:")]
tries = int(dict(zip(names, numbers))["OutNoRoutes"])
tries += sum(int(line.split()[1]) for line in open("/proc/net/snmp6") if line.startswith("Ip6OutNoRoutes"))
open(sys.argv[1], "w").write(str(tries))
sys.exit(code)
"""


def alone(command: list[str], tries: Path) -> list[str]:
    """Returns a command that runs `command` in such a namespace and writes the number of tries into a file."""
    return ["unshare", "--map-root-user", "--net", sys.executable, "-c", INSIDE, str(tries), *command]


def can_be_alone() -> bool:
    """Says whether this machine lets us make a namespace."""
    try:
        return subprocess.run(alone(["true"], Path(os.devnull)), capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False
