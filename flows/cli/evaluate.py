"""`mav evaluate`: any system's videos in a folder, measured as a named protocol says, with published rows beside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.options import Json, Runs, complete_recipe, device, open_graph, require_folder, run_until, starting_with
from flows.evaluation import features_on_ray
from flows.services.printing import PlainTable, say, say_written, show
from flows.services.terminal import ProgressLine
from mav.data.videos import VIDEO_KINDS
from mav.errors import UserError
from mav.recipes.reader import load_recipe
from mav.storage import Folder

if TYPE_CHECKING:
    from mav.evaluation.features import Networks

app = typer.Typer()

BENCHMARKS = ("ucf101", "msrvtt", "drawbench", "prompts", "interpolation")
CARD = "card"  # in the place of a benchmark: what the metrics of a protocol see
SUITE = "suite"  # the same: all that can be said of a folder of videos
DEFAULT_PROTOCOLS = {  # of the others, the paper's
    "prompts": "prompts-clip", "drawbench": "drawbench", SUITE: "suite", CARD: "ucf101-demo",
}  # fmt: skip
YARDSTICKS = {
    "endless": "  with endless videos, extrapolated",
    "unbiased": "  without the bias",
    "of_readable": "  of the readable ones",
    "real_halves": "  real clips, half against half",
    "real": "  real clips",
    "shuffled": "  these, with another's text",
}

_BENCHMARK = (
    f"One of {', '.join(BENCHMARKS)}; {SUITE}: every metric that the weights allow; "
    f"or {CARD}: what a protocol's metrics see of damage to real clips."
)
_VIDEOS = f"The videos: {VIDEO_KINDS}, npy or pt files, or folders of frames; 00042 is prompt 42."
_REAL = "The real set as distributed: its lists and clips; for suite, any folder of videos."
_PROTOCOL = "How it is measured; by default the paper's way."
_WEIGHTS = "Published weights; what is missing is said, nothing is fetched."
_METRIC = "Only this metric of the protocol; may repeat."
_RECIPE = "Whose CLIP the demo protocols use."
_PROMPTS = "DrawBench's CSV, or a list of one's own; of suite and card, what the videos show."
_SAMPLES = "Videos expected; 0 = as the protocol says."
_ENDLESS = "Also extrapolate Frechet distances to endless videos."
_RATINGS = "For suite: votes.csv of a study (--videos is the study), or human0_SYSTEM.jsonl."
_OUT = "Where the result and our features go."
_CACHE = "Where features of real clips are kept."


def _complete(incomplete: str) -> list[str]:
    """Completes a benchmark in the shell."""
    return starting_with(incomplete, (*BENCHMARKS, SUITE, CARD))


@app.command()
def evaluate(
    benchmark: Annotated[str, typer.Argument(metavar="BENCHMARK", help=_BENCHMARK, autocompletion=_complete)],
    videos: Annotated[str, typer.Option("--videos", metavar="DIR", help=_VIDEOS)],
    real: Annotated[str, typer.Option("--real", "--reference", metavar="DIR", help=_REAL)] = "",
    protocol: Annotated[str, typer.Option("--protocol", metavar="NAME", help=_PROTOCOL)] = "",
    weights_dir: Annotated[str, typer.Option("--weights-dir", metavar="DIR", help=_WEIGHTS)] = "",
    recipe: Annotated[
        str, typer.Option("--recipe", metavar="RECIPE", help=_RECIPE, autocompletion=complete_recipe)
    ] = "demo",
    prompts: Annotated[str, typer.Option("--prompts", metavar="FILE", help=_PROMPTS)] = "",
    ratings: Annotated[str, typer.Option("--ratings", metavar="PATH", help=_RATINGS)] = "",
    metric: Annotated[list[str] | None, typer.Option("--metric", metavar="NAME", help=_METRIC)] = None,
    samples: Annotated[int, typer.Option("--samples", metavar="N", min=0, help=_SAMPLES)] = 0,
    endless: Annotated[bool, typer.Option("--endless", help=_ENDLESS)] = False,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help=_OUT)] = Path("evaluation"),
    cache: Annotated[str, typer.Option("--cache", metavar="DIR", help=_CACHE)] = "evaluation/real",
    json_: Json = False,
    runs: Runs = "runs",
) -> None:
    """Measure a folder of videos: numbers with their protocol, count, interval and weights.

    A killed evaluation goes on where it was.
    """
    from mav.evaluation.card import make_card
    from mav.evaluation.features import Networks
    from mav.evaluation.interpolation import measure_interpolation
    from mav.evaluation.measure import Settings, measure
    from mav.evaluation.protocols import load_protocol, protocol_names
    from mav.evaluation.sets import read_set
    from mav.evaluation.suite.listing import listed
    from mav.evaluation.suite.run import run_suite

    # Resolve what was asked for.
    if benchmark not in (*BENCHMARKS, SUITE, CARD):
        raise UserError(f"There is no benchmark {benchmark!r}: choose one of {', '.join((*BENCHMARKS, SUITE, CARD))}.")
    chosen = load_protocol(protocol or DEFAULT_PROTOCOLS.get(benchmark, f"{benchmark}-paper"))
    if chosen.benchmark != benchmark != CARD:
        known = ", ".join(protocol_names(benchmark))
        raise UserError(f"{chosen.name} is a protocol of {chosen.benchmark}: choose one of {known}.")
    chooses = (*(name for name in BENCHMARKS if name != "interpolation"), CARD)  # the others measure all that they can
    for name, option, takers in (
        ("--ratings", ratings, (SUITE,)),
        ("--metric", metric, chooses),
        ("--endless", endless, chooses[:-1]),
    ):
        if option and benchmark not in takers:
            raise UserError(f"{benchmark} takes no {name}: leave it away, or ask for {' or '.join(takers)}.")
    named = {"--videos": videos, "--real or --reference": real, "--ratings": ratings, "--weights-dir": weights_dir}
    for name, folder in named.items():
        if folder and not Folder(folder).exists():
            raise UserError(f"{folder} is not there: name what is there with {name}.")
    for name, folder in (("--out", str(out)), ("--cache", cache)):
        require_folder(name, folder, written=True)
    demo = "demo" in chosen.networks or chosen.name == "interpolation-demo"
    loaded = load_recipe(recipe) if demo else None
    target = Folder(str(out))

    with ProgressLine() as line:

        def shown(progress: dict[str, Any]) -> None:
            line(progress["stage"], progress["samples"], progress["total"])

        if benchmark == "interpolation":
            if not real:
                raise UserError(
                    "The filmed clips are needed to measure the frames between: name their folder with --real."
                )
            skip = loaded.cascade.frame_skip if loaded else 4  # 1 fps given, 4 fps made
            result = measure_interpolation(chosen, Folder(videos), Folder(real), skip, target, shown)
        else:
            chosen, on = chosen.only(list(metric or ())), device()
            filmed = Folder(real) if real else None
            clip = _clip(recipe, runs) if "demo" in chosen.networks else None
            said = Folder(prompts) if prompts else None
            networks = Networks(chosen.networks, weights_dir, clip, on)
            if benchmark == CARD:
                with features_on_ray(on) as run:
                    clips = Folder(videos)
                    entries = listed(clips, said, samples)
                    judged = (chosen, chosen.preparation(loaded), clips, entries, networks, target)
                    result = make_card(*judged, report=shown, run=run)
            elif benchmark == SUITE:
                given = (Folder(videos), networks, target, filmed, said, samples)
                with features_on_ray(on) as run:
                    result = run_suite(*given, report=shown, run=run, ratings=Folder(ratings) if ratings else None)
            else:
                wanted = samples or chosen.samples
                asked = read_set(chosen, filmed, wanted, said)
                _require_weights(networks, benchmark)
                settings = Settings(chosen.preparation(loaded), wanted or len(asked.prompts), endless=endless)
                with features_on_ray(on) as run:
                    sets = (Folder(videos), asked, filmed, networks)
                    result = measure(chosen, settings, *sets, target, Folder(cache), shown, run)
    if benchmark == CARD:
        _tell_card(result, target, json_)
    elif benchmark == SUITE:
        _tell_suite(result, Folder(videos), target, json_)
    elif json_:
        print(json.dumps(result, indent=1, sort_keys=True))
    else:
        print_result(result)
        say_written(str(out / "result.json"))


def _tell_card(card: dict[str, Any], out: Folder, json_: bool) -> None:
    """Writes the page of a validity card beside its file, and prints what each metric sees."""
    from mav.evaluation.protocols.titles import shown
    from mav.report.card import card_page

    out.write_bytes("card.html", card_page(card))
    if json_:
        print(json.dumps(card, indent=1, sort_keys=True))
        return
    for words in card["words"]:
        say(words)
    lacking: dict[str, list[str]] = {}
    for name, why in card["not_judged"].items():
        lacking.setdefault(why, []).append(shown(name).title)
    for why, names in lacking.items():
        say(f"Not judged: {', '.join(names)}. {why[:1].upper()}{why[1:]}.")
    say_written(out.path("card.json"), out.path("card.html"))


def _tell_suite(result: dict[str, Any], videos: Folder, out: Folder, json_: bool) -> None:
    """Writes the page of a suite beside its files, and prints its table and what is missing."""
    from mav.evaluation.protocols.titles import shown
    from mav.report.suite import agreement_table, cells, suite_page

    out.write_bytes("suite.html", suite_page(result, videos))
    if json_:
        print(json.dumps(result, indent=1, sort_keys=True))
        return
    numbers = ("these videos", "95 % interval", "real clips")
    table = PlainTable("metric", *numbers, "better", "network", right=numbers)
    for name, metric in result["metrics"].items():
        row, network = cells(name, metric), result["networks"][metric["network"]]["name"]
        table.add_row(shown(name).title, row["value"] or "-", row["interval"], row["real"], metric["better"], network)
    show(table)
    if result["agreement"]:
        agreed = agreement_table(result["agreement"])
        table = PlainTable("ranks pairs as the raters", *agreed["questions"], right=agreed["questions"])
        for title, row in agreed["rows"]:
            table.add_row(title, *(f"{cell['share'] or '-'} {cell['interval']}".strip() for cell in row))
        show(table)
        for words in agreed["words"]:
            say(words)
    say(f"\nVideos: {result['readable']:,} of {result['videos']:,} readable.")
    unreadable = (f"  {row['file']}: {row['reason']}" for row in result["unreadable"])
    for words in (*unreadable, *(f"Note: {note}." for note in result["notes"])):
        say(words)
    for name, metric in result["metrics"].items():
        if metric["value"] is None:
            say(f"{shown(name).title} is not computed: {metric['reason']}.")
    for need in result["missing"]:
        say(f"Missing for {', '.join(shown(n).title for n in need['metrics'])}: {need['needs']}")
    say_written(*(out.path(name) for name in ("suite.json", "vbench_eval_results.json", "suite.html")))


def _require_weights(networks: Networks, benchmark: str) -> None:
    """Raises UserError when published weights are missing. It names the protocol that needs none, if there is one."""
    from mav.evaluation.protocols import protocol_names

    try:
        networks.describe()
    except UserError as error:
        free = [name for name in protocol_names(benchmark) if name.endswith("-demo")]
        also = f" --protocol {free[0]} needs none: it uses the CLIP of --recipe." if free else ""
        raise UserError(f"{error}{also}") from None


def _clip(recipe: str, runs: str) -> Folder:
    """Returns the folder of the recipe's CLIP. Raises UserError when it is not trained yet."""
    _, graph, store = open_graph(recipe, None, runs)
    artifact = store.find(graph.node("clip"))
    if artifact is None:
        raise UserError(f"{recipe}'s CLIP is not trained: {run_until(recipe, 'clip', store)} trains it.")
    return artifact.folder


