"""Hostile inputs, more than a thousand, for every parser that meets bytes of others, the same for the same seed.

`corpus(parser, count, seed)` begins with inputs that were made by hand to hurt; the rest are valid files that were cut,
flipped, spliced, blown up or filled with signs that parsers trip over. No input comes twice.
"""

import hashlib
import random
import struct
from collections.abc import Iterator

import hostile_files
import hostile_texts
from seeds import SEEDS

# How many inputs each parser gets.
SHARES = {
    "tables": 80, "lists": 120, "tars": 80, "pictures": 160, "mp4": 100, "avi": 60, "answers": 120, "yaml": 80,
    "safetensors": 50, "torch": 70, "pickles": 130, "heads": 30, "votes": 50,
}  # fmt: skip
NUMBERS = (0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
TOKENS = (
    *(
        "\0",
        '"',
        "'",
        "\\",
        "\n",
        "\r",
        "\t",
        ",",
        ";",
        "|",
        "{",
        "}",
        "[",
        "]",
        ":",
        "&a ",
        "*a",
        "!!python/object:os.system ",
    ),
    *(
        "\ufeff",
        "\u202e",
        "\ud800",
        "\U0001f600",
        "../",
        "/etc/passwd",
        "file:///etc/passwd",
        "http://127.0.0.1:9/",
        "http://[::1]/",
    ),
    *(
        "=1+1",
        "NaN",
        "-Infinity",
        "1e999",
        "9" * 400,
        "null",
        "true",
        "-1",
        "0x7f",
        "%00",
        "%2e%2e%2f",
        "A" * 3000,
        "s3://b/",
    ),
)


def corpus(parser: str, count: int, seed: int) -> Iterator[bytes]:
    """Yields `count` distinct inputs for a parser."""
    seen: set[bytes] = set()
    kind = hashlib.sha256(f"{seed} {parser}".encode()).digest()
    rng = random.Random(kind)
    seeds = SEEDS[parser]()
    for data in _endless(parser, seeds, rng):
        digest = hashlib.sha256(data).digest()
        if digest not in seen:
            seen.add(digest)
            yield data
            if len(seen) == count:
                return


def _endless(parser: str, seeds: list[bytes], rng: random.Random) -> Iterator[bytes]:
    made = hostile_files.by_hand(parser) or hostile_texts.by_hand(parser)
    yield from made
    text = parser in ("lists", "yaml", "votes", "answers")
    while True:
        data = rng.choice(seeds)
        for _ in range(rng.choice((1, 1, 2, 5))):
            data = _changed(data, seeds, rng, text and rng.random() < 0.7)
        yield data[: 1 << 20]


def _changed(data: bytes, seeds: list[bytes], rng: random.Random, text: bool) -> bytes:
    at = rng.randrange(len(data) + 1)
    size = rng.choice((1, 2, 4, 8, 64, 512))
    if text:
        return data[:at] + rng.choice(TOKENS).encode("utf-8", "surrogatepass") + data[at + rng.choice((0, 0, size)) :]
    match rng.randrange(8):
        case 0:  # cut
            return data[:at]
        case 1:  # taken out
            return data[:at] + data[at + size :]
        case 2:  # twice
            return data[: at + size] + data[at:]
        case 3:  # noise
            return data[:at] + rng.randbytes(min(size, len(data) - at)) + data[at + size :]
        case 4:  # a number that is an edge
            form = rng.choice(("<I", ">I", "<H", ">H", "<Q", ">Q"))
            number = rng.choice(NUMBERS) & ((1 << 8 * struct.calcsize(form)) - 1)
            return data[:at] + struct.pack(form, number) + data[at + struct.calcsize(form) :]
        case 5:  # the rest of another
            other = rng.choice(seeds)
            return data[:at] + other[rng.randrange(len(other) + 1) :]
        case 6:  # zeros
            return data[:at] + bytes(min(size, len(data) - at)) + data[at + size :]
        case _:  # bits
            changed = bytearray(data)
            for _ in range(rng.choice((1, 4, 16))):
                if changed:
                    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
            return bytes(changed)
