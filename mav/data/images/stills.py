"""Which files of a folder are pictures, and so frames of one video: PNG, JPEG and WEBP that is not animated."""

from mav.storage import Folder

PICTURES = (".png", ".jpg", ".jpeg")
HEAD = 21  # bytes: RIFF, size, WEBP, the first chunk's name and size, and its flags
ANIMATION = 0x02  # the flag of the chunk VP8X (the WebP container specification)


def is_still(folder: Folder, name: str) -> bool:
    """Says whether a file below a folder is a picture."""
    return name.lower().endswith(PICTURES) or (name.lower().endswith(".webp") and not _is_animated(folder, name))


def _is_animated(folder: Folder, name: str) -> bool:
    """Says whether a WEBP file is a video. One that cannot be read is taken for one, to be told."""
    try:
        with folder.open(name) as file:
            head = file.read(HEAD)
    except OSError:
        return True
    known = len(head) == HEAD and head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    return not known or (head[12:16] == b"VP8X" and bool(head[20] & ANIMATION))
