"""One shard of every nasty of `nasties.py`: each is classified in time, in bounded memory, and the shard is whole."""

import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mav.data.images.download import DownloadWork
from mav.data.images.laion import TYPES
from mav.data.shards import read_tar
from mav.recipes import ImageDownload
from mav.storage import Folder
from mav.storage.counts import unbalanced

REASONS = {
    *(
        "not_an_image",
        "truncated",
        "undecodable",
        "too_many_pixels",
        "too_large",
        "bad_response",
        "bad_scheme",
        "bad_url",
        "dns",
    ),
    *("opted_out", "private_address", "redirect_loop", "reset", "timeout", "too_many_redirects", "refused"),
}
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\n\r\n"
DEADLINE = 3.0
MEMORY = 1.5e9  # bytes the whole process may take, interpreter and libraries included


def serve(replies: dict[str, bytes]) -> int:
    """A loopback server that sends these bytes whatever is said; returns its port."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)

    def reply(client: socket.socket) -> None:
        with client:
            try:
                path = client.recv(1 << 18).split(b" ", 2)[1].decode().lstrip("/").partition("?")[0]
                client.sendall(replies.get(path, NOT_FOUND))
                client.shutdown(socket.SHUT_WR)
                client.recv(1)
            except (OSError, IndexError):
                return  # the client hangs up when it has seen enough

    def accept() -> None:
        while True:
            threading.Thread(target=reply, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener.getsockname()[1]


def resolver(host: str, port: int) -> list[str]:
    """Numbers as the system reads them, no name at all: nothing leaves the machine."""
    if host.endswith((".invalid", ".com")) or not host.strip("."):
        raise socket.gaierror(-2, "Name or service not known")
    return [
        str(entry[4][0])
        for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    ]


def download(folder: str) -> None:
    """In the process of the script, which finds its neighbour."""
    import cv2
    from nasties import addresses, answers

    replies: dict[str, bytes] = {}
    port = serve(replies)
    cases = list(answers(port))
    names = {f"{number:04d}": (name, expected) for number, (name, _, expected) in enumerate(cases)}
    for number, (name, data, _) in enumerate(cases):
        replies[f"{number:04d}"] = replies[name] = data
    urls = [f"http://127.0.0.1:{port}/{number}" for number in names]
    wanted = [*names.values(), *addresses()]
    urls += [url for url, _ in addresses()]
    keys = [f"{i:015d}" for i in range(len(urls))]
    columns = {"key": keys, "url": urls, "caption": ["x"] * len(urls)}
    table = pa.table(
        columns
        | {name: pa.nulls(len(urls), pa.type_for_alias(kind)) for name, kind in TYPES.items() if name not in columns}
    )
    metadata = Folder(folder + "/metadata")
    metadata.write_bytes("shards/00000-00000.parquet", b"")
    pq.write_table(table, metadata.path("shards/00000-00000.parquet"))
    limits = {"timeout_seconds": DEADLINE, "deadline_seconds": DEADLINE, "max_bytes": 20_000_000}
    rule = ImageDownload(image_size=32, threads=16, per_host=16, allow_addresses=(f"127.0.0.1:{port}",), **limits)
    work = DownloadWork(metadata, rule, Folder(folder + "/out"), resolver)
    began = time.monotonic()
    output = work("00000-00000")
    seconds = time.monotonic() - began
    assert len(urls) >= 300, len(urls)
    assert not list(unbalanced(output.counts))
    ledger = pq.read_table(work.out.path("00000-00000.parquet")).to_pylist()
    assert [row["key"] for row in ledger] == keys
    wrong = []
    for row, (name, expected) in zip(ledger, wanted, strict=True):
        got = row["reason"] or row["status"]
        if not (got == expected if expected else got in REASONS | {"ok"}) and not (
            not expected and got.startswith("http_")
        ):
            wrong.append(f"{name[:80]}: {got} instead of {expected or 'a known reason'}")
    assert not wrong, "\n".join(wrong)
    samples = list(read_tar(work.out, "00000-00000.tar"))
    assert len(samples) == output.counts["rows_out"] > 60
    for key, files in samples:
        pixels = cv2.imdecode(np.frombuffer(files["jpg"], np.uint8), cv2.IMREAD_UNCHANGED)
        assert min(pixels.shape[:2]) == 32, key
    # not getrusage: its maximum begins with that of the process that started this one
    peak = 1024 * int(
        next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")).split()[1]
    )
    assert peak < MEMORY, f"{peak / 1e6:.0f} MB"
    print(
        f"{len(urls)} nasties, {output.counts['rows_out']} of them pictures, {seconds:.1f} s, peak {peak / 1e6:.0f} MB"
    )


@pytest.mark.slow
def test_nasties_are_classified_in_time_and_in_bounded_memory(tmp_path):
    """In a process of its own, whose peak memory is the shard's."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nasties" in done.stdout
    assert time.monotonic() - began < 60
    print(done.stdout)


if __name__ == "__main__":
    download(sys.argv[1])