def print_result(result: dict[str, Any]) -> None:
    """Prints our row, yardsticks and published rows with their protocols, then all that is needed to judge them."""
    from mav.evaluation.protocols import published
    from mav.evaluation.protocols.titles import shown

    protocol, metrics = result["protocol"], result["metrics"]
    label = f"{protocol['name']} v{protocol['version']}"

    # The table.
    arrows = {"lower": " ↓", "higher": " ↑", "": ""}
    titles = [f"{title}{arrows[better]}" for title, better, _ in map(shown, metrics)]
    table = PlainTable("system", *titles, "protocol", right=titles)
    table.add_row("these videos", *(_cell(name, metric) for name, metric in metrics.items()), label, style="bold")
    for key, title in YARDSTICKS.items():
        known = {name: {"value": metric[key]} for name, metric in metrics.items() if metric.get(key) is not None}
        cells = [_cell(name, known[name]) if name in known else "" for name in metrics]
        if any(cells):
            table.add_row(title, *cells, label, style="dim")
    for row in published().get(result["benchmark"], []):
        cells = [_cell(name, {"value": row[name]}, is_published=True) if name in row else "" for name in metrics]
        if any(cells):
            table.add_row(row["system"], *cells, row["protocol"])
    show(table)

    # What the numbers rest on.
    say(f"\n{label}: {protocol['about']}")
    say(f"Estimator: {protocol['estimator']}. Intervals: 95 %.")
    for name, metric in metrics.items():
        if metric["value"] is None:
            say(f"{shown(name).title} is not computed: {metric['reason']}.")
    say(f"Videos: {result['readable']:,} of {result['samples']:,} readable{_reasons(result['failed'])}.")
    if result.get("real_listed"):
        lost = _reasons(result["real_failed"])
        say(f"Real clips: {result['real']:,} of {result['real_listed']:,} readable{lost}.")
    for note in result.get("notes", ()):
        say(f"Note: {note}.")
    for network in result.get("networks", {}).values():
        say(f"{network['name']}: sha256 {network['sha256']} ({network['note']})")
    if protocol["silent"]:
        say(f"Its source does not say: {', '.join(protocol['silent'])}.")
    if not result["comparable"]:
        say("These numbers compare with each other, not with the published rows.")


def _reasons(failed: dict[str, int]) -> str:
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in failed.items())
    return f" ({reasons})" if reasons else ""


def _cell(name: str, metric: dict[str, Any], is_published: bool = False) -> str:
    """Returns a value with the interval that it may have, in the digits of the report."""
    from mav.evaluation.protocols.titles import digits_of

    if metric["value"] is None:
        return "-"
    digits = digits_of(name, metric["value"], is_published)
    value, *ends = (f"{metric[key]:.{digits}f}" for key in ("value", "low", "high") if metric.get(key) is not None)
    return f"{value} [{', '.join(ends)}]" if ends else value
