"""The published weights: which files are known, how each file's names become ours, and what to do when one is missing.

Nothing is downloaded. A file is read without running code it carries: safetensors, `torch.load(weights_only=True)`, numpy without
pickles, or the tensors of a TorchScript archive. Its sha256 goes beside every number it makes; where the published digest is known, a
file of that name with another digest is refused. `NAME.safetensors`, a conversion of one's own with our names, is always taken.

| network | file's names | ours |
|---|---|---|
| I3D | `Mixed_3b.b1a.conv3d.weight`, `.bn.*`, `logits.conv3d.*` (VideoGPT's and TorchScript's spelling) | the same |
| I3D | `mixed_3b.branch_1.0.conv3d.weight`, `.batch3d.*`, `conv3d_0c_1x1.conv3d.*` (kinetics_i3d_pytorch's) | as above |
| C3D | `conv1a/W`, `conv1a/b`, ..., `mean/b` (Chainer: 128 - mean) or `conv1a.weight`, ..., `mean` | `conv1a.weight`, ..., `mean` |
| Inception | `Mixed_5b.branch1x1.conv.weight`, ... (pytorch-fid's and torch-fidelity's) | the same |
| CLIP | OpenAI's and open_clip's names | the same |
"""

import hashlib
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mav.errors import UserError
from mav.evaluation.networks import fold
from mav.evaluation.networks.c3d import C3D, CROP
from mav.evaluation.networks.c3d import SIZE as C3D_SIZE
from mav.evaluation.networks.i3d import I3D
from mav.evaluation.networks.inception import Inception


@dataclass(frozen=True)
class Published:
    """One network's weights as others distribute them."""

    title: str
    files: Mapping[str, str]  # file name -> sha256, "" where nobody has published one
    licence: str
    source: str  # where its authors or users distribute it
    extra: str = ""  # a second file that some of them need


INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
PUBLISHED = {
    "i3d": Published(
        "I3D, RGB, Kinetics-400",
        {
            "i3d_torchscript.pt": "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2",
            "i3d_pretrained_400.pt": "",
        },
        "Apache-2.0 (DeepMind's kinetics-i3d, of which both files are conversions)",
        "the StyleGAN-V repository's FVD section links i3d_torchscript.pt, VideoGPT's i3d_pretrained_400.pt",
    ),
    "c3d": Published(
        "C3D, Sports-1M, fine-tuned on UCF-101",
        {"c3d_ucf101.pt": "", "conv3d_deepnetA_ucf.npz": ""},
        "none stated with the weights",
        "the StyleGAN-V repository's metrics link c3d_ucf101.pt, the TGAN2 repository conv3d_deepnetA_ucf.npz with mean2.npz",
        "mean2.npz",
    ),
    "inception": Published(
        "Inception v3 of 2015-12-05",
        {
            "weights-inception-2015-12-05-6726825d.pth": INCEPTION_SHA256,
            "pt_inception-2015-12-05-6726825d.pth": INCEPTION_SHA256,
        },
        "Apache-2.0",
        "releases of the torch-fidelity and pytorch-fid repositories on GitHub",
    ),
    "clip ViT-B-32": Published(
        "CLIP ViT-B/32 of OpenAI",
        {"ViT-B-32.pt": "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"},
        "MIT",
        "the links in OpenAI's CLIP repository, clip/clip.py",
    ),
    "clip ViT-B-16": Published(
        "CLIP ViT-B/16 of OpenAI",
        {"ViT-B-16.pt": "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"},
        "MIT",
        "the links in OpenAI's CLIP repository, clip/clip.py",
    ),
}
NETWORKS: dict[str, Callable[[], nn.Module]] = {"i3d": I3D, "c3d": C3D, "inception": Inception}


def find(network: str, folder: str) -> tuple[Path, str]:
    """The file of a network's weights in the folder, and its sha256.

    Raises UserError saying how to get it when there is none, or when its digest is not the published one.
    """
    known = PUBLISHED.get(network) or Published(
        network, {f"{network.removeprefix('clip ')}.pt": ""}, "its authors'", "open_clip's list"
    )
    own = f"{network.removeprefix('clip ')}.safetensors"
    names = [*known.files, own]
    if folder:
        for name in names:
            path = Path(folder) / name
            if path.is_file():
                digest = _sha256(str(path), path.stat().st_mtime_ns)
                wanted = known.files.get(name, "")
                if wanted and digest != wanted:
                    raise UserError(
                        f"{path} has sha256 {digest[:16]}..., the published file {wanted[:16]}...: get it again."
                    )
                return path, digest
    raise UserError(
        f"The weights of {known.title} are not in {folder or 'any folder (--weights-dir names one)'}: put one of {', '.join(names)} there "
        f"(from {known.source}; licence: {known.licence}; nothing is downloaded here)."
    )


