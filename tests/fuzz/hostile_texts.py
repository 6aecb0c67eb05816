"""Lists, recipes, answers and requests that were made by hand to hurt a parser."""

import json
from collections.abc import Callable

from nasties import answers


def by_hand(parser: str) -> list[bytes]:
    """Returns the inputs for a parser; none for one that is not of this file."""
    made = HAND[parser]() if parser in HAND else []
    return [data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass") for data in made]


def _lists() -> list[str | bytes]:
    outside = (
        "/etc/passwd",
        "../secret.mp4",
        "link.mp4",
        "deep/../../secret.mp4",
        "file:///etc/passwd",
        "SECRET",
        "~/x",
        "\0",
    )
    inside = (
        "http://127.0.0.1:9/x",
        "http://169.254.169.254/",
        "http://[::ffff:7f00:1]/",
        "http://2130706433/",
        "simplecache::x",
    )
    found: list[str | bytes] = [f"path,videoid\n{place},1\n" for place in (*outside, *inside)]
    found += [f"videoid,url,page_dir\n{place},,\n../secret,,\nsecret,,..\n" for place in (*outside, *inside)]
    for place in (*outside, *inside):
        line = {"video_id": place, "url": "", "clip": [{"clip_id": place, "span": ["0", "1"]}]}
        found.append(json.dumps(line) + "\n")
    found += [
        "",
        "\n" * 1000,
        '"',
        'path\n"' + "a" * 200_000,
        "path\n" + "," * 100_000,
        "{" * 50_000,
        "[" * 100_000 + "\n",
    ]
    found += [
        '{"video_id": 1e999, "clip": [[]]}\n',
        '{"video_id": "a", "clip": [{"span": [NaN, {}]}]}\n',
        b"\xff\xfea\0",
    ]
    found += [
        '{"video_id": ' + "9" * 5000 + "}\n",
        "path,start,end\nx.mp4," + "9" * 400 + ",1e400\n",
        '{"video_id": "\\ud800"}\n',
    ]
    return found


def _answers() -> list[str | bytes]:
    found: list[str | bytes] = [
        data for name, data, _ in answers(1) if len(data) < 50_000 and name.startswith(PROTOCOL)
    ]
    found += [
        f"HTTP/1.1 301 Moved\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n"
        for target in (
            "http://10.0.0.1/",
            "//169.254.169.254/",
            "http://[::127.0.0.1]/",
            "http://[fec0::1]/",
            "http://168.63.129.16/",
        )
    ]
    found += [
        f"HTTP/1.1 503 Busy\r\nRetry-After: {wait}\r\nContent-Length: 0\r\n\r\n"
        for wait in ("-1", "1e9", "9" * 400, "Thu, 99 Foo 0000", "nan", "٣")
    ]
    return found


PROTOCOL = ("gzip", "loop", "to-", "redirect", "status", "promises", "length", "chunked", "wire", "opted", "reserved")


def _yaml() -> list[str | bytes]:
    laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    laughs += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))
    found: list[str | bytes] = [laughs, "a: &a [*a]", "a: &a {b: *a}", "\t", "\0", ""]
    found += [
        "seed: 2026-99-99",
        "seed: 2026-01-01T99:99:99Z",
        f"seed: {'9' * 5000}",
        "seed: 0x",
        "seed: 1:99999999:9",
        "? [a]\n: 1",
    ]
    found += [
        "seed: !!int x",
        "seed: !!timestamp x",
        "seed: !!binary '*'",
        "seed: !!float x",
        "<<: 3",
        "<<: [{a: 1}, 2]",
        "a: !!set [1]",
    ]
    found += [
        "!!python/object/apply:os.system ['touch evil']",
        "!!python/name:os.system",
        "extends: /etc/passwd",
        "extends: ../../x",
    ]
    found += [
        *("[" * 5000, "{a: " * 5000, "- " * 5000, "? " * 3000),
        "? {a: 1}\n: 2",
        "seed: \ud800",
        "&a",
        "*a",
        "%YAML 9.9\n---\na",
        "a: 1\n---\nb: 2",
        "extends: [1]",
        "seed: .nan",
        "a: =",
        "1: 2",
    ]
    return found


def _votes() -> list[str | bytes]:
    bodies = [
        "",
        "{",
        "[" * 5000,
        "9" * 5000,
        '{"item": "\ud800"}',
        '"' + "x" * 100_000,
        "null",
        '{"item": NaN}',
        '{"milliseconds": 1e999}',
    ]
    bodies += [
        '{"item": "ITEM", "question": "quality", "answer": "both", "milliseconds": -1, "played": 1}',
        '{"item": {"$ne": 1}}',
    ]
    found: list[str | bytes] = [f"POST /api/vote\nauthorization: Bearer TOKEN\n\n{body}" for body in bodies]
    paths = (
        "/videos/../votes.sqlite",
        "/videos/%2e%2e%2fkey.json",
        "/videos/..%5ckey.json",
        "/videos/" + "0" * 5000,
        "/r/%00",
        "/docs",
        "//x",
    )
    found += [f"GET {path}\nauthorization: Bearer TOKEN\n\n" for path in paths]
    found += [
        f"GET /api/next\nauthorization: {value}\n\n"
        for value in ("Bearer", "Bearer ' OR 1=1 --", "bearer \xff", "Basic eA==", "Bearer " + "x" * 9000)
    ]
    return [
        *found,
        "GET /videos/0123456789abcdef.mp4\nrange: bytes=99999999999999999999-1\n\n",
        "DELETE /api/vote\n\n",
        "\n\n",
    ]


HAND: dict[str, Callable[[], list[str | bytes]]] = {
    "lists": _lists,
    "answers": _answers,
    "yaml": _yaml,
    "votes": _votes,
}
