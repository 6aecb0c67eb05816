"""Scorers of pictures: heads on CLIP embeddings, and LAION's watermark classifier on pixels; how each is read from what is published.

Where to get them: LAION-AI/CLIP-based-NSFW-Detector has the NSFW heads (PyTorch .pth, and the AutoKeras models they were converted from, as
zips), LAION-AI/LAION-5B-WatermarkDetection the watermark classifier (a timm EfficientNet-B3, .pt).
"""

from __future__ import annotations

import itertools
import pickle
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mav.errors import UserError
from mav.models.checkpoints.tensor_bundle import read_bundle

WHERE = {
    "clip.nsfw_head": "LAION's heads are in the repository CLIP-based-NSFW-Detector, as .pth or as AutoKeras zips",
    "clip.watermark_head": "LAION's classifier is in the repository LAION-5B-WatermarkDetection, as .pt",
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, which the classifier was trained with


class Head(nn.Module):
    """Standardise, then linear layers with ReLU between them, then a sigmoid: (B, d) -> (B,) probability.

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
    def from_state(cls, state: Mapping[str, Tensor]) -> Head:
        """From our own names, from LAION's NSFW heads (`norm.mean`, `linear_1.weight`, ...) or a bare `weight`, `bias`.

        Raises KeyError or RuntimeError when the names or the shapes are none of these.
        """
        renamed = {}
        for name, value in state.items():
            if match := re.fullmatch(r"linear_(\d+)\.(weight|bias)", name):
                name = f"layers.{int(match[1]) - 1}.{match[2]}"
            renamed[{"weight": "layers.0.weight", "bias": "layers.0.bias"}.get(name, name.removeprefix("norm."))] = (
                value.float()
            )
        weights = [renamed[f"layers.{i}.weight"] for i in range(sum(name.endswith("weight") for name in renamed))]
        head = cls([weights[0].shape[1], *(w.shape[0] for w in weights)])
        if weights[-1].shape[0] != 1:
            raise RuntimeError(f"its last layer has {weights[-1].shape[0]} outputs instead of 1")
        head.load_state_dict({"mean": head.mean, "variance": head.variance, **renamed})
        return head.eval()

    @classmethod
    def from_autokeras(cls, path: str) -> Head:
        """From the zip of a saved AutoKeras model: its normalisation and dense layers, read without TensorFlow.

        AutoKeras treats a handful of the columns as categories by way of look-up tables that no new picture's numbers are in; like
        LAION's own conversion to PyTorch, this leaves them numbers. Raises KeyError, ValueError or RuntimeError for other contents.
        """
        with zipfile.ZipFile(path) as archive:
            names = {name.rpartition("/")[2]: name for name in archive.namelist() if "/variables/" in f"/{name}"}
            found = read_bundle(
                archive.read(names["variables.index"]), archive.read(names["variables.data-00000-of-00001"])
            )
        state, dense = {}, []
        for name, value in found.items():
            match = re.fullmatch(
                r"layer_with_weights-(\d+)/(mean|variance|kernel|bias)/\.ATTRIBUTES/VARIABLE_VALUE", name
            )
            if match and match[2] in ("mean", "variance"):
                state[match[2]] = value.flatten()
            elif match:
                dense.append((int(match[1]), match[2], value))
        order = {layer: place for place, layer in enumerate(sorted({layer for layer, *_ in dense}))}
        for layer, kind, value in dense:
            state[f"layers.{order[layer]}.{'weight' if kind == 'kernel' else 'bias'}"] = (
                value.T if kind == "kernel" else value
            )
        return cls.from_state(state)


class WatermarkClassifier(nn.Module):
    """LAION's watermark classifier: a timm EfficientNet-B3 with three linear layers, on pictures squashed to 256 x 256."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        from timm import create_model

        super().__init__()
        self.model = create_model("efficientnet_b3", pretrained=False, num_classes=2)
        self.model.classifier = nn.Sequential(
            nn.Linear(1536, 625), nn.ReLU(), nn.Dropout(0.3), nn.Linear(625, 256), nn.ReLU(), nn.Linear(256, 2)
        )
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) of any size -> (B,) probability of a watermark."""
        x = (
            F.interpolate(pixels.float(), size=(256, 256), mode="bilinear", antialias=True, align_corners=False)
            .round()
            .clamp(0, 255)
        )
        logits: Tensor = self.model((x / 255 - self.mean) / self.std)
        return logits.softmax(1)[:, 0]

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> WatermarkClassifier:
        """From a published checkpoint's state dict. Raises RuntimeError when it is of another network."""
        classifier = cls()
        classifier.model.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
        return classifier.eval()


