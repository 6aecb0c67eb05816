"""The bytes of listed clips: from a named folder, from the web under the guards, from YouTube through yt-dlp.

Lists come from others. Their paths are read below `video_shards.files` only, after links are followed, and everything
else that they name is an address, which is fetched under the guards.
"""

import collections
import errno
import importlib
import os
import queue
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from mav.data.fetching.addresses import Resolver
from mav.data.fetching.guards import GuardedOpener, opener_settings
from mav.data.fetching.rules import FetchError, split_url
from mav.data.videos.clip_list import ListedClip
from mav.data.videos.probe import ClipError
from mav.errors import UserError
from mav.recipes import VideoShards
from mav.storage import Folder

AHEAD = 8  # videos fetched before their turn,
AHEAD_BYTES = 256 << 20  # unless this many bytes wait already
YOUTUBE = ("youtube.com", "youtu.be")
# yt-dlp's choice of stream; sound is not needed.
STREAMS = "bv*[protocol^=http][height<=720][ext=mp4]/b[protocol^=http][height<=720]/b[protocol^=http]"

UNUSABLE = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.ELOOP)  # faults of one path

Body = bytes | ClipError


class ClipFiles:
    """Fetches listed clips in the list's order, a few ahead. Adjacent clips of one video share its bytes.

    Raises UserError for what would fail for every clip alike: YouTube without yt-dlp.
    """

    def __init__(self, rule: VideoShards, resolver: Resolver) -> None:
        self._rule = rule
        self._files = Folder(rule.files) if rule.files else None
        self._opener = GuardedOpener(refuse=("noai", "noml"), **opener_settings(rule, resolver))

    def fetch(self, clips: Iterable[ListedClip]) -> Iterator[tuple[ListedClip, Body]]:
        """Yields each clip with its video's bytes, or with the error for which there are none."""
        waiting: collections.deque[tuple[ListedClip, Future[Body]]] = collections.deque()
        with ThreadPoolExecutor(AHEAD) as pool:
            last: tuple[str, Future[Body]] | None = None
            for clip in clips:
                where = self._where(clip)
                if clip.problem:
                    future: Future[Body] = Future()
                    future.set_result(ClipError(clip.problem))
                elif last and last[0] == where:
                    future = last[1]
                else:
                    future = pool.submit(self._body, clip)
                    last = where, future
                waiting.append((clip, future))
                while len({id(f) for _, f in waiting}) > AHEAD or _held(waiting) > AHEAD_BYTES:
                    done, future = waiting.popleft()
                    yield done, future.result()
            for done, future in waiting:
                yield done, future.result()

    def _where(self, clip: ListedClip) -> str:
        """Returns the clip's file or address. A folder comes before addresses; it holds page_dir/videoid.mp4."""
        if self._files:
            return clip.path or (f"{clip.page_dir}/{clip.videoid}.mp4" if clip.page_dir else f"{clip.videoid}.mp4")
        return clip.url or clip.path

    def _body(self, clip: ListedClip) -> Body:
        where = self._where(clip)
        try:
            if self._files:
                return self._read(self._files, where)
            if not clip.url and "://" not in where:
                return ClipError("no_folder" if where else "no_address")
            host = split_url(where).hostname or ""
            if any(host == name or host.endswith(f".{name}") for name in YOUTUBE):
                where = stream_address(where, self._rule)
            return self._opener.fetch(where).body
        except FetchError as error:
            return ClipError(error.reason)
        except ClipError as error:
            return error
        except FileNotFoundError:
            return ClipError("missing_file")
        except OSError as error:
            if error.errno in UNUSABLE:
                return ClipError("unreadable_file")
            raise
        except ValueError:
            return ClipError("bad_url")

    def _read(self, folder: Folder, name: str) -> Body:
        where = listed_name(folder, name)
        if folder.size(where) > self._rule.max_bytes:
            return ClipError("too_large")
        return folder.read_bytes(where)


def listed_name(folder: Folder, name: str) -> str:
    """Returns the name below a folder of what a list calls `name`, which may be a full path.

    Raises ClipError: outside_folder, also when a link leads there; unreadable_file for a pipe or a device.
    """
    if folder.local:
        root = os.path.realpath(folder.root)
        path = os.path.realpath(os.path.join(root, name))
        if os.path.commonpath([root, path]) != root:
            raise ClipError("outside_folder")
        if os.path.exists(path) and not os.path.isfile(path):
            raise ClipError("unreadable_file")
        return os.path.relpath(path, root)
    name = name.removeprefix(f"{folder.url.rstrip('/')}/")
    if name.startswith("/") or "://" in name or ".." in name.split("/"):
        raise ClipError("outside_folder")
    return name


def stream_address(page: str, rule: VideoShards) -> str:
    """Returns the address of the video that a YouTube page plays, as found by yt-dlp, to be fetched under the guards.

    yt-dlp opens YouTube's own pages only, for as long as a whole clip may take. Raises FetchError when there is no
    address, and UserError when yt-dlp is not installed.
    """
    try:
        yt_dlp = importlib.import_module("yt_dlp")  # an optional package
    except ImportError:
        raise UserError(
            "The list names YouTube videos, and yt-dlp is not installed: `pip install yt-dlp`, or put the videos into "
            "a folder and name it as `video_shards.files`."
        ) from None
    options: dict[str, Any] = {
        "quiet": True, "no_warnings": True, "noprogress": True, "format": STREAMS, "cachedir": False,
        "proxy": "",  # like our own opener, it uses no proxy of the environment
        "socket_timeout": rule.timeout_seconds,
        "allowed_extractors": ["youtube"],  # no other page, to which a video's may send it on
        "noplaylist": True,
    }  # fmt: skip
    answers: queue.SimpleQueue[str] = queue.SimpleQueue()

    def look() -> None:
        found = ""
        try:
            with suppress(yt_dlp.utils.DownloadError), yt_dlp.YoutubeDL(options) as downloader:
                found = str((downloader.extract_info(page, download=False) or {}).get("url") or "")
        finally:
            answers.put(found)

    threading.Thread(target=look, daemon=True).start()
    try:
        address = answers.get(timeout=rule.deadline_seconds)
    except queue.Empty:
        raise FetchError("timeout", "yt-dlp") from None
    if not address:
        raise FetchError("youtube_refused")
    return address


def _held(waiting: Iterable[tuple[ListedClip, Future[Body]]]) -> int:
    """Returns the bytes that wait for their turn."""
    bodies = {id(future): future.result() for _, future in waiting if future.done() and not future.exception()}
    return sum(len(body) for body in bodies.values() if isinstance(body, bytes))
