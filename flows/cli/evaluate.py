"""`mav evaluate`: any system's videos in a folder, measured as a named protocol says, with published rows beside."""

from __future__ import annotations

import functools
import json
import pickle
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from flows.cli.options import Json, Runs, device, open_plan
from flows.services.terminal import Line, tables
from mav.errors import UserError
from mav.recipes import Cluster, Evaluate
from mav.recipes.reader import load_recipe
from mav.storage import Folder

if TYPE_CHECKING:
    from mav.evaluation.feature_store import Chunk, FeatureWork, Runner

app = typer.Typer()

BENCHMARKS = ("ucf101", "msrvtt", "drawbench", "prompts", "interpolation")
IN_PROCESS_CHUNKS = 4  # fewer than so many are not worth starting Ray for
# How a metric is shown: its title, which way is better, digits.
SHOWN = {
    "fvd": ("FVD", "lower", 2), "kvd": ("KVD", "lower", 4), "is": ("IS", "higher", 2), "fid": ("FID", "lower", 2),
    "kid": ("KID", "lower", 5), "clipsim": ("CLIPSIM", "higher", 4), "psnr": ("PSNR", "higher", 2), "ssim": ("SSIM", "higher", 4),
}  # fmt: skip

YARDSTICKS = {
    "endless": "  with endless videos, extrapolated",
    "of_readable": "  of the readable ones",
    "real_halves": "  real clips, half against half",
    "real": "  real clips",
    "shuffled": "  these, with another's text",
}

BenchmarkName = Annotated[str, typer.Argument(metavar="BENCHMARK", help=f"One of {', '.join(BENCHMARKS)}.")]
Videos = Annotated[
    str,
    typer.Option(
        "--videos", metavar="DIR", help="mp4, GIF, npy or pt files, or folders of frames; 00042 is prompt 42."
    ),
]
Real = Annotated[str, typer.Option("--real", metavar="DIR", help="The real set as distributed: its lists and clips.")]
ProtocolName = Annotated[
    str, typer.Option("--protocol", metavar="NAME", help="How it is measured; by default the paper's way.")
]
Weights = Annotated[
    str,
    typer.Option(
        "--weights-dir", metavar="DIR", help="Published weights; what is missing is said, nothing is fetched."
    ),
]
Metrics = Annotated[
    list[str] | None, typer.Option("--metric", metavar="NAME", help="Only this metric of the protocol; may repeat.")
]


