"""Scorers of pictures and readers of their published files: heads on CLIP embeddings, LAION's watermark classifier.

LAION-AI/CLIP-based-NSFW-Detector has the NSFW heads (PyTorch .pth, and as zips the AutoKeras models they were converted
from). LAION-AI/LAION-5B-WatermarkDetection has the watermark classifier, which reads pixels (a timm EfficientNet-B3,
.pt). LAION-AI/aesthetic-predictor has linear heads that score pictures from 1 to 10 (.pth), and
christophschuhmann/improved-aesthetic-predictor one of several linear layers.
"""

import itertools
import os
import re
import zipfile
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mav.errors import UserError
from mav.imports import without_wandb
from mav.models.checkpoints.tensor_bundle import read_bundle
from mav.models.checkpoints.weight_files import COMPRESSED, read_tensors, refuse_bombs

WHERE = {
    "clip.nsfw_head": "LAION's heads are in the repository CLIP-based-NSFW-Detector, as .pth or as AutoKeras zips",
    "clip.watermark_head": "LAION's classifier is in the repository LAION-5B-WatermarkDetection, as .pt",
    "image_select.aesthetic_head": "LAION has them in aesthetic-predictor and improved-aesthetic-predictor",
}
# Places of the linear layers in the improved predictor: there is dropout between them and nothing else.
LAYERS = [[0], [0, 2, 4, 6, 7]]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, which the classifier was trained with
# The name of an AutoKeras model's variable.
VARIABLE = re.compile(r"layer_with_weights-(\d+)/(mean|variance|kernel|bias)/\.ATTRIBUTES/VARIABLE_VALUE")


