"""Where the shots of the real clips change, as a look at the frames around each change says.

A change is (first frame, last frame): equal for a cut, whose first new frame it is, or the extent of a fade.
"""

from __future__ import annotations

Change = tuple[int, int]

REAL: dict[str, tuple[Change, ...]] = {
    "cuts/counter.mp4": ((10, 10), (20, 20)),
    "cuts/fades.mp4": ((44, 124), (127, 208), (211, 249)),  # through black, as its authors' tests have them
    "videos/real1.mp4": ((144, 144), (237, 237)),
    "videos/real2.mp4": (),
    "videos/real3.mp4": ((0, 28), (70, 104), (132, 184), (214, 214)),  # the first through white
    "msrvtt/video7010.mp4": (),  # a screen on which windows come and go
    "msrvtt/video7011.mp4": ((4, 4), (69, 69), (136, 136), (202, 202), (268, 268)),
    "msrvtt/video7012.mp4": ((14, 14), (283, 283)),
    "msrvtt/video7013.mp4": (),
    "msrvtt/video7014.mp4": ((2, 2), (29, 29), (79, 79), (112, 112), (140, 140), (174, 174), (298, 298)),
}
NEITHER: dict[str, tuple[Change, ...]] = {"cuts/fades.mp4": ((0, 41),)}  # it begins out of black: no change, no mistake