@cache
def _sha256(path: str, changed: int) -> str:
    """Digest of a file in its present state, read once a process."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_state(path: Path) -> dict[str, Tensor]:
    """Name to tensor, of any of the formats above. Raises UserError when it is none."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        if zipfile.is_zipfile(path) and any(
            name.endswith("constants.pkl") for name in zipfile.ZipFile(path).namelist()
        ):
            return dict(torch.jit.load(str(path), map_location="cpu").state_dict())
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
        return {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    except Exception as error:  # each format has its own; all mean the same to the user
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{path} cannot be read as weights ({type(error).__name__}: {reason}): get the file again."
        ) from None


def rename(network: str, state: Mapping[str, Tensor], extra: np.ndarray | None = None) -> dict[str, Tensor]:
    """The file's names to ours, as the table above says. extra: C3D's mean cube (1, 3, 16, 128, 171) where the weights have none."""
    if network == "i3d":
        return {_i3d_name(name): value for name, value in state.items()}
    if network == "c3d":
        return _c3d_state(state, extra)
    return {name.removeprefix("module."): value for name, value in state.items()}


_I3D_UNITS = {
    "branch_0": "b0",
    "branch_1.0": "b1a",
    "branch_1.1": "b1b",
    "branch_2.0": "b2a",
    "branch_2.1": "b2b",
    "branch_3.1": "b3b",
}


def _i3d_name(name: str) -> str:
    name = re.sub(r"^.*?(?=(conv3d_\d|mixed_\d|logits\.))", "", name, flags=re.IGNORECASE)  # a wrapper's prefix
    name = name.replace("conv3d_0c_1x1.", "logits.").replace("batch3d.", "bn.")
    name = re.sub(r"branch_\d(\.\d(?=\.(conv3d|bn)))?", lambda match: _I3D_UNITS.get(match[0], match[0]), name)
    return re.sub(r"^(conv3d_|mixed_)", lambda match: match[0].capitalize(), name)


def _c3d_state(state: Mapping[str, Tensor], extra: np.ndarray | None) -> dict[str, Tensor]:
    renamed = {}
    for name, value in state.items():
        match = re.search(r"(conv\d[ab]|fc\d|mean)(?:[./](W|b|weight|bias))?$", name)
        if match and match[1] == "mean":
            cube = value.reshape(3, value.shape[-3], value.shape[-2], value.shape[-1]).float()
            renamed["mean"] = 128 - cube if match[2] else cube
        elif match and match[2]:
            renamed[f"{match[1]}.{'weight' if match[2] in ('W', 'weight') else 'bias'}"] = value.float()
    if "mean" not in renamed and extra is not None:
        window = slice(CROP, CROP + C3D_SIZE)
        renamed["mean"] = torch.from_numpy(
            np.asarray(extra, np.float32).reshape(3, 16, *extra.shape[-2:])[..., window, window].copy()
        )
    return renamed


def load_network(network: str, folder: str, device: str = "cpu") -> tuple[nn.Module, str]:
    """I3D, C3D or Inception with its weights, batch norms folded, and the weights' sha256. Raises UserError as `find` does."""
    path, digest = find(network, folder)
    extra, known = None, PUBLISHED[network]
    if known.extra and (Path(folder) / known.extra).is_file():
        extra = read_state(Path(folder) / known.extra)["mean"].numpy()
    module = NETWORKS[network]()
    own = module.state_dict()
    given = rename(network, read_state(path), extra)
    missing = [name for name in own if name not in given and not name.endswith(("num_batches_tracked", ".bn.weight"))]
    if missing:
        raise UserError(
            f"{path} holds no {missing[0]!r} for {known.title} ({len(missing)} of {len(own)} names are missing): "
            f"give {' or '.join(known.files)}{f' with {known.extra}' if known.extra else ''}."
        )
    wrong = [n for n, value in own.items() if n in given and given[n].shape != value.shape]
    if wrong:
        raise UserError(
            f"{path}: {wrong[0]!r} has the shape {tuple(given[wrong[0]].shape)}, not {tuple(own[wrong[0]].shape)}."
        )
    # Batch norms without a learned scale, as TensorFlow's, keep ours of one.
    module.load_state_dict({name: given.get(name, value).to(value.dtype) for name, value in own.items()})
    fold(module)
    if network != "c3d":  # where it is faster
        layout = torch.channels_last if network == "inception" else torch.channels_last_3d
        for parameter in module.parameters():
            if parameter.dim() == (4 if network == "inception" else 5):
                parameter.data = parameter.data.contiguous(memory_format=layout)
    return module.eval().requires_grad_(False).to(device), digest