@app.command()
def evaluate(
    benchmark: BenchmarkName,
    videos: Videos,
    real: Real = "",
    protocol: ProtocolName = "",
    weights_dir: Weights = "",
    recipe: Annotated[
        str, typer.Option("--recipe", metavar="NAME", help="Whose CLIP the demo protocols use.")
    ] = "demo",
    prompts: Annotated[
        str, typer.Option("--prompts", metavar="FILE", help="DrawBench's CSV, or a list of one's own.")
    ] = "",
    metric: Metrics = None,
    samples: Annotated[int, typer.Option("--samples", min=0, help="Videos expected; 0 = as the protocol says.")] = 0,
    endless: Annotated[
        bool, typer.Option("--endless", help="Also extrapolate Frechet distances to endless videos.")
    ] = False,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the result and our features go.")] = Path(
        "evaluation"
    ),
    cache: Annotated[
        str, typer.Option("--cache", metavar="DIR", help="Where features of real clips are kept.")
    ] = "evaluation/real",
    runs: Runs = "runs",
    json_: Json = False,
) -> None:
    """Measure a folder of videos: numbers with their protocol, count, interval and weights. A killed evaluation goes on where it was."""
    from mav.evaluation.features import Networks
    from mav.evaluation.interpolation import measure_interpolation
    from mav.evaluation.measure import Settings, measure
    from mav.evaluation.protocols import load_protocol, protocol_names
    from mav.evaluation.sets import read_set

    if benchmark not in BENCHMARKS:
        raise UserError(f"There is no benchmark {benchmark!r}: choose one of {', '.join(BENCHMARKS)}.")
    chosen = load_protocol(
        protocol
        or (
            "prompts-clip"
            if benchmark == "prompts"
            else "drawbench"
            if benchmark == "drawbench"
            else f"{benchmark}-paper"
        )
    )
    if chosen.benchmark != benchmark:
        raise UserError(
            f"{chosen.name} is a protocol of {chosen.benchmark}: choose one of {', '.join(protocol_names(benchmark))}."
        )
    for name, folder in (("--videos", videos), ("--real", real)):
        if folder and not Folder(folder).exists():
            raise UserError(f"{folder} is not there: name a folder with {name}.")
    demo = "demo" in chosen.networks or chosen.name == "interpolation-demo"
    loaded = load_recipe(recipe) if demo else None
    with Line() as line:

        def told(facts: dict[str, Any]) -> None:
            line(facts["stage"], facts["samples"], facts["total"])

        if benchmark == "interpolation":
            if not real:
                raise UserError(
                    "The filmed clips are needed to measure the frames between: name their folder with --real."
                )
            skip = loaded.cascade.frame_skip if loaded else 4  # 1 fps given, 4 fps made
            result = measure_interpolation(
                chosen, Folder(videos), Folder(real), skip, Evaluate(), Folder(str(out)), told
            )
        else:
            chosen, on = chosen.only(list(metric or ())), device()
            clip = _clip(recipe, runs) if "demo" in chosen.networks else None
            networks = Networks(chosen.networks, weights_dir, clip, on)
            filmed = Folder(real) if real else None
            wanted = samples or chosen.samples
            asked = read_set(chosen, filmed, wanted, Folder(prompts) if prompts else None)
            settings = Settings(chosen.preparation(loaded), wanted or len(asked.prompts), endless=endless)
            with features_on_ray(on) as run:
                result = measure(
                    chosen,
                    settings,
                    Folder(videos),
                    asked,
                    filmed,
                    networks,
                    Folder(str(out)),
                    Folder(cache),
                    told,
                    run,
                )
    if json_:
        print(json.dumps(result, indent=1, sort_keys=True))
    else:
        print_result(result)
        print(f"written: {out / 'result.json'}")


def _clip(recipe: str, runs: str) -> Folder:
    """The recipe's CLIP. Raises UserError when it is not trained yet."""
    loaded, plan, store = open_plan(recipe, None, runs)
    node = plan.node("clip")
    if store.find(node) is None:
        raise UserError(f"The CLIP of {loaded.name} is not trained yet: `mav run {recipe} --until clip` trains it.")
    return store.artifact(node)


@contextmanager
def features_on_ray(device: str) -> Iterator[Runner]:
    """Does chunks in Ray's processes, one a GPU or one a core; a handful is done here. Ray starts when the first chunk needs it."""
    from mav.evaluation.feature_store import in_process

    with ExitStack() as services:

        def run(work: FeatureWork, chunks: Sequence[Chunk]) -> Iterator[int]:
            if len(chunks) < IN_PROCESS_CHUNKS:
                return in_process(work, chunks)
            import ray

            from flows.services.ray_cluster import ray_cluster

            if not ray.is_initialized():
                services.enter_context(ray_cluster(Cluster(dashboard=False)))
            gpus = 1 if device == "cuda" and ray.cluster_resources().get("GPU", 0) >= 1 else 0
            return _by_tasks(work, chunks, ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0, max_calls=0)(_do_chunk))

        yield run


