"""CLIP, through open_clip: the only part that reads text, and the embedding every other network is conditioned on.

Either pretrained (an open_clip architecture name and the path of its state dict; nothing is ever fetched from a hub) or a tiny
one built from `ClipConfig` and trained in the `clip` stage. Two heads on its image embeddings estimate `punsafe` and `pwatermark`
where a table has no score: LAION's published ones from a path, or logistic regressions fitted on the rows whose score is known.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mav.errors import UserError
from mav.models.heads import Head, WatermarkClassifier, area_under_curve, logistic_head, read_head, read_state
from mav.recipes import ClipConfig
from mav.recipes import ClipSection as ClipSection

if TYPE_CHECKING:
    from mav.storage import Folder

MEAN = (0.48145466, 0.4578275, 0.40821073)  # OpenAI's, which open_clip's models share unless they say otherwise
STD = (0.26862954, 0.26130258, 0.27577711)
HEADS = ("punsafe", "pwatermark")
WEIGHTS, FACTS, HEAD_WEIGHTS = "clip.safetensors", "clip.json", "heads.safetensors"


class ClipModel(nn.Module):
    """An open_clip model with its tokenizer, its pixel preprocessing and its heads."""

    model: Any  # an open_clip CLIP
    mean: Tensor
    std: Tensor

    def __init__(self, config: ClipConfig | None = None, architecture: str = "") -> None:
        """A fresh, untrained CLIP of these sizes, or of an open_clip architecture's."""
        super().__init__()
        self.config, self.architecture = config, architecture
        self.model = _named(architecture) if architecture else _built(config or ClipConfig())
        self.context = int(self.model.context_length)
        self._tokenizer = _tokenizer(self.context)
        size = self.model.visual.image_size
        self.image_size = int(size[0] if isinstance(size, tuple) else size)
        self.register_buffer(
            "mean", torch.tensor(getattr(self.model.visual, "image_mean", None) or MEAN).view(3, 1, 1), persistent=False
        )
        self.register_buffer(
            "std", torch.tensor(getattr(self.model.visual, "image_std", None) or STD).view(3, 1, 1), persistent=False
        )
        self.heads = nn.ModuleDict()
        self.sources: dict[str, str] = {}  # recipe key of a scorer's file -> its sha256

    @property
    def device(self) -> torch.device:
        return self.mean.device

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return int(self.model.text_projection.shape[-1])

    @classmethod
    def create(cls, section: ClipSection) -> ClipModel:
        """What the recipe asks for: pretrained weights and heads from paths, or a fresh CLIP of `section.network`'s sizes.

        Raises UserError when a file is not what its key says.
        """
        if not section.pretrained:
            clip = cls(section.network)
        else:
            if not section.architecture:
                raise UserError(
                    "`clip.pretrained` needs `clip.architecture`: say which open_clip model it is, for example ViT-L-14."
                )
            clip = cls(architecture=section.architecture)
            state = {
                name.removeprefix("module."): value
                for name, value in read_state(section.pretrained, "clip.pretrained").items()
            }
            try:
                clip.model.load_state_dict(
                    {n: v for n, v in state.items() if n not in ("input_resolution", "context_length", "vocab_size")}
                )
            except RuntimeError as error:
                raise UserError(
                    f"`clip.pretrained` ({section.pretrained}) does not hold the weights of {section.architecture}: "
                    f"{' '.join(str(error).split())[:160]}... Give the matching `clip.architecture`."
                ) from None
        for name, path in (("punsafe", section.nsfw_head), ("pwatermark", section.watermark_head)):
            if path:
                key = "clip.nsfw_head" if name == "punsafe" else "clip.watermark_head"
                clip.heads[name] = read_head(path, clip.dim, key)
                with open(path, "rb") as file:
                    clip.sources[key] = hashlib.file_digest(file, "sha256").hexdigest()
        return clip

    # -------------------------------------------------------------------------------------------------------- encoding

    def tokenize(self, texts: list[str]) -> Tensor:
        """BPE tokens, int64 (B, context), zero padded; every value fits uint16. Longer texts are cut."""
        if not texts:
            return torch.zeros(0, self.context, dtype=torch.long)
        tokens: Tensor = self._tokenizer(texts)
        return tokens

    def encode_image(self, pixels: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) of any size -> (B, d) of unit norm. The shorter side is resized (bicubic, antialiased), the middle kept."""
        x = pixels.float()
        height, width = x.shape[-2:]
        if (height, width) != (self.image_size, self.image_size):
            scale = self.image_size / min(height, width)
            size = (max(self.image_size, round(height * scale)), max(self.image_size, round(width * scale)))
            x = F.interpolate(x, size=size, mode="bicubic", antialias=True).clamp(0, 255)
            top, left = (size[0] - self.image_size) // 2, (size[1] - self.image_size) // 2
            x = x[..., top : top + self.image_size, left : left + self.image_size]
        embedding: Tensor = self.model.encode_image((x / 255 - self.mean) / self.std, normalize=True)
        return embedding

    def encode_text(self, tokens: Tensor) -> Tensor:
        """int64 (B, context) -> (B, d) of unit norm."""
        embedding: Tensor = self.model.encode_text(tokens, normalize=True)
        return embedding

    def contrastive_loss(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        """CLIP's symmetric cross-entropy over the batch, a scalar.

        Rows with equal tokens share their target: in a small vocabulary a batch holds the same caption several times, and calling
        its other pictures wrong would push apart what belongs together.
        """
        logits = self.model.logit_scale.exp().clamp(max=100) * self.encode_image(pixels) @ self.encode_text(tokens).T
        same = (tokens[:, None] == tokens[None]).all(-1).float()
        target = same / same.sum(1, keepdim=True)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    @torch.no_grad()
    def settle(self, pixels: Tensor, batch_size: int = 256) -> None:
        """Ends training: measures the batch norms' statistics anew over these pictures, uint8 (N, 3, H, W), and turns to evaluation.

        The weights handed on are averages over steps, which the statistics gathered along the way do not describe. Pictures
        beyond a few thousand add nothing.
        """
        norms = [m for m in self.modules() if isinstance(m, nn.BatchNorm2d)]
        self.train()
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
        if norms:
            for part in pixels.split(batch_size):
                self.encode_image(part)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        self.eval()

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        return self.contrastive_loss(pixels, tokens)

    # ----------------------------------------------------------------------------------------------------------- heads

    @torch.no_grad()
    def scores(self, image_embedding: Tensor) -> dict[str, Tensor]:
        """(B, d) embeddings -> {"punsafe": (B,), "pwatermark": (B,)}, only those for which there is a head on embeddings."""
        return {name: head(image_embedding.float()) for name, head in self.heads.items() if isinstance(head, Head)}

    @torch.no_grad()
    def pixel_scores(self, pixels: Tensor) -> dict[str, Tensor]:
        """uint8 (B, 3, H, W) -> {name: (B,)} of the scorers that look at the picture itself."""
        return {name: head(pixels) for name, head in self.heads.items() if isinstance(head, WatermarkClassifier)}

    @property
    def pixel_heads(self) -> list[str]:
        """Names of the scorers that look at pixels and not at the embedding."""
        return [name for name, head in self.heads.items() if isinstance(head, WatermarkClassifier)]

    def fit_heads(
        self, embeddings: Tensor, punsafe: Tensor, pwatermark: Tensor
    ) -> dict[str, dict[str, float | int | None]]:
        """Fits a logistic regression for each score on the rows where it is known (not NaN); heads loaded from paths are kept.

        Every fifth known row is held out. Returned for each head: {"rows", "held_out", "cut", "auc", "accuracy"}, the last two on the
        held-out rows with a score >= cut as the positive class (auc is None when there are none to tell apart). The cut is 0.5, or the
        middle of the known scores when none reaches 0.5, as where a table was screened before.
        """
        facts: dict[str, dict[str, float | int | None]] = {}
        for name, known in (("punsafe", punsafe), ("pwatermark", pwatermark)):
            if name in self.heads:
                continue
            rows = torch.nonzero(~torch.isnan(known.double()))[:, 0]
            if len(rows) == 0:
                continue
            x, y = embeddings[rows].double(), known[rows].double()
            held = torch.arange(len(rows)) % 5 == 4
            head = logistic_head(x[~held], y[~held])
            self.heads[name] = head.to(next(self.model.parameters()).device)
            cut = 0.5 if y.max() >= 0.5 else float(y.min() + y.max()) / 2
            positive = y[held] >= cut
            guess = head(x[held].float()) if held.any() else x.new_zeros(0)
            facts[name] = {
                "rows": len(rows),
                "held_out": int(held.sum()),
                "cut": cut,
                "auc": area_under_curve(guess, positive),
                "accuracy": float(((guess >= cut) == positive).double().mean()) if held.any() else None,
            }
        return facts

    # --------------------------------------------------------------------------------------------------------- storage

    def save(self, folder: Folder) -> None:
        """Writes clip.safetensors, clip.json and heads.safetensors."""
        from safetensors.torch import save

        folder.write_bytes(WEIGHTS, save({name: value.contiguous() for name, value in self.model.state_dict().items()}))
        if self.heads:
            folder.write_bytes(
                HEAD_WEIGHTS, save({name: value.contiguous() for name, value in self.heads.state_dict().items()})
            )
        config = dataclasses.asdict(self.config) if self.config else None
        kinds = {
            name: "pixels" if isinstance(head, WatermarkClassifier) else "embedding"
            for name, head in sorted(self.heads.items())
        }
        facts = {
            "architecture": self.architecture,
            "config": config,
            "dim": self.dim,
            "context": self.context,
            "heads": kinds,
        }
        facts |= {"sources": self.sources}
        folder.write_json(FACTS, facts)

    @classmethod
    def load(cls, folder: Folder, device: str = "cpu") -> ClipModel:
        """Reads what `save` wrote; in evaluation mode, gradients off."""
        from safetensors.torch import load

        try:
            facts: dict[str, Any] = json.loads(folder.read_bytes(FACTS))
        except FileNotFoundError:
            raise UserError(f"There is no CLIP in {folder.url}: run the `clip` stage first.") from None
        clip = cls(ClipConfig(**facts["config"]) if facts["config"] else None, facts["architecture"])
        clip.sources = facts["sources"]
        clip.model.load_state_dict(load(folder.read_bytes(WEIGHTS)))
        if facts["heads"]:
            state = load(folder.read_bytes(HEAD_WEIGHTS))
            for name, kind in facts["heads"].items():
                part = {n.removeprefix(f"{name}."): v for n, v in state.items() if n.startswith(f"{name}.")}
                of_pixels = {n.removeprefix("model."): v for n, v in part.items()}
                clip.heads[name] = (
                    WatermarkClassifier.from_state(of_pixels) if kind == "pixels" else Head.from_state(part)
                )
        return clip.to(device).eval().requires_grad_(False)


@functools.cache
def _tokenizer(context: int) -> Any:
    """open_clip's own BPE, whose merges take a second to read."""
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer(context_length=context)


def _built(config: ClipConfig) -> nn.Module:
    from open_clip.model import CLIP

    vision = {
        "layers": (config.vision_blocks,) * 4,
        "width": config.vision_width,
        "head_width": 2 * config.vision_width,  # 16 heads in the attention that pools
        "image_size": config.image_size,
    }
    text = {
        "context_length": config.text_context,
        "width": config.text_width,
        "heads": config.text_heads,
        "layers": config.text_layers,
    }
    model: nn.Module = CLIP(config.embedding_dim, vision, text)
    return model


def _named(architecture: str) -> nn.Module:
    from open_clip import get_model_config
    from open_clip.model import CLIP

    config = get_model_config(architecture)
    if (
        config is None
        or "hf_model_name" in config.get("text_cfg", {})
        or "hf_tokenizer_name" in config.get("text_cfg", {})
    ):
        raise UserError(
            f"`clip.architecture` is {architecture!r}: give an open_clip model with CLIP's own tokenizer, for example ViT-L-14."
        )
    parts = {key: config[key] for key in ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu") if key in config}
    model: nn.Module = CLIP(**parts)
    return model
