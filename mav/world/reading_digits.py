"""Reads handwritten digits back from frames: the bright object by its contrast, which digit it is by a small network.

The network learns from digits that no other part of the world shows, drawn as videos show them: small, blurred, noisy.
Its own error, on digits that it has not learned from, is measured with it.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from mav.storage import Folder
from mav.world.digits import DIGITS, LEAST, READER_FOLDER, digit_scene
from mav.world.drawing import SHAPES, draw, signed_distance
from mav.world.idx_files import Digits, read_digits
from mav.world.oracle import NOTHING, Reading, frame_pixels
from mav.world.windows import centre_of_gravity, resampled

LEAST_CONTRAST = 50  # levels of 255 between the ink and the ground
LEAST_AREA, MOST_AREA = 0.008, 0.3  # of the frame, in ink; a one of the smallest size has 0.02
NEAR = 0.06  # of the side: parts of a digit are no farther apart
CERTAIN = 0.5  # least probability of a digit; below it there is no clear object
WINDOW, FILLED = 20, 16  # pixels of the square that the network sees, and of the digit's longer side in it
DRAWINGS, CHECKS = 2, 2  # of each digit: to learn from, and to measure the error on
EPOCHS, LEAST_STEPS, BATCH = 12, 100, 64
SIZES = (24, 80)  # pixels of the frames that the network learns from


@dataclass(frozen=True)
class DigitReader:
    """Reads frames of a world of digits. error: the share of true frames, of digits it has not learned, read wrong."""

    network: nn.Module
    error: float = float("nan")

    def __call__(self, frame: np.ndarray, shapes: tuple[str, ...] = DIGITS) -> Reading:
        """Reads a frame, uint8 (H, W, 3) RGB. The reading has no colour; its saturation is the ink's brightness."""
        seen = _find(frame)
        if seen is None:
            return NOTHING
        window, reading = seen
        with torch.inference_mode():
            likely = self.network(torch.from_numpy(window)[None, None]).softmax(-1)[0]
        best = int(likely.argmax())
        if best >= len(DIGITS) or float(likely[best]) < CERTAIN:
            return NOTHING
        return Reading(None, DIGITS[best], reading.centre, float(likely[best]), reading.area, reading.saturation)


def reader_of(world: Folder) -> DigitReader:
    """Trains the reader of a drawn world of digits: the same world, the same reader. It takes one thread."""
    digits, threads = read_digits(world.child(READER_FOLDER)), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return _trained(digits)
    finally:
        torch.set_num_threads(threads)


