"""The published weights: which files are known, how their names are translated, and what to do when one is missing.

Nothing is downloaded. A file is read without running code in it (`mav.models.checkpoints.weight_files`). Its sha256 is
stored with every number that it makes. A file with the name but not the digest of a published one is refused.
`NAME.safetensors`, a conversion with our names, is always accepted. What wrappers put before names (`module.`,
`model.`, `backbone.`) is left out.

| network | names in the file | our names |
|---|---|---|
| I3D | `Mixed_3b.b1a.conv3d.weight`, `.bn.*`, `logits.conv3d.*` (VideoGPT, TorchScript) | the same |
| I3D | `mixed_3b.branch_1.0.conv3d.weight`, `.batch3d.*`, `conv3d_0c_1x1.*` (kinetics_i3d_pytorch) | as above |
| C3D | `conv1a/W`, `conv1a/b`, ..., `mean/b` (Chainer: 128 - mean) | `conv1a.weight`, ..., `mean` |
| C3D | `conv1a.weight`, ..., `mean` | the same |
| Inception | `Mixed_5b.branch1x1.conv.weight`, ... (pytorch-fid, torch-fidelity) | the same |
| CLIP | those of OpenAI and open_clip | the same |
| DINO, DINOv2 | `blocks.0.attn.qkv.weight`, ... (facebookresearch) | the same |
| VideoMAE | `blocks.0.attn.q_bias`, `.v_bias` (OpenGVLab) | `blocks.0.attn.qkv.bias`, 0 for the keys |
| V-JEPA | `module.backbone.blocks.0...`, and `module.pooler...` of the probe (facebookresearch) | `blocks.0...` |
| MUSIQ | `transformer_encoder.transformer.encoderblock_0.attention.query.weight`, ... (pyiqa) | the same |
| RAFT | `module.fnet.layer1.0.conv1.weight`, ..., `module.update_block.mask.0.weight`, ... (its authors) | as below |
| RAFT | `feature_encoder.layer1.0.convnormrelu1.0.weight`, ... (torchvision) | the same |
| aesthetic | `weight`, `bias` (LAION) | read by `mav.evaluation.features` |
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mav.errors import UserError
from mav.evaluation.networks import fold, raft
from mav.evaluation.networks.c3d import C3D, COLUMNS, RESIZED, ROWS
from mav.evaluation.networks.c3d import FRAMES as C3D_FRAMES
from mav.evaluation.networks.i3d import I3D
from mav.evaluation.networks.inception import Inception
from mav.evaluation.networks.musiq import Musiq
from mav.evaluation.networks.vit import DINO, DINOV2, VideoMae, VisionTransformer
from mav.evaluation.networks.vjepa import VJepa
from mav.models.checkpoints.weight_files import read_tensors


@dataclass(frozen=True)
class Published:
    """The weights of one network as others distribute them."""

    title: str
    files: Mapping[str, str]  # file name -> sha256, "" where none is published
    licence: str
    source: str  # where its authors or users distribute it
    extra: str = ""  # a second file that some of them need,
    extra_sha256: str = ""
    halves: bool = False  # or all: the weights are in both


INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
I3D_SHA256 = "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2"
OPENAI = ("MIT", "the links in OpenAI's CLIP repository, clip/clip.py")
PUBLISHED = {
    "i3d": Published(
        "I3D, RGB, Kinetics-400",
        {
            "i3d_torchscript.pt": I3D_SHA256,
            "i3d_pretrained_400.pt": "55095f049e706479d48e221adcdb145b2b9dc930ba28b081ed72367ffaa32343",
        },
        "Apache-2.0 (DeepMind's kinetics-i3d, of which both files are conversions)",
        "links in the repositories of StyleGAN-V (its section on FVD) and of VideoGPT, in this order",
    ),
    "c3d": Published(
        "C3D, Sports-1M, fine-tuned on UCF-101",
        {"c3d_ucf101.pt": "", "conv3d_deepnetA_ucf.npz": ""},
        "none stated with the weights",
        "the StyleGAN-V repository's metrics link c3d_ucf101.pt, "
        "the TGAN2 repository conv3d_deepnetA_ucf.npz with mean2.npz",
        "mean2.npz",
        "f981f1e195822705d13bebadabeb2b5583a709696c3b14e5465a96da4cb2ade0",
    ),
    "inception": Published(
        "Inception v3 of 2015-12-05",
        {f"{name}-2015-12-05-6726825d.pth": INCEPTION_SHA256 for name in ("weights-inception", "pt_inception")},
        "Apache-2.0",
        "releases of the torch-fidelity and pytorch-fid repositories on GitHub",
    ),
    "dino": Published(
        "DINO ViT-B/16", {"dino_vitbase16_pretrain.pth": ""}, "Apache-2.0", "the DINO repository of facebookresearch"
    ),
    "dinov2": Published(
        "DINOv2 ViT-L/14", {"dinov2_vitl14_pretrain.pth": ""}, "Apache-2.0", "the DINOv2 repository of facebookresearch"
    ),
    "videomae": Published(
        "VideoMAE V2 ViT-g/14, fine-tuned on SSv2",
        {"vit_g_hybrid_pt_1200e_ssv2_ft.pth": ""},
        "MIT",
        "the model zoo of OpenGVLab's VideoMAEv2 repository; cd-fvd's code has its address",
    ),
    "vjepa": Published(
        "V-JEPA ViT-H/16 with its SSv2 probe's pooler",
        {"vith16.pth.tar": ""},
        "CC-BY-NC-4.0",
        "links in the V-JEPA repository of facebookresearch",
        "ssv2-probe.pth.tar",
        halves=True,
    ),
    "musiq": Published(
        "MUSIQ, SPAQ",
        {"musiq_spaq_ckpt-358bb6af.pth": "358bb6af275e28ea56821d44fb55c6cb83645db11f394d3ad65b2d149965ab50"},
        "Apache-2.0 (Google's MUSIQ, of which the file is a conversion; the converter's repository is noncommercial)",
        "releases of the IQA-PyTorch repository on GitHub, v0.1-weights",
    ),
    "raft": Published(
        "RAFT, FlyingChairs and FlyingThings3D",
        {
            "raft-things.pth": "fcfa4125d6418f4de95d84aec20a3c5f4e205101715a79f193243c186ac9a7e1",
            "raft_large_C_T_V1-22a6c225.pth": "",
        },
        "BSD-3-Clause",
        "models.zip of the RAFT repository of princeton-vl, which VBench takes too, or torchvision's model zoo",
    ),
    "aesthetic": Published(
        "LAION's aesthetic head on CLIP ViT-L/14",
        {"sa_0_4_vit_l_14_linear.pth": "2cd4e60f4f24ae3bcd57b847b13c1f3ba27edc28cc1a7f9ce74ee9f421243cba"},
        "MIT",
        "LAION-AI's repository aesthetic-predictor",
    ),
} | {
    f"clip {file.removesuffix('px')}": Published(f"CLIP {title} of OpenAI", {f"{file}.pt": sha256}, *OPENAI)
    for file, title, sha256 in (
        ("RN50", "ResNet-50", "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"),
        ("RN101", "ResNet-101", "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599"),
        ("RN50x4", "ResNet-50x4", "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd"),
        ("RN50x16", "ResNet-50x16", "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa"),
        ("RN50x64", "ResNet-50x64", "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c"),
        ("ViT-B-32", "ViT-B/32", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"),
        ("ViT-B-16", "ViT-B/16", "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"),
        ("ViT-L-14", "ViT-L/14", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"),
        ("ViT-L-14-336px", "ViT-L/14@336", "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02"),
    )
}
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "i3d": I3D, "c3d": C3D, "inception": Inception, "dino": partial(VisionTransformer, DINO),
    "dinov2": partial(VisionTransformer, DINOV2), "videomae": VideoMae, "vjepa": VJepa, "musiq": Musiq,
    "raft": raft.network,
}  # fmt: skip
WRAPPERS = re.compile(r"^((module|model|backbone|_orig_mod)\.)+")
I3D_BRANCHES = {"branch_0": "b0", "branch_1.0": "b1a", "branch_1.1": "b1b", "branch_2.0": "b2a", "branch_2.1": "b2b",
                "branch_3.1": "b3b"}  # fmt: skip


def find(network: str, folder: str) -> tuple[Path, str]:
    """Returns a network's file and its sha256. Raises UserError that says how to get it when it is missing or wrong."""
    name = network.removeprefix("clip ")
    known = PUBLISHED.get(network) or Published(network, {f"{name}.pt": ""}, "its authors'", "open_clip's list")
    files = {**known.files, f"{name}.safetensors": ""}
    for file, wanted in files.items() if folder else ():
        path, second = Path(folder) / file, Path(folder) / known.extra
        if path.is_file() and known.halves and file in known.files:
            if second.is_file():
                both = f"{_checked(path, wanted)} {_checked(second, known.extra_sha256)}"
                return path, hashlib.sha256(both.encode()).hexdigest()
        elif path.is_file():
            return path, _checked(path, wanted)
    where = folder or "any folder (--weights-dir names one)"
    wanted = f"one of {', '.join(files)}"
    if known.halves:
        wanted = f"{' or '.join(known.files)} with {known.extra}, or {name}.safetensors,"
    raise UserError(
        f"The weights of {known.title} are not in {where}: put {wanted} there "
        f"(from {known.source}; licence: {known.licence}; nothing is downloaded here)."
    )


