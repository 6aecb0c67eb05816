"""CLIP, through open_clip: the embedding of pictures and texts that all other networks are conditioned on.

It is either pretrained (an open_clip architecture and the path of its state dict; nothing is fetched from a hub) or a
tiny one that is built from `ClipConfig` and trained in the `clip` stage. Two heads estimate `punsafe` and `pwatermark`
where a table has no score: LAION's published ones from a path, or logistic regressions fitted on the rows whose score
is known.
"""

import dataclasses
import functools
import hashlib
import json
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mav.errors import UserError
from mav.imports import without_wandb
from mav.models.heads import Head, WatermarkClassifier, area_under_curve, logistic_head, read_head, read_state
from mav.recipes import ClipConfig, ClipSection
from mav.storage import Folder

MEAN = (0.48145466, 0.4578275, 0.40821073)  # OpenAI's, which open_clip's models share unless they say otherwise
STD = (0.26862954, 0.26130258, 0.27577711)
HEADS = ("punsafe", "pwatermark")
AT_ONCE = 256  # pictures of a forward pass that measures batch norms
WEIGHTS, DESCRIPTION, HEAD_WEIGHTS = "clip.safetensors", "clip.json", "heads.safetensors"
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")  # sizes among the tensors of OpenAI's state dicts
HeadStatistics = dict[str, dict[str, float | int | None]]


