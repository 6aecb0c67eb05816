"""`mav study freeze|serve|report`: a blind comparison of systems by people."""

from __future__ import annotations

import itertools
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from flows.cli.options import Json, require_folder
from flows.engine.store import record_artifact
from flows.services.ports import port_is_free
from flows.services.printing import PlainTable, say, say_written, show
from mav.errors import UserError
from mav.storage import Folder

if TYPE_CHECKING:
    from mav.study.votes import Votes

app = typer.Typer(
    no_args_is_help=True, help="Compare systems by people who do not know which is which: freeze, serve, report."
)

_SYSTEM = "A system's videos; repeat it for each of at least two. 00042 is prompt 42."
_PROMPTS = "One a line, or a CSV with Prompt and Category."
_PAIRS = "How many pairs, drawn by seed; 0 = all."
_RATERS = "Make links until there are so many; 0 = as many as are needed."
_HOST = "The address to listen on; 127.0.0.1 is this machine only."
_URL = "How raters reach the page, when it is not the address above."
_VOTES = "Where votes are kept; by default study-votes/DIGEST."
_REPORT_OUT = "Where report.json and the CSV files go."

StudyDir = Annotated[str, typer.Argument(metavar="STUDY", help="The folder of a frozen study.")]
VotesDir = Annotated[Path | None, typer.Option("--votes", metavar="DIR", help=_VOTES)]
LINKS = "links.csv"


@app.command()
def freeze(
    system: Annotated[list[str], typer.Option("--system", metavar="NAME=DIR", help=_SYSTEM)],
    prompts: Annotated[str, typer.Option("--prompts", metavar="FILE", help=_PROMPTS)],
    out: Annotated[Path, typer.Option("--out", metavar="STUDY", help="Where the study goes.")],
    pairs: Annotated[int, typer.Option("--pairs", metavar="N", min=0, help=_PAIRS)] = 0,
    session: Annotated[int, typer.Option("--session", metavar="N", min=1, help="Pairs one rater is asked for.")] = 24,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Draws pairs, sides and order.")] = 0,
) -> None:
    """Fix which pairs are shown, on which side and in which order, before anybody has looked at them."""
    from mav.data.prompts import read_prompts
    from mav.study.study import STUDY, freeze, pairs_of

    systems = {}
    for named in system:
        name, _, folder = named.partition("=")
        if not name or not folder or not Folder(folder).exists():
            remedy = "give a name, = and a folder that is there, for example film=outputs/film"
            raise UserError(f"--system {named}: {remedy}.")
        if name in systems:
            raise UserError(f"--system {named}: {name} is named twice; give each system a name of its own.")
        systems[name] = Folder(folder)
    require_folder("--out", str(out), written=True)
    target = Folder(str(out))
    if target.exists(STUDY):
        raise UserError(
            f"{out} holds a frozen study already: choose another folder, so that its votes keep their meaning."
        )
    listed = read_prompts(Folder(prompts))
    chosen = pairs_of(systems, listed, pairs, seed)
    frozen = freeze(chosen, target, seed, session)
    paired = {(pair.prompt, *pair.systems) for pair in chosen}
    for one, other in itertools.combinations(systems, 2) if not pairs else ():
        if alone := [text for text in dict(listed) if (text, one, other) not in paired]:
            lacking = f"{len(alone)} prompts lack a video of {one} or {other}"
            say(f"{lacking}, the first is {alone[0]!r}: they are not in the study.")
    if same := [pair.prompt for pair in chosen if pair.videos[0] == pair.videos[1]]:
        say(f"{len(same)} pairs show one video twice, the first for {same[0]!r}: answers to them are chance.")
    say(f"{out}: {frozen['pairs']} pairs, {frozen['raters']} raters each, sha256 {frozen['study_sha256']}")
    raters = _raters_needed(frozen["pairs"], session, frozen["raters"])
    say(f"`mav study serve {out} --raters {raters}` serves it.")


@app.command()
def serve(
    study: StudyDir,
    raters: Annotated[int, typer.Option("--raters", metavar="N", min=0, help=_RATERS)] = 0,
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help=_HOST)] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="N", min=1, max=65535, help="The port to listen on.")] = 8800,
    url: Annotated[str, typer.Option("--url", metavar="URL", help=_URL)] = "",
    votes: VotesDir = None,
) -> None:
    """Serve the rating page until Ctrl-C. Every answer is on the disk before the next question is shown."""
    import uvicorn

    from mav.study.rating_server import make_app

    database, folder = _open(study, votes)
    frozen = database.study
    pairs = len(frozen.of_kind("pair"))
    if not pairs:
        raise UserError(
            f"{study} has no pair to show: its recipe made no second version of the videos, "
            "or its systems share no prompt."
        )
    needed = raters or _raters_needed(pairs, frozen.session, frozen.raters)
    if damaged := frozen.damaged(Folder(study)):
        lost = f"{len(damaged)} videos of {study} are lost or changed, the first is {damaged[0]}"
        raise UserError(f"{lost}: bring them back from a copy.")
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    url = (url or address).rstrip("/")
    if not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", url):
        raise UserError(f"--url {url} is no address of a page: write it as https://HOST or https://HOST/PATH.")
    page = make_app(database, Folder(study), urlsplit(url).path)
    record_artifact(f"the votes in {folder.resolve()}", study)
    links = _write_links(database, folder / LINKS, needed, url)
    if not port_is_free(port, host):
        raise UserError(f"Port {port} of {host} cannot be listened on: choose another with --port, or another --host.")
    say(f"{links} links for raters: {folder / LINKS}")
    say(f"votes: {database.path}\nserving {address}/ (Ctrl-C ends it)")
    uvicorn.run(page, host=host, port=port, log_level="warning", access_log=False, server_header=False)