def _checked(path: Path, wanted: str) -> str:
    """Returns the sha256 of a file. Raises UserError when it is not the wanted one, if there is one."""
    digest = _sha256(str(path), path.stat().st_mtime_ns)
    if wanted and digest != wanted:
        digests = f"sha256 {digest[:16]}..., the published file {wanted[:16]}..."
        raise UserError(f"{path} has {digests}: get it again.")
    return digest


@cache
def _sha256(path: str, changed: int) -> str:
    """Returns the digest of a file in its present state, which a process reads once."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_state(path: Path) -> dict[str, Tensor]:
    """Returns name -> tensor from any of the formats above. Raises UserError when the file has none of them."""
    try:
        state = read_tensors(path)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:240]
        raise UserError(f"{path} cannot be read as weights ({reason}): get the file again, or convert it.") from None
    keys = ("state_dict", "model", "module", "target_encoder", "classifier")
    state = next((state[key] for key in keys if isinstance(state.get(key), dict)), state)
    return {WRAPPERS.sub("", str(name)): value for name, value in state.items() if isinstance(value, Tensor)}


def rename(network: str, state: Mapping[str, Tensor], extra: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Translates names as in the table above. `extra` is what a second file holds, as C3D's mean cube."""
    if network == "i3d":
        return {_i3d_name(name): value for name, value in state.items()}
    if network == "c3d":
        return _c3d_state(state, extra["mean"].numpy() if extra else None)
    if network == "videomae":
        return _videomae_state(state)
    named = {**state, **(extra or {})}
    return {raft.torchvision_name(name): value for name, value in named.items()} if network == "raft" else named