class ClipModel(nn.Module):
    """The network of the `clip` stage: an open_clip model with its tokenizer, its pixel preprocessing and its heads."""

    model: Any  # an open_clip CLIP
    mean: Tensor
    std: Tensor

    def __init__(self, config: ClipConfig | None = None, architecture: str = "") -> None:
        """Builds an untrained CLIP of these sizes, or of an open_clip architecture's."""
        super().__init__()
        self.config, self.architecture = config, architecture
        self.model = _named(architecture) if architecture else _built(config or ClipConfig())
        self.context = int(self.model.context_length)
        self._tokenizer = _tokenizer(self.context)
        visual = self.model.visual
        size = visual.image_size
        self.image_size = int(size[0] if isinstance(size, tuple) else size)
        mean, std = getattr(visual, "image_mean", None) or MEAN, getattr(visual, "image_std", None) or STD
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.heads = nn.ModuleDict()
        self.sources: dict[str, str] = {}  # recipe key of a head's file -> its sha256

    @property
    def device(self) -> torch.device:
        return self.mean.device

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return int(self.model.text_projection.shape[-1])

    @classmethod
    def create(cls, section: ClipSection) -> Self:
        """Builds what the recipe asks for: weights and heads from paths, or a new CLIP of `section.network`'s sizes.

        Raises UserError when a file is not what its key says.
        """
        if not section.pretrained:
            clip = cls(section.network)
        elif not section.architecture:
            raise UserError("`clip.pretrained` needs `clip.architecture`: name the open_clip model, as in ViT-L-14.")
        else:
            clip = cls(architecture=section.architecture)
            read = read_state(section.pretrained, "clip.pretrained")
            state = {name.removeprefix("module."): value for name, value in read.items()}
            try:
                clip.model.load_state_dict({name: v for name, v in state.items() if name not in NOT_WEIGHTS})
            except RuntimeError as error:
                raise UserError(
                    f"`clip.pretrained` ({section.pretrained}) does not hold the weights of {section.architecture}: "
                    f"{' '.join(str(error).split())[:160]}... Give the matching `clip.architecture`."
                ) from None
        for name, key in (("punsafe", "nsfw_head"), ("pwatermark", "watermark_head")):
            if path := getattr(section, key):
                clip.heads[name] = read_head(path, clip.dim, f"clip.{key}")
                with open(path, "rb") as file:
                    clip.sources[f"clip.{key}"] = hashlib.file_digest(file, "sha256").hexdigest()
        return clip

    def tokenize(self, texts: list[str]) -> Tensor:
        """BPE tokens, int64 (B, context), padded with zeros; every value fits uint16. Longer texts are cut."""
        return self._tokenizer(texts) if texts else torch.zeros(0, self.context, dtype=torch.long)

    def encode(self, text: str) -> list[int]:
        """Returns all tokens of a text, without the marks of start and end."""
        return [int(token) for token in self._tokenizer.encode(text)]

    def decode(self, tokens: list[int]) -> str:
        """Returns the text of tokens, in the tokenizer's lower case."""
        return str(self._tokenizer.decode(tokens)).strip()

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Embeds pictures, uint8 (B, 3, H, W) of any size, as (B, d) of unit norm.

        The shorter side is resized to the model's (bicubic, antialiased) and the middle is kept.
        """
        x, side = pixels.float(), self.image_size
        height, width = x.shape[-2:]
        if (height, width) != (side, side):
            scale = side / min(height, width)
            size = (max(side, round(height * scale)), max(side, round(width * scale)))
            x = F.interpolate(x, size=size, mode="bicubic", antialias=True).clamp(0, 255)
            top, left = (size[0] - side) // 2, (size[1] - side) // 2
            x = x[..., top : top + side, left : left + side]
        return self.model.encode_image((x / 255 - self.mean) / self.std, normalize=True)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Embeds tokens, int64 (B, context), as (B, d) of unit norm."""
        return self.model.encode_text(tokens, normalize=True)

    def contrastive_loss(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        """CLIP's symmetric cross-entropy over the batch, a scalar.

        Rows with equal tokens share their target. In a small vocabulary a batch holds the same caption several times,
        and to call its other pictures wrong would push apart what belongs together.
        """
        logits = self.model.logit_scale.exp().clamp(max=100) * self.encode_image(pixels) @ self.encode_text(tokens).T
        same = (tokens[:, None] == tokens[None]).all(-1).float()
        target = same / same.sum(1, keepdim=True)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        return self.contrastive_loss(pixels, tokens)

    @torch.no_grad()
    def measure_batch_norms(self, pixels: Tensor) -> None:
        """Measures the batch norms' statistics again over pictures, uint8 (N, 3, H, W), and ends in evaluation mode.

        It is called at the end of training: the exported weights are averages over steps, which the statistics gathered
        on the way do not describe. More than a few thousand pictures change nothing.
        """
        norms = [m for m in self.modules() if isinstance(m, nn.BatchNorm2d)]
        self.train()
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
        for part in pixels.split(AT_ONCE) if norms else ():
            self.encode_image(part)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        self.eval()

    @torch.no_grad()
    def scores(self, image_embedding: Tensor) -> dict[str, Tensor]:
        """Scores (B, d) embeddings with the heads that read them: {name: (B,)}."""
        return {name: head(image_embedding.float()) for name, head in self.heads.items() if isinstance(head, Head)}

    @torch.no_grad()
    def pixel_scores(self, pixels: Tensor) -> dict[str, Tensor]:
        """Scores pictures, uint8 (B, 3, H, W), with the heads that read pixels: {name: (B,)}."""
        return {name: self.heads[name](pixels) for name in self.pixel_heads}

    @property
    def pixel_heads(self) -> list[str]:
        """Names of the heads that read pixels instead of the embedding."""
        return [name for name, head in self.heads.items() if isinstance(head, WatermarkClassifier)]

    def fit_heads(self, embeddings: Tensor, punsafe: Tensor, pwatermark: Tensor) -> HeadStatistics:
        """Fits a logistic regression for each score without a head, on the rows where it is known (not NaN).

        The embeddings (n, d) and the scores (n,) are on the processor, where a few thousand rows take no time.
        Every fifth known row is held out. Returns for each head {"rows", "held_out", "cut", "auc", "accuracy"}. The
        last two are measured on the held-out rows, where a score >= cut is the positive class (auc is None when only
        one class is present). The cut is 0.5, or the middle of the known scores when none reaches 0.5, as in a table
        that was screened before.
        """
        statistics: HeadStatistics = {}
        for name, known in (("punsafe", punsafe), ("pwatermark", pwatermark)):
            rows = torch.nonzero(~torch.isnan(known.double()))[:, 0]
            if name in self.heads or len(rows) == 0:
                continue
            x, y = embeddings[rows].double(), known[rows].double()
            held = torch.arange(len(rows)) % 5 == 4
            head = logistic_head(x[~held], y[~held])
            cut = 0.5 if y.max() >= 0.5 else float(y.min() + y.max()) / 2
            positive = y[held] >= cut
            guess = head(x[held].float()) if held.any() else x.new_zeros(0)
            accuracy = float(((guess >= cut) == positive).double().mean()) if held.any() else None
            counts = {"rows": len(rows), "held_out": int(held.sum())}
            statistics[name] = counts | {"cut": cut, "auc": area_under_curve(guess, positive), "accuracy": accuracy}
            self.heads[name] = head.to(self.device)
        return statistics

    def save(self, folder: Folder) -> None:
        """Writes clip.safetensors, clip.json and, when there are heads, heads.safetensors."""
        from safetensors.torch import save

        for name, module in ((WEIGHTS, self.model), (HEAD_WEIGHTS, self.heads)):
            if state := module.state_dict():
                folder.write_bytes(name, save({key: value.contiguous() for key, value in state.items()}))
        kinds = {name: "pixels" if name in self.pixel_heads else "embedding" for name in sorted(self.heads)}
        config = dataclasses.asdict(self.config) if self.config else None
        description = {"architecture": self.architecture, "config": config, "dim": self.dim, "context": self.context}
        folder.write_json(DESCRIPTION, description | {"heads": kinds, "sources": self.sources})

    @classmethod
    def load(cls, folder: Folder, device: str = "cpu") -> Self:
        """Reads what `save` wrote, in evaluation mode and without gradients. Raises UserError when there is nothing."""
        from safetensors.torch import load

        try:
            description: dict[str, Any] = json.loads(folder.read_bytes(DESCRIPTION))
        except FileNotFoundError:
            raise UserError(f"There is no CLIP in {folder.url}: run the `clip` stage first.") from None
        config = description["config"]
        clip = cls(ClipConfig(**config) if config else None, description["architecture"])
        clip.sources = description["sources"]
        clip.model.load_state_dict(load(folder.read_bytes(WEIGHTS)))
        state = load(folder.read_bytes(HEAD_WEIGHTS)) if description["heads"] else {}
        for name, kind in description["heads"].items():
            prefix = f"{name}.model." if kind == "pixels" else f"{name}."
            part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            clip.heads[name] = (WatermarkClassifier if kind == "pixels" else Head).from_state(part)
        return clip.to(device).eval().requires_grad_(False)


@functools.cache
def _tokenizer(context: int) -> Any:
    """open_clip's own BPE, kept because reading its merges takes a second."""
    with without_wandb():
        from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer(context_length=context)


def _built(config: ClipConfig) -> nn.Module:
    """A CLIP of these sizes; its image tower is CLIP's ResNet."""
    with without_wandb():
        from open_clip.model import CLIP

    width, blocks, size = config.vision_width, config.vision_blocks, config.image_size
    # With these head widths the attention that pools has 16 heads.
    vision = {"layers": (blocks,) * 4, "width": width, "head_width": 2 * width, "image_size": size}
    text = {"context_length": config.text_context, "width": config.text_width}
    text |= {"heads": config.text_heads, "layers": config.text_layers}
    return CLIP(config.embedding_dim, vision, text)


def _named(architecture: str) -> nn.Module:
    """A CLIP of an open_clip architecture. Raises UserError when there is none, or when its tokenizer is not CLIP's."""
    with without_wandb():
        from open_clip import get_model_config
        from open_clip.model import CLIP

    config = get_model_config(architecture)
    if config is None or {"hf_model_name", "hf_tokenizer_name"} & set(config.get("text_cfg", {})):
        raise UserError(
            f"`clip.architecture` is {architecture!r}: give an open_clip model with CLIP's own tokenizer, "
            "for example ViT-L-14."
        )
    parts = {key: config[key] for key in ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu") if key in config}
    return CLIP(**parts)
