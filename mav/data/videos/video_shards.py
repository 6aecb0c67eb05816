"""`video-shards`: clips from the web or from files to WebDataset tars, each decoded to its end before it counts.

Where clips come from is `mav.data.videos.clip_files`; what is done to one is `mav.data.videos.transcode`. Sound and captions stay behind. What cannot be
used goes to the ledger with a reason.
"""

import hashlib
from collections.abc import Set
from dataclasses import dataclass
from typing import Any

from mav.data.fetching.addresses import Resolver, system_resolver
from mav.data.shards import VIDEO_LEDGER, ShardOutput, TarWriter, count, json_bytes, write_ledger
from mav.data.videos.clip_files import ClipFiles
from mav.data.videos.clip_list import Part, read_clips
from mav.data.videos.transcode import ClipError, convert
from mav.recipes import VideoShards
from mav.storage import Folder

DROPPED = ("duplicate", "opted_out")  # reasons that are nobody's failure


@dataclass(frozen=True)
class VideoWork:
    """The shard work of `video-shards`: writes `NNNNN.tar` (key.mp4, key.json) and the ledger `NNNNN.parquet`.

    parts: the rows of each shard. Clips come from `rule.files` (page_dir/videoid.mp4) when given, else from their addresses.
    """

    parts: tuple[Part, ...]
    rule: VideoShards
    seed: int
    out: Folder
    resolver: Resolver = system_resolver

    def names(self) -> list[str]:
        return [f"{number:05d}" for number in range(len(self.parts))]

    def __call__(self, name: str) -> ShardOutput:
        return self.fetch(name, name)

    def fetch(self, name: str, base: str, keys: Set[str] | None = None) -> ShardOutput:
        """Makes the shard `name` of the clips of shard `base`, or of those with these keys."""
        listed = {f"{base}{row:05d}": clip for row, clip in enumerate(read_clips(self.parts[int(base)], self.seed))}
        wanted = [key for key in listed if keys is None or key in keys]
        bodies = ClipFiles(self.rule, self.resolver).fetch(listed[key] for key in wanted)
        ledger: list[dict[str, Any]] = []
        frames = 0
        with self.out.create(f"{name}.tar") as file, TarWriter(file) as tar:
            for key, (clip, body) in zip(wanted, bodies, strict=True):
                entry: dict[str, Any] = {"key": key, "videoid": clip.videoid}
                try:
                    if isinstance(body, ClipError):
                        raise body
                    entry |= {"sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)}
                    video = convert(body, self.rule, clip.start, clip.end, clip.duration)
                    tar.add(
                        key, {video.extension: video.data, "json": json_bytes(video.facts | {"videoid": clip.videoid})}
                    )
                    frames += video.facts["frames"]
                    entry |= {"status": "ok", "reason": ""} | {
                        n: video.facts[n] for n in ("fps", "frames", "width", "height")
                    }
                except ClipError as error:
                    reason = str(error)
                    entry |= {"status": "dropped" if reason in DROPPED else "failed", "reason": reason}
                ledger.append(entry)
        write_ledger(self.out, f"{name}.parquet", VIDEO_LEDGER, ledger)
        return ShardOutput(count(ledger, frames=frames), (f"{name}.tar", f"{name}.parquet"))