class Head(nn.Module):
    """Embeddings (B, d) to probabilities (B,): standardisation, linear layers with ReLU between them, a sigmoid.

    One layer is a logistic regression; LAION's NSFW heads have three (ViT-B/32) or four (ViT-L/14).
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(sizes[0]))
        self.register_buffer("variance", torch.ones(sizes[0]))
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean) / self.variance.sqrt().clamp_min(1e-7)
        for index, layer in enumerate(self.layers):
            x = layer(F.relu(x) if index else x)
        return torch.sigmoid(x[:, 0])

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Self:
        """Builds a head from our names, LAION's (`norm.mean`, `linear_1.weight`, ...) or a bare `weight` and `bias`.

        Raises KeyError or RuntimeError when the names or the shapes are none of these.
        """
        renamed = {}
        for name, value in state.items():
            if match := re.fullmatch(r"linear_(\d+)\.(weight|bias)", name):
                name = f"layers.{int(match[1]) - 1}.{match[2]}"
            name = f"layers.0.{name}" if name in ("weight", "bias") else name.removeprefix("norm.")
            renamed[name] = value.float()
        weights = [renamed[f"layers.{i}.weight"] for i in range(sum(name.endswith("weight") for name in renamed))]
        head = cls([weights[0].shape[1], *(w.shape[0] for w in weights)])
        if weights[-1].shape[0] != 1:
            raise RuntimeError(f"its last layer has {weights[-1].shape[0]} outputs instead of 1")
        head.load_state_dict({"mean": head.mean, "variance": head.variance, **renamed})
        return head.eval()

    @classmethod
    def from_autokeras(cls, path: str) -> Self:
        """Builds a head from the normalisation and the dense layers in the zip of a saved AutoKeras model.

        AutoKeras treats a handful of the columns as categories, by look-up tables that hold no new picture's numbers.
        Like LAION's own conversion to PyTorch, this reads them as numbers. Raises KeyError, ValueError or RuntimeError
        for other contents.
        """
        with zipfile.ZipFile(path) as archive:
            refuse_bombs(archive, COMPRESSED * os.path.getsize(path))
            names = {name.rpartition("/")[2]: name for name in archive.namelist() if "/variables/" in f"/{name}"}
            files = [archive.read(names[f"variables.{part}"]) for part in ("index", "data-00000-of-00001")]
        state, dense = {}, []
        for name, value in read_bundle(*files).items():
            match = VARIABLE.fullmatch(name)
            if match and match[2] in ("mean", "variance"):
                state[match[2]] = value.flatten()
            elif match:
                dense.append((int(match[1]), match[2], value))
        order = {layer: place for place, layer in enumerate(sorted({layer for layer, *_ in dense}))}
        for layer, kind, value in dense:
            ours, value = ("weight", value.T) if kind == "kernel" else ("bias", value)
            state[f"layers.{order[layer]}.{ours}"] = value
        return cls.from_state(state)


class WatermarkClassifier(nn.Module):
    """LAION's watermark classifier: a timm EfficientNet-B3 with three linear layers, on 256 x 256 pixels."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        with without_wandb():
            from timm import create_model

        super().__init__()
        self.model = create_model("efficientnet_b3", pretrained=False, num_classes=2)
        self.model.classifier = nn.Sequential(
            nn.Linear(1536, 625), nn.ReLU(), nn.Dropout(0.3), nn.Linear(625, 256), nn.ReLU(), nn.Linear(256, 2)
        )
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pictures, uint8 (B, 3, H, W) of any size, to (B,) probabilities of a watermark."""
        x = F.interpolate(pixels.float(), size=(256, 256), mode="bilinear", antialias=True, align_corners=False)
        logits: Tensor = self.model((x.round().clamp(0, 255) / 255 - self.mean) / self.std)
        return logits.softmax(1)[:, 0]

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Self:
        """Builds the classifier from a published checkpoint. Raises RuntimeError when it is of another network."""
        classifier = cls()
        classifier.model.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
        return classifier.eval()


def read_head(path: str, dim: int, key: str) -> Head | WatermarkClassifier:
    """Reads the scorer in a file, for embeddings of length `dim`.

    Raises UserError that names the recipe's `key` and says where such files are published.
    """
    watermarks = key == "clip.watermark_head"
    try:
        if path.endswith(".zip"):
            head = Head.from_autokeras(path)
        else:
            state = read_state(path, key)
            if watermarks and any("conv_stem" in name for name in state):
                return WatermarkClassifier.from_state(state).requires_grad_(False)
            head = Head.from_state(state)
    except (KeyError, IndexError, RuntimeError, ValueError, OSError, zipfile.BadZipFile) as error:
        what, reason = "a watermark classifier or a head" if watermarks else "a head", " ".join(str(error).split())
        raise UserError(f"`{key}` ({path}) is not {what} on CLIP embeddings: {reason[:160]}. {WHERE[key]}.") from None
    if (length := len(head.mean)) != dim:
        lengths = f"embeddings of length {length}, but this CLIP's have {dim}"
        raise UserError(f"`{key}` ({path}) is for {lengths}: give the matching head.")
    return head.requires_grad_(False)


def read_linear_head(path: str, key: str) -> tuple[np.ndarray, float]:
    """Reads a linear head on CLIP embeddings as weight, float64 (d,), and bias: a score is their product and sum.

    Linear layers without anything between them are multiplied out. Raises UserError that names the recipe's `key` and
    says where such files are published.
    """
    layers: dict[int, dict[str, np.ndarray]] = {}
    try:
        for name, value in read_state(path, key).items():
            match = re.fullmatch(r"(?:layers\.(\d+)\.)?(weight|bias)", name)
            if match is None:
                raise ValueError(f"it has {name!r}, which no linear layer has")
            layers.setdefault(int(match[1] or 0), {})[match[2]] = value.detach().double().cpu().numpy()
        if sorted(layers) not in LAYERS:
            raise ValueError(f"its layers are {', '.join(map(str, sorted(layers)))}")
        weight: Any = 1.0
        bias: Any = 0.0
        for _, layer in sorted(layers.items()):
            first = isinstance(weight, float)
            bias = layer["bias"] if first else layer["weight"] @ bias + layer["bias"]
            weight = layer["weight"] if first else layer["weight"] @ weight
        if weight.ndim != 2 or len(weight) != 1 or bias.shape != (1,):
            raise ValueError(f"its weight and bias have the shapes {weight.shape} and {bias.shape}")
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise ValueError("it holds numbers that are not finite")
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"`{key}` ({path}) is no linear head on CLIP embeddings: {reason}. {WHERE[key]}.") from None
    return weight[0], float(bias[0])


def read_state(path: str, key: str) -> dict[str, Tensor]:
    """Reads a state dict from a .safetensors or a torch file, without running code from it.

    Raises UserError that names the recipe's `key`.
    """
    try:
        state: Any = read_tensors(path)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"`{key}` ({path}) is not a state dict that can be read safely: {reason}") from None
    for wrapped in ("state_dict", "weights"):
        state = state.get(wrapped, state) if isinstance(state, Mapping) else None
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"`{key}` ({path}) holds no state dict: save the model's state_dict() or a .safetensors file.")
    return dict(state)


def logistic_head(x: Tensor, y: Tensor) -> Head:
    """Fits a logistic regression of probabilities y (n,) on float64 x (n, d), by Newton's method with a ridge."""
    mean, variance = x.mean(0), x.var(0, correction=0).clamp_min(1e-8)
    z = torch.cat([(x - mean) / variance.sqrt(), torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
    w = torch.zeros(z.shape[1], dtype=x.dtype)
    penalty = torch.full_like(w, 1e-4 * len(x))
    penalty[-1] = 1e-3 * len(x)  # the intercept stays finite when all rows are alike
    for _ in range(30):
        p = torch.sigmoid(z @ w)
        gradient = z.T @ (p - y) + penalty * w
        hessian = (z * (p * (1 - p))[:, None]).T @ z + torch.diag(penalty)
        step = torch.linalg.solve(hessian, gradient)
        w = w - step
        if step.abs().max() < 1e-10:
            break
    state = {"mean": mean, "variance": variance, "weight": w[None, :-1], "bias": w[-1:]}
    return Head.from_state(state).requires_grad_(False)


def area_under_curve(score: Tensor, positive: Tensor) -> float | None:
    """The probability that a positive row scores above a negative one (a tie counts half), or None without both."""
    ours, others = score[positive].double(), score[~positive].double()
    if len(ours) == 0 or len(others) == 0:
        return None
    others = others.sort().values
    below = torch.searchsorted(others, ours) + torch.searchsorted(others, ours, right=True)
    return float(below.double().mean() / (2 * len(others)))