def _by_tasks(work: FeatureWork, chunks: Sequence[Chunk], remote: Any) -> Iterator[int]:
    """Chunks by Ray's pooled processes; what a process that died had in hand is done by another.

    A chunk that has cost two processes their lives raises, naming it.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    pickled, losses = pickle.dumps(work), set()
    flights = {remote.remote(pickled, chunk): chunk for chunk in chunks}
    try:
        while flights:
            (ready,), _ = ray.wait(list(flights), num_returns=1)
            number, entries = flights.pop(ready)
            try:
                yield int(ray.get(ready))
            except RayTaskError as error:
                raise error.cause from None
            except RayError:
                if number in losses:
                    raise UserError(
                        f"Videos {entries[0].index} to {entries[-1].index} ended two workers: look at them, or at the memory."
                    ) from None
                losses.add(number)
                flights[remote.remote(pickled, (number, entries))] = (number, entries)
    finally:
        for reference in flights:
            ray.cancel(reference, force=True)


def _do_chunk(pickled: bytes, chunk: Chunk) -> int:
    import torch

    torch.set_num_threads(1)
    return _unpickled(pickled)(chunk)


@functools.cache
def _unpickled(pickled: bytes) -> FeatureWork:
    """The same object for every chunk of a process, so that it loads its networks once."""
    work: FeatureWork = pickle.loads(pickled)
    return work


def print_result(result: dict[str, Any]) -> None:
    """The table: our row, yardsticks, published rows with the protocol of each, then everything a reader needs to judge the numbers."""
    from mav.evaluation.protocols import published

    console = tables()
    protocol, metrics = result["protocol"], result["metrics"]
    label = f"{protocol['name']} v{protocol['version']}"
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("system")
    for name in metrics:
        title, better, _ = _shown(name)
        table.add_column(f"{title} {'↓' if better == 'lower' else '↑'}", justify="right")
    table.add_column("protocol")
    table.add_row("[bold]these videos[/]", *(_number(name, facts) for name, facts in metrics.items()), label)
    for key, title in YARDSTICKS.items():
        cells = [
            f"{facts[key]:.{_shown(name)[2]}f}" if facts.get(key) is not None else "" for name, facts in metrics.items()
        ]
        if any(cells):
            table.add_row(f"[dim]{title}[/]", *cells, f"[dim]{label}[/]")
    for row in published().get(result["benchmark"], []):
        cells = [str(row.get(name.split("_")[0], "")) if name.split("_")[0] == name else "" for name in metrics]
        if any(cells):
            table.add_row(row["system"], *cells, row["protocol"])
    console.print(table)
    console.print(f"\n{label}: {protocol['about']}")
    console.print(f"Estimator: {protocol['estimator']}. Intervals: 95 %.")
    for name, facts in metrics.items():
        if facts["value"] is None:
            console.print(f"{_shown(name)[0]} is not computed: {facts['reason']}.")
    lost = ", ".join(f"{count:,} {reason}" for reason, count in result["failed"].items())
    console.print(f"Videos: {result['readable']:,} of {result['samples']:,} readable{f' ({lost})' if lost else ''}.")
    if result.get("real_listed"):
        lost = ", ".join(f"{count:,} {reason}" for reason, count in result["real_failed"].items())
        console.print(
            f"Real clips: {result['real']:,} of {result['real_listed']:,} readable{f' ({lost})' if lost else ''}."
        )
    for note in result.get("notes", ()):
        console.print(f"Note: {note}.")
    for facts in result.get("networks", {}).values():
        console.print(f"{facts['name']}: sha256 {facts['sha256']} ({facts['note']})")
    if protocol["silent"]:
        console.print(f"Its source does not say: {', '.join(protocol['silent'])}.")
    if not result["comparable"]:
        console.print("[bold]These numbers compare with each other, not with the published rows.[/]")


def _shown(name: str) -> tuple[str, str, int]:
    kind, _, second = name.partition("_")
    title, better, digits = SHOWN[kind]
    return f"{title} {second}".strip(), better, digits


def _number(name: str, facts: dict[str, Any]) -> str:
    if facts["value"] is None:
        return "-"
    digits = max(_shown(name)[2], 4 if abs(facts["value"]) < 1 else 0)
    return f"[bold]{facts['value']:.{digits}f}[/] [{facts['low']:.{digits}f}, {facts['high']:.{digits}f}]"