def _i3d_name(name: str) -> str:
    name = re.sub(r"^.*?(?=(conv3d_\d|mixed_\d|logits\.))", "", name, flags=re.IGNORECASE)  # the prefix of a wrapper
    name = name.replace("conv3d_0c_1x1.", "logits.").replace("batch3d.", "bn.")
    name = re.sub(r"branch_\d(\.\d(?=\.(conv3d|bn)))?", lambda match: I3D_BRANCHES.get(match[0], match[0]), name)
    return re.sub(r"^(conv3d_|mixed_)", lambda match: match[0].capitalize(), name)


def _videomae_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = dict(state)
    for name in [name for name in state if name.endswith(".q_bias")]:
        q, v = renamed.pop(name), renamed.pop(name.replace("q_bias", "v_bias"))
        renamed[name.replace("q_bias", "qkv.bias")] = torch.cat([q, torch.zeros_like(q), v])
    return renamed


def _c3d_state(state: Mapping[str, Tensor], mean: np.ndarray | None) -> dict[str, Tensor]:
    renamed = {}
    for name, value in state.items():
        match = re.search(r"(conv\d[ab]|fc\d|mean)(?:[./](W|b|weight|bias))?$", name)
        if match and match[1] == "mean":
            cube = value.reshape(3, *value.shape[-3:]).float()
            renamed["mean"] = 128 - cube if match[2] else cube
        elif match and match[2]:
            renamed[f"{match[1]}.{'weight' if match[2] in ('W', 'weight') else 'bias'}"] = value.float()
    if "mean" not in renamed and mean is not None:
        whole = np.asarray(mean, np.float32).reshape(3, C3D_FRAMES, *RESIZED)
        renamed["mean"] = torch.from_numpy(whole[..., ROWS, COLUMNS].copy())
    return renamed


def unlike(given: Tensor, own: Tensor) -> str:
    """Says why a tensor of a file cannot stand in the place of a network's own; '' when it can."""
    if given.shape != own.shape:
        return f"has the shape {tuple(given.shape)}, not {tuple(own.shape)}"
    if given.layout != torch.strided or (own.is_floating_point() and not given.is_floating_point()):
        return f"is of the type {str(given.dtype).removeprefix('torch.')}, not of floats"
    return "" if given.isfinite().all() else "is not finite"


def load_network(network: str, folder: str, device: str = "cpu") -> tuple[nn.Module, str]:
    """Returns a network with its weights, batch norms folded, and their sha256. Raises UserError for a wrong file."""
    # The file, under our names.
    path, digest = find(network, folder)
    extra, known = None, PUBLISHED[network]
    if known.extra and (second := Path(folder) / known.extra).is_file():
        _checked(second, known.extra_sha256)
        extra = read_state(second)
    module = NETWORKS[network]()
    own = module.state_dict()
    wanted = f"{' or '.join(known.files)}{f' with {known.extra}' if known.extra else ''}"
    try:
        given = rename(network, read_state(path), extra)
    except (KeyError, RuntimeError, ValueError) as error:  # a part of one of ours is missing, or of another shape
        raise UserError(f"{path} holds no weights of {known.title} ({error}): give {wanted}.") from None
    # Every name must be there, in the right shape.
    missing = [name for name in own if name not in given and not name.endswith(("num_batches_tracked", ".bn.weight"))]
    if missing:
        counts = f"{len(missing)} of {len(own)} names are missing"
        raise UserError(f"{path} holds no {missing[0]!r} for {known.title} ({counts}): give {wanted}.")
    for name, value in own.items():
        if name in given and (wrong := unlike(given[name], value)):
            raise UserError(f"{path}: {name!r} of {known.title} {wrong}: give {wanted}.")
    # Batch norms without a learned scale, as in TensorFlow, keep our scale of one.
    module.load_state_dict({name: given.get(name, value).to(value.dtype) for name, value in own.items()})
    fold(module)
    if network != "c3d":  # C3D is not faster with channels last
        layout, dims = (torch.channels_last, 4) if network == "inception" else (torch.channels_last_3d, 5)
        for parameter in module.parameters():
            if parameter.dim() == dims:
                parameter.data = parameter.data.contiguous(memory_format=layout)
    return module.eval().requires_grad_(False).to(device), digest