@app.command()
def report(
    study: StudyDir,
    votes: VotesDir = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help=_REPORT_OUT)] = None,
    json_: Json = False,
) -> None:
    """Say who was preferred, how sure that is and how well raters agreed.

    Votes and completion codes are written as CSV.
    """
    from mav.study.results import report_study

    database, folder = _open(study, votes, make=False)
    target = out or folder
    require_folder("--out", str(target), written=True)
    found = report_study(database.study, database, Folder(str(target)))
    if json_:
        print(json.dumps(found, indent=1, sort_keys=True))
        return
    print_report(found)
    say_written(*(f"{target}/{name}" for name in ("report.json", "votes.csv", "raters.csv")))


def _open(study: str, votes: Path | None, make: bool = True) -> tuple[Votes, Path]:
    """Returns the votes of a study and their folder. Raises UserError without votes, unless they may be made."""
    from mav.study.votes import Study, Votes

    frozen = Study.load(Folder(study))
    folder = votes or Path("study-votes") / frozen.sha256[:12]
    if not make and not (folder / "votes.sqlite").exists():
        remedy = f"`mav study serve {study}` collects them, --votes names where"
        raise UserError(f"{folder} holds no votes of this study: {remedy}.")
    folder.mkdir(parents=True, exist_ok=True)
    return Votes(str(folder / "votes.sqlite"), frozen), folder


def _raters_needed(pairs: int, session: int, raters: int) -> int:
    """Returns enough raters for every pair, and a quarter more for those who stop early or are left out."""
    return max(raters + 2, -(-pairs * raters * 5 // (4 * max(min(session, pairs), 1))))


def _write_links(database: Votes, path: Path, count: int, url: str) -> int:
    """Writes every rater's link to a file that only its owner can read, and returns how many it holds.

    Links of earlier calls stay valid, under the present address. A file that was changed, as in a spreadsheet, stays as
    `links-before-N.csv` beside the new one.
    """
    before = path.read_bytes() if path.exists() else b""
    text = before.replace(b"\0", b"").decode("latin-1")  # whatever a spreadsheet made of it
    database.tokens(re.findall(r"/r/([\w-]+)", text))
    database.invite(count)
    tokens = database.tokens()
    rows = [f"{number},{url}/r/{token}" for number, token in enumerate(tokens, 1)]
    if before and not re.fullmatch(r"rater,link\n(\d+,\S+/r/[\w-]+\n)*", text):
        number = 1
        while (kept := path.with_name(f"{path.stem}-before-{number}{path.suffix}")).exists():
            number += 1
        path.rename(kept)
        say(f"{path} was changed by hand: it is kept as {kept}.")
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write("\n".join(["rater,link", *rows, ""]))
    return len(tokens)


def _share(value: float | None, interval: tuple[float, float]) -> str:
    return "-" if value is None else f"{100 * value:.1f} % [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def print_report(found: dict[str, Any]) -> None:
    """Prints the report of a study: a table for each question, then its raters, its rule and its votes."""
    columns = (
        "pairs", "majority won (Wilson)", "sign test p", "single votes (clustered by pair)",
    )  # fmt: skip
    for question, answers in found["questions"].items():
        table = PlainTable("", *columns, right=columns, title=question)
        for name, pair in answers["pairs"].items():
            for title, row in ((name, pair), *((f"  {c}", r) for c, r in pair["categories"].items())):
                majority = _share(row["majority_share"], row["majority_wilson"])
                single = _share(row["vote_share"], row["vote_interval"])
                table.add_row(title, str(row["items"]), majority, f"{row['sign_test_p']:.4f}", single)
        show(table)
        agreement = [
            f"{name.replace('_', ' ')} {'-' if value is None else f'{value:.4f}'}"
            for name, value in answers["agreement"].items()
        ]
        left = _share(answers["left"]["share"], answers["left"]["interval"])
        say(f"{', '.join(agreement)}; left was chosen in {left}")
        strengths = answers.get("bradley_terry")
        if isinstance(strengths, dict):
            ranked = sorted(strengths.items(), key=lambda item: -item[1])
            say("Bradley-Terry log strengths: " + ", ".join(f"{name} {value:+.3f}" for name, value in ranked))
        elif strengths:
            say(f"Bradley-Terry: {strengths}.")
        say("")
    raters, pairs, votes = found["raters"], found["pairs"], found["votes"]
    rated = f"{raters['rated']} of {raters['invited']} rated, {raters['finished']} finished"
    say(f"Pairs: {pairs['complete']} of {pairs['total']} have all their ratings. Intervals: 95 %.")
    if same := found["same_video"]:
        say(f"{same} of the pairs show one video twice: answers to them are chance.")
    say(f"Raters: {rated}, {len(raters['left_out'])} left out.")
    for rater, reason in raters["left_out"].items():
        say(f"  {rater}: {reason}")
    say(f"Rule, fixed with the study {found['study_sha256'][:12]}: {found['rule']}")
    counted = f"{votes['kept']} kept, {votes['of_raters_left_out']} of raters left out, {votes['of_checks']} on checks"
    unfinished = f"{votes['incomplete']} of unfinished pairs"
    say(f"Votes: {counted}, {unfinished}; median {votes['median_seconds']:.1f} s.")
