"""A release: trained networks as safetensors and json with a model card, in a folder that can be pushed to a hub repository as it is."""

import json
from collections.abc import Mapping
from typing import Any

from mav.errors import UserError
from mav.recipes import Recipe, to_plain
from mav.storage import Artifact, Folder

CARD = "README.md"
LEFT_OUT = ("start.json",)  # names the operator's files
SHOWN_POINTS = 6  # of each curve, in the card


def write_release(
    recipe: Recipe, networks: Mapping[str, Artifact], data: Mapping[str, Artifact], folder: Folder
) -> dict[str, int]:
    """Writes a release anew into the folder: STAGE/network.safetensors and so on, and the card. Returns bytes by file name.

    networks: by stage. data: the artifacts that they were trained on. Raises UserError when a file is not what its manifest says.
    """
    folder.remove()
    for stage, artifact in networks.items():
        if problem := next(artifact.problems(), None):
            raise UserError(f"{stage} is not released: {problem}; rerun it.")
        for name in artifact.files():
            if name not in LEFT_OUT:
                folder.write_bytes(f"{stage}/{name}", artifact.folder.read_bytes(name))
    folder.write_bytes(CARD, card(recipe, networks, data).encode())
    return {name: folder.size(name) for name in folder.names()}


def push(folder: Folder, repository: str, token: str) -> str:
    """Uploads the folder to a hub repository, made if there is none; returns its address. Raises UserError when the hub refuses."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    hub = HfApi(token=token)
    try:
        address = hub.create_repo(repository, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=folder.root, commit_message="Networks and card")
    except (HfHubHTTPError, ValueError, OSError) as error:
        raise UserError(f"{repository} was not pushed: {' '.join(str(error).split())[:300]}") from None
    return str(address)


def card(recipe: Recipe, networks: Mapping[str, Artifact], data: Mapping[str, Artifact]) -> str:
    """The model card: what it is, what it was trained on, how, what it cost, and how it went. A function of the artifacts alone."""
    lines = [
        "---",
        "library_name: make-a-video-system",
        "pipeline_tag: text-to-video",
        "tags: [make-a-video, text-to-video]",
        "---",
        "",
    ]
    lines += [f"# {recipe.name}", "", recipe.about, ""]
    lines += ["Networks of Make-A-Video (Singer et al. 2022), the average weights of each training stage.", ""]

    lines += [
        "## Networks and their cost",
        "",
        "| stage | parameters | samples | loss | hours | fingerprint |",
        "|---|---|---|---|---|---|",
    ]
    for stage, artifact in networks.items():
        m, metrics = artifact.manifest, artifact.manifest.metrics
        numbers = (_number(metrics.get("parameters")), _number(metrics.get("samples")), _number(metrics.get("loss")))
        lines.append(f"| {stage} | {' | '.join(numbers)} | {m.seconds / 3600:.3g} | `{m.fingerprint[:16]}` |")
    seconds = sum(artifact.manifest.seconds for artifact in networks.values())
    cluster = recipe.cluster
    where = f"{cluster.workers} worker(s) of {cluster.cpus_per_worker} CPU(s) and {cluster.gpus_per_worker:g} GPU(s)"
    lines += ["", f"{seconds / 3600:.3g} hours in all, each stage on {where}.", ""]

    lines += [
        "## Data",
        "",
        "| artifact | rows in | rows kept | fingerprint | sha256 of its files |",
        "|---|---|---|---|---|",
    ]
    for name, artifact in data.items():
        m, counts = artifact.manifest, artifact.manifest.counts
        rows = " | ".join(_number(counts.get(key)) for key in ("rows_in", "rows_out"))
        lines.append(f"| {name} | {rows} | `{m.fingerprint[:16]}` | `{m.content[:16]}` |")
    lines += ["", "Nobody's pictures or clips are in this repository but for the sample sheets.", ""]

    lines += ["## Curves", ""]
    for stage, artifact in networks.items():
        lines += _curve(stage, artifact)
    lines += ["", "All points are in each stage's `curves.jsonl`.", ""]

    lines += ["## Recipe", "", f"Seed {recipe.seed}. Sections of the stages, as they were trained:", "", "```json"]
    sections = {name: value for artifact in networks.values() for name, value in artifact.manifest.config.items()}
    lines += [json.dumps(_without_paths(sections), indent=1, sort_keys=True), "```", ""]
    software = next(iter(networks.values())).manifest.software
    lines += ["## Software", "", ", ".join(f"{name} {version}" for name, version in sorted(software.items())), ""]
    return "\n".join(lines)


def _curve(stage: str, artifact: Artifact) -> list[str]:
    if "curves.jsonl" not in artifact.manifest.files:
        return []
    points = [json.loads(line) for line in artifact.folder.read_bytes("curves.jsonl").splitlines()]
    rows = []
    for kind in ("loss", "validation"):
        known = [point for point in points if kind in point]
        chosen = [known[i * (len(known) - 1) // max(1, SHOWN_POINTS - 1)] for i in range(min(SHOWN_POINTS, len(known)))]
        if chosen:
            rows.append(f"- {stage}, {kind}: " + ", ".join(f"{p[kind]:.4g} at {_number(p['samples'])}" for p in chosen))
    return rows


def _number(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _without_paths(value: Any) -> Any:
    """Plain data with paths cut to the file's name: where the operator keeps files is nobody's business."""
    if isinstance(value, dict):
        return {key: _without_paths(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_without_paths(v) for v in value]
    return value.rstrip("/").rpartition("/")[2] if isinstance(value, str) else to_plain(value)