def _trained(digits: Digits) -> DigitReader:
    rng = np.random.default_rng(0)
    order = rng.permutation(len(digits))
    cut = max(len(digits) // 5, LEAST)
    check, learn = digits.take(order[:cut]), digits.take(order[cut:])
    windows, labels = _windows(learn, rng, DRAWINGS)
    network = _network()
    batches = -(-len(windows) // BATCH)
    epochs = max(EPOCHS, -(-LEAST_STEPS // batches))
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=epochs * batches)
    for _ in range(epochs):
        for rows in np.array_split(rng.permutation(len(windows)), batches):
            loss = F.cross_entropy(network(_turned(windows[rows], rng)), labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    network.eval()
    reader = DigitReader(network)
    read = [reader(_frame(check, row, rng)).shape == DIGITS[check.labels[row]]
            for row in np.tile(np.arange(len(check)), CHECKS)]  # fmt: skip
    return DigitReader(network, 1 - float(np.mean(read)))


def _network() -> nn.Sequential:
    """Returns the untrained network: windows (B, 1, 20, 20) to logits of the ten digits and of what is none."""
    layers: list[nn.Module] = []
    for before, after in ((1, 16), (16, 32)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    side = WINDOW // 4
    layers += [nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3)]
    return nn.Sequential(*layers, nn.Linear(64 * side * side, len(DIGITS) + 1))


def _windows(digits: Digits, rng: np.random.Generator, drawings: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns windows (N, 1, 20, 20) of drawn digits, and of what is no digit, with their labels (N,)."""
    windows, labels = [], []
    for row in np.tile(np.arange(len(digits)), drawings):
        seen = _find(_frame(digits, row, rng))
        if seen:
            windows.append(seen[0])
            labels.append(int(digits.labels[row]))
    for _ in range(len(windows) // 10):
        windows.append(_no_digit(rng))
        labels.append(len(DIGITS))
    return torch.from_numpy(np.stack(windows))[:, None], torch.tensor(labels)


def _frame(digits: Digits, row: int, rng: np.random.Generator) -> np.ndarray:
    """Returns uint8 (S, S, 3): the digit drawn somewhere, as small, pale, blurred and noisy as in generated videos."""
    size = int(rng.integers(*SIZES))
    picture: np.ndarray = draw(digit_scene(rng, digits.take(np.array([row]))), size).astype(np.float32)
    picture = cv2.GaussianBlur(picture, (0, 0), max(size * rng.uniform(0, 0.02), 1e-2))
    picture = picture * rng.uniform(0.7, 1.0) + rng.normal(0, rng.uniform(1, 8), (size, size, 1))
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8)


def _no_digit(rng: np.random.Generator) -> np.ndarray:
    """Returns a window of something bright that is no digit: a blot, or one of the other world's shapes."""
    v, u = (np.mgrid[0:WINDOW, 0:WINDOW] + 0.5) / WINDOW * 2 - 1
    blot: np.ndarray
    if rng.uniform() < 0.5:
        noise = cv2.GaussianBlur(rng.normal(size=(WINDOW, WINDOW)), (0, 0), rng.uniform(0.5, 4))
        blot = np.clip(0.5 + noise / noise.std(), 0, 1) * (np.hypot(u, v) < rng.uniform(0.6, 0.9))
    else:
        radius, (dx, dy) = rng.uniform(0.5, 0.8), rng.uniform(-0.1, 0.1, 2)
        distance = signed_distance(str(rng.choice(SHAPES)), (u - dx) / radius, (v - dy) / radius)
        blot = np.clip(0.5 - distance * radius * WINDOW / 2, 0, 1)
    return cv2.GaussianBlur(blot, (0, 0), rng.uniform(0.1, 1)).astype(np.float32)


def _turned(windows: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Returns windows (B, 1, 20, 20), each a little turned, slanted, scaled and shifted."""
    count = len(windows)
    angle, slant = rng.uniform(-0.15, 0.15, count), rng.uniform(-0.1, 0.1, count)
    wide, high = rng.uniform(0.85, 1.15, (2, count))
    shift = rng.uniform(-0.12, 0.12, (2, count))
    rows = [[wide * np.cos(angle), slant - np.sin(angle), shift[0]], [np.sin(angle), high * np.cos(angle), shift[1]]]
    places = F.affine_grid(torch.tensor(np.array(rows)).permute(2, 0, 1).float(), list(windows.shape), False)
    return F.grid_sample(windows, places, align_corners=False)


def _find(frame: np.ndarray) -> tuple[np.ndarray, Reading] | None:
    """Returns the object's window, float32 (20, 20) in 0..1, and a reading without a shape; None if none is clear."""
    light = frame_pixels(frame).mean(axis=2)
    height, width = light.shape
    ground = float(np.median(light))
    cover = light - ground
    ink = np.percentile(cover, 100 * (1 - LEAST_AREA))
    if ink < LEAST_CONTRAST:
        return None
    cover = np.clip(cover / max(float(np.percentile(cover[cover > 0.5 * ink], 60)), 1.0), 0, 1)
    weight = np.where(cover > 0.25, cover, 0)
    weight = weight * _near_parts(weight)
    area = float(weight.sum())
    if not LEAST_AREA <= area / (height * width) <= MOST_AREA:
        return None
    centre = centre_of_gravity(weight)
    brightness = float((light * weight).sum() / area / 255)
    reading = Reading(None, None, (centre[0] / width, centre[1] / height), 0.0, area / (height * width), brightness)
    return _window(weight), reading


def _near_parts(weight: np.ndarray) -> np.ndarray:
    """Returns where the largest object is, with the parts that lie near to it: a digit may be in several strokes."""
    reach = 2 * max(round(NEAR * min(weight.shape) / 2), 1) + 1
    joined = cv2.dilate((weight > 0).astype(np.uint8), np.ones((reach, reach), np.uint8))
    count, labels = cv2.connectedComponents(joined, connectivity=8)
    sums = np.bincount(labels.ravel(), weights=weight.ravel(), minlength=count)
    return np.asarray(labels == 1 + int(sums[1:].argmax()))


def _window(weight: np.ndarray) -> np.ndarray:
    """Returns the object so that its longer side fills the window's middle."""
    rows, columns = (np.flatnonzero(weight.max(axis=axis) > 0.5) for axis in (1, 0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    scale = max(bottom - top, right - left) / FILLED
    middle = np.array([(left + right) / 2, (top + bottom) / 2])
    return resampled(weight, middle - scale * WINDOW / 2, scale, WINDOW)
