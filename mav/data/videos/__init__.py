"""Clips: their lists and files, what they hold, and the shards they become."""

VIDEO_KINDS = "mp4, WebM, MOV, MKV, AVI or GIF"  # as help and messages name what can be read
VIDEO_ENDINGS = (".mp4", ".avi", ".webm", ".mkv", ".mov", ".m4v")