def read_head(path: str, dim: int, key: str) -> Head | WatermarkClassifier:
    """The scorer in a file, for embeddings of length `dim`. Raises UserError that names `key` and says where heads are to be had."""
    try:
        if path.endswith(".zip"):
            head = Head.from_autokeras(path)
        else:
            state = read_state(path, key)
            if key == "clip.watermark_head" and any("conv_stem" in name for name in state):
                return WatermarkClassifier.from_state(state).requires_grad_(False)
            head = Head.from_state(state)
    except (KeyError, IndexError, RuntimeError, ValueError, OSError, zipfile.BadZipFile) as error:
        what = "a watermark classifier or a head" if key == "clip.watermark_head" else "a head"
        raise UserError(
            f"`{key}` ({path}) is not {what} on CLIP embeddings: {' '.join(str(error).split())[:160]}. {WHERE[key]}."
        ) from None
    if len(head.mean) != dim:
        raise UserError(
            f"`{key}` ({path}) is for embeddings of length {len(head.mean)}, but this CLIP's have {dim}: give the matching head."
        )
    return head.requires_grad_(False)


def read_state(path: str, key: str) -> dict[str, Tensor]:
    """A state dict from a .safetensors or a torch file, read without running code from it. Raises UserError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state: Any = (
            load_file(path)
            if path.endswith(".safetensors")
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (OSError, RuntimeError, SafetensorError, pickle.UnpicklingError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"`{key}` ({path}) is not a state dict that can be read safely: {reason}") from None
    for wrapped in ("state_dict", "weights"):
        state = state.get(wrapped, state) if isinstance(state, Mapping) else None
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"`{key}` ({path}) holds no state dict: save the model's state_dict() or a .safetensors file.")
    return dict(state)


def logistic_head(x: Tensor, y: Tensor, ridge: float = 1e-4) -> Head:
    """Newton's method on the cross-entropy of probabilities y (n,) given float64 x (n, d), with a ridge; deterministic."""
    mean, variance = x.mean(0), x.var(0, correction=0).clamp_min(1e-8)
    z = torch.cat([(x - mean) / variance.sqrt(), torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
    w = torch.zeros(z.shape[1], dtype=x.dtype)
    penalty = torch.full_like(w, ridge * len(x))
    penalty[-1] = 1e-3 * len(x)  # the intercept stays finite when all rows are alike
    for _ in range(30):
        p = torch.sigmoid(z @ w)
        gradient = z.T @ (p - y) + penalty * w
        hessian = (z * (p * (1 - p))[:, None]).T @ z + torch.diag(penalty)
        step = torch.linalg.solve(hessian, gradient)
        w = w - step
        if step.abs().max() < 1e-10:
            break
    return Head.from_state({"mean": mean, "variance": variance, "weight": w[None, :-1], "bias": w[-1:]}).requires_grad_(
        False
    )


def area_under_curve(score: Tensor, positive: Tensor) -> float | None:
    """Probability that a positive row scores above a negative one, ties counting half; None when one class is absent."""
    ours, others = score[positive].double(), score[~positive].double()
    if len(ours) == 0 or len(others) == 0:
        return None
    others = others.sort().values
    below = torch.searchsorted(others, ours) + torch.searchsorted(others, ours, right=True)
    return float(below.double().mean() / (2 * len(others)))
