"""A release: trained networks as safetensors and json with a model card, in a folder ready for a hub repository."""

import json
from collections.abc import Mapping
from typing import Any

from mav.errors import UserError
from mav.recipes import Recipe, to_plain
from mav.storage import Artifact, Folder

CARD = "README.md"
LEFT_OUT = ("start.json",)  # it names files of the operator
SHOWN_POINTS = 6  # points of each curve in the card


def write_release(
    recipe: Recipe, networks: Mapping[str, Artifact], data: Mapping[str, Artifact], folder: Folder
) -> dict[str, int]:
    """Replaces the folder by a release: STAGE/network.safetensors and so on, and the card.

    Returns bytes by file name. `networks` are by stage, and `data` are the artifacts that they were trained on. Raises
    UserError when a file differs from its manifest.
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
    """Uploads the folder to a hub repository, made if needed, and returns its address. Raises UserError if refused."""
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
    """Returns the model card from the artifacts alone: what the networks are, their data, training, cost and losses."""
    trained = {stage: artifact.manifest for stage, artifact in networks.items()}
    sources = {name: artifact.manifest for name, artifact in data.items()}
    # The head that the hub reads, and the title.
    tags = ["library_name: make-a-video-system", "pipeline_tag: text-to-video", "tags: [make-a-video, text-to-video]"]
    about = "Networks of Make-A-Video (Singer et al. 2022), the average weights of each training stage."
    lines = ["---", *tags, "---", "", f"# {recipe.name}", "", recipe.about, "", about, ""]
    # One row for each network, and one for each artifact of data.
    rows = [
        [stage, *_numbers(m.metrics, "parameters", "samples", "loss"), f"{m.seconds / 3600:.3g}", _code(m.fingerprint)]
        for stage, m in trained.items()
    ]
    columns = ["stage", "parameters", "samples", "loss", "hours", "fingerprint"]
    lines += _table("Networks and their cost", columns, rows)
    hours, cluster = sum(m.seconds for m in trained.values()) / 3600, recipe.cluster
    where = f"{cluster.workers} worker(s) of {cluster.cpus_per_worker} CPU(s) and {cluster.gpus_per_worker:g} GPU(s)"
    lines += ["", f"{hours:.3g} hours in all, each stage on {where}.", ""]
    rows = [
        [name, *_numbers(m.counts, "rows_in", "rows_out"), _code(m.fingerprint), _code(m.content)]
        for name, m in sources.items()
    ]
    lines += _table("Data", ["artifact", "rows in", "rows kept", "fingerprint", "sha256 of its files"], rows)
    lines += ["", "Nobody's pictures or clips are in this repository but for the sample sheets.", ""]
    # Curves, recipe and software.
    lines += ["## Curves", "", *(line for stage, artifact in networks.items() for line in _curve(stage, artifact))]
    lines += ["", "All points are in each stage's `curves.jsonl`.", ""]
    lines += ["## Recipe", "", f"Seed {recipe.seed}. Sections of the stages, as they were trained:", "", "```json"]
    sections = {name: value for m in trained.values() for name, value in m.config.items()}
    lines += [json.dumps(_without_paths(sections), indent=1, sort_keys=True), "```", ""]
    software = next(iter(trained.values())).software
    lines += ["## Software", "", ", ".join(f"{name} {version}" for name, version in sorted(software.items())), ""]
    return "\n".join(lines)


def _table(title: str, columns: list[str], rows: list[list[str]]) -> list[str]:
    """Returns the lines of a markdown section with a table."""
    head, *body = (f"| {' | '.join(row)} |" for row in (columns, *rows))
    return [f"## {title}", "", head, "|" + "---|" * len(columns), *body]


def _curve(stage: str, artifact: Artifact) -> list[str]:
    """Returns a line of markdown for each loss of a stage."""
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


def _code(digest: str) -> str:
    return f"`{digest[:16]}`"


def _number(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _numbers(values: Mapping[str, Any], *names: str) -> list[str]:
    return [_number(values.get(name)) for name in names]


def _without_paths(value: Any) -> Any:
    """Returns plain data in which a path is only the name of its file, because the operator's folders are private."""
    if isinstance(value, dict):
        return {key: _without_paths(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_without_paths(v) for v in value]
    return value.rstrip("/").rpartition("/")[2] if isinstance(value, str) else to_plain(value)
