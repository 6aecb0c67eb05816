"""`video-shards`: clips from the web or from files to WebDataset tars, each decoded completely before it counts.

`mav.data.videos.clip_files` brings the clips, and `mav.data.videos.transcode` converts them and takes the scores by
which `video-select` chooses. Sound and captions are left out. A clip that cannot be used is entered in the table
beside the tar with a reason.
"""

import hashlib
from collections.abc import Set
from dataclasses import dataclass
from typing import Any

from mav.data.fetching.addresses import Resolver, system_resolver
from mav.data.loading.places import pack_places
from mav.data.shards import VIDEO_ROWS, ShardOutput, TarWriter, count, json_bytes, write_rows
from mav.data.videos.clip_files import ClipFiles
from mav.data.videos.clip_list import Part, read_clips
from mav.data.videos.probe import ClipError
from mav.data.videos.scores import SCORES
from mav.data.videos.transcode import convert
from mav.recipes import VideoShards
from mav.storage import Folder

DROPPED = ("duplicate", "opted_out")  # reasons that are no failure


@dataclass(frozen=True)
class VideoWork:
    """The shard work of `video-shards`: writes `NNNNN.tar` (key.mp4, key.json) and its rows, `NNNNN.parquet`.

    parts: the rows of each shard. Clips come from `rule.files` when given, otherwise from their addresses.
    """

    parts: tuple[Part, ...]
    rule: VideoShards
    seed: int
    out: Folder
    resolver: Resolver = system_resolver

    def names(self) -> list[str]:
        """Returns one name for each part."""
        return [f"{number:05d}" for number in range(len(self.parts))]

    def __call__(self, name: str) -> ShardOutput:
        return self.fetch(name, name)

    def fetch(self, name: str, base: str, keys: Set[str] | None = None) -> ShardOutput:
        """Makes the shard `name` of the clips of shard `base` with these keys, or of all of them."""
        listed = {f"{base}{row:05d}": clip for row, clip in enumerate(read_clips(self.parts[int(base)], self.seed))}
        wanted = [key for key in listed if keys is None or key in keys]
        bodies = ClipFiles(self.rule, self.resolver).fetch(listed[key] for key in wanted)
        rows: list[dict[str, Any]] = []
        with self.out.create(f"{name}.tar") as file, TarWriter(file) as tar:
            for key, (clip, body) in zip(wanted, bodies, strict=True):
                row: dict[str, Any] = {"key": key, "videoid": clip.videoid}
                try:
                    if isinstance(body, ClipError):
                        raise body
                    row |= {"sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)}
                    video = convert(body, self.rule, clip.start, clip.end, clip.duration)
                    metadata = json_bytes(video.metadata | {"videoid": clip.videoid})
                    tar.add(key, {video.extension: video.data, "json": metadata})
                    row |= {"status": "ok", "reason": ""}
                    row |= {
                        field: video.metadata[field] for field in ("fps", "frames", "width", "height")
                    } | video.scores
                except ClipError as error:
                    reason = str(error)
                    row |= {"status": "dropped" if reason in DROPPED else "failed", "reason": reason}
                rows.append(row)
        write_rows(self.out, f"{name}.parquet", VIDEO_ROWS | SCORES, rows)
        frames = sum(row.get("frames", 0) for row in rows)
        files = (f"{name}.tar", f"{name}.parquet")
        return ShardOutput(count(rows, frames=frames), files, pack_places(tar.index))
