"""A release: trained networks as safetensors and json with a model card, in a folder ready for a hub repository."""

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from typing import IO, Any

from mav.errors import UserError
from mav.evaluation.protocols.titles import METRICS
from mav.recipes import Recipe, to_plain
from mav.storage import Artifact, Folder

CARD = "README.md"
LEFT_OUT = ("start.json",)  # it names files of the operator
OWN_LICENSE = "apache-2.0"  # of what is made of nothing but this program's own drawings
LONGEST_HEADER = 100_000_000  # bytes, as safetensors itself allows
READ_BACK = ("colour", "shape")  # what the demo's oracle sees
SHOWN_POINTS = 6  # points of each curve in the card


def write_release(
    recipe: Recipe, networks: Mapping[str, Artifact], data: Mapping[str, Artifact], results: Mapping[str, Artifact],
    folder: Folder, license_: str = "",
) -> dict[str, int]:  # fmt: skip
    """Replaces the folder, as a whole, by a release: STAGE/network.safetensors and so on, and the card.

    Returns bytes by file name. `networks` are by stage, `data` are the artifacts that they were trained on, and
    `results` what was measured on them. Raises UserError when a file differs from its manifest; the release before then
    stays.
    """
    for stage, artifact in networks.items():
        if problem := next(artifact.problems(), None):
            raise UserError(f"{stage} is not released: {problem}; rerun it.")
    with folder.replacing() as new:
        for stage, artifact in networks.items():
            for name in artifact.files():
                if name not in LEFT_OUT:
                    with artifact.folder.open(name) as source, new.create(f"{stage}/{name}") as target:
                        if name.endswith(".safetensors"):
                            _mark_format(source, target)
                        shutil.copyfileobj(source, target, 1 << 22)
        new.write_bytes(CARD, card(recipe, networks, data, results, license_).encode())
    return {name: folder.size(name) for name in folder.names()}


def _mark_format(source: IO[bytes], target: IO[bytes]) -> None:
    """Copies the header of a safetensors file and says in it that the tensors are torch's, as other readers demand.

    A file with another header is copied as it is.
    """
    start = source.read(8)
    length = int.from_bytes(start, "little")
    if len(start) == 8 and length <= LONGEST_HEADER:
        text = source.read(length)
        with suppress(ValueError, TypeError):
            header = json.loads(text)
            header["__metadata__"] = header.get("__metadata__", {}) | {"format": "pt"}
            text = json.dumps(header, separators=(",", ":")).encode()
            text += b" " * (-len(text) % 8)  # the tensors stay aligned
            start = len(text).to_bytes(8, "little")
        start += text
    target.write(start)


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


def card(
    recipe: Recipe, networks: Mapping[str, Artifact], data: Mapping[str, Artifact], results: Mapping[str, Artifact],
    license_: str = "",
) -> str:  # fmt: skip
    """Returns the model card from the artifacts alone: the networks, data, training, cost, losses, results, limits."""
    trained = {stage: artifact.manifest for stage, artifact in networks.items()}
    sources = {name: artifact.manifest for name, artifact in data.items()}
    # The head that the hub reads, and the title.
    license_ = license_ or (OWN_LICENSE if recipe.world else "")
    tags = ["library_name: make-a-video-system", "pipeline_tag: text-to-video", "tags: [make-a-video, text-to-video]"]
    tags += [f"license: {json.dumps(license_)}"] if license_ else []
    about = "Networks of Make-A-Video (Singer et al. 2022), the average weights of each training stage."
    lines = ["---", *tags, "---", "", f"# {recipe.name}", "", *([recipe.about, ""] if recipe.about else []), about, ""]
    lines += [*_limits(recipe, license_, results), ""]
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


def _limits(recipe: Recipe, license_: str, results: Mapping[str, Artifact]) -> list[str]:
    """Returns the lines on licence, results and limits: every number with its interval, the poor ones too."""
    granted = (
        f"Licence: {license_}." if license_ else "No licence is granted with these networks: ask whoever made them."
    )
    rows, said = [], [granted]
    for artifact in results.values():
        metrics = artifact.manifest.metrics
        for name, (title, better, digits) in METRICS.items():
            if (value := metrics.get(name)) is not None:
                low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
                interval = "" if low is None or high is None else f"{low:.{digits}f} to {high:.{digits}f}"
                protocol, samples = (str(metrics.get(key, "")) for key in ("protocol", "samples"))
                rows.append([title, f"{value:.{digits}f}", interval, better, samples, protocol])
        if (gain := metrics.get("psnr_gain")) is not None and gain <= 0:
            said.append(f"F^ is no better here than blending two frames (a gain of {gain:.2f} dB).")
        if "chance_colour" in metrics:
            chances = {k: metrics[f"chance_{k}"] for k in READ_BACK if metrics[f"chance_{k}"] is not None}
            facts = [f"{k} as asked in {metrics[k]:.0%}, by chance in {share:.0%}" for k, share in chances.items()]
            if metrics.get("reader_error") is not None:
                facts.append(f"the reader itself is wrong about {metrics['reader_error']:.1%} of true frames")
            said.append(f"Of {metrics['count']} videos, {'; '.join(facts)}.")
    if recipe.world:
        shown = "drawn shapes" if recipe.world.kind == "shapes" else "handwritten digits"
        known = shown.rpartition(" ")[2]
        said.append(f"The networks were trained on {shown}: they know no photograph, and nothing but these {known}.")
    said.append(
        "They show what their training data show, mistakes and prejudice included. Numbers of a demo protocol are not "
        "comparable with published ones."
    )
    columns = ["metric", "value", "95 % interval", "better", "samples", "protocol"]
    table = _table("Measured", columns, rows) if rows else ["## Measured", "", "Nothing was measured on them yet."]
    return [*table, "", "## Licence and limits", "", *said]


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
