"""The results of a study: which system was preferred, how sure that is, and how well the raters agreed.

Raters are left out only by the rule that was fixed when the study was frozen.
"""

import csv
import io
import itertools
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from mav.errors import UserError
from mav.evaluation.intervals import clustered_share, wilson
from mav.storage import Folder
from mav.study import agreement
from mav.study.votes import Study, Votes

REPORT, VOTES_CSV, RATERS_CSV = "report.json", "votes.csv", "raters.csv"
VOTE_COLUMNS = ("rater", "item", "kind", "question", "answer", "preferred", "left", "right", "category",
                "milliseconds", "at", "complete", "prompt", "left_video", "right_video", "counts")  # fmt: skip
RATER_COLUMNS = ("rater", "code", "ratings", "finished", "excluded")
UNCONNECTED = "the comparisons do not connect all systems by wins and losses: no finite strengths"

FORMULAS = ("=", "+", "-", "@", "\t", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # the last are full-width
Row = dict[str, Any]


def report_study(study: Study, votes: Votes, out: Folder) -> dict[str, Any]:
    """Writes votes.csv, raters.csv (with completion codes, for crowd platforms) and report.json; returns the report.

    Raises UserError when there is no rating to report, and says why; the votes and codes are written all the same.
    """
    rows, raters = votes.rows()
    excluded = {rater["rater"]: rater["excluded"] for rater in raters if rater["excluded"]}
    for row in rows:
        item, seen = study.key[row["item"]], study.items[row["item"]]
        shown = {name: item[name] for name in ("kind", "left", "right")}
        videos = {f"{side}_video": seen[side] for side in ("left", "right")}
        row |= {**shown, **videos, "preferred": item[row["answer"]], **{n: seen[n] for n in ("category", "prompt")}}
        row["counts"] = bool(row["complete"]) and row["rater"] not in excluded and row["kind"] == "pair"
    kept = [row for row in rows if row["counts"]]
    out.write_bytes(VOTES_CSV, _csv(VOTE_COLUMNS, rows))
    out.write_bytes(RATERS_CSV, _csv(RATER_COLUMNS, raters))
    if not kept:
        raise UserError(f"{_why_nothing(rows, excluded)} {VOTES_CSV} and {RATERS_CSV} are in {out.url} all the same.")
    ratings = Counter(row["item"] for row in kept if row["question"] == study.questions[0]["id"])
    report: dict[str, Any] = {
        "study_sha256": study.sha256,
        "rule": study.rule,
        "raters": {
            "invited": len(raters),
            "rated": sum(rater["ratings"] > 0 for rater in raters),
            "finished": sum(rater["finished"] is not None and rater["ratings"] > 0 for rater in raters),
            "left_out": {f"rater {number}": reason for number, reason in sorted(excluded.items())},
        },
        "pairs": {
            "total": len(study.of_kind("pair")),
            "complete": sum(count >= study.raters for count in ratings.values()),
            "ratings": sum(ratings.values()),
        },
        "same_video": sum(study.items[n]["left"] == study.items[n]["right"] for n in study.of_kind("pair")),
        "votes": {
            "kept": len(kept),
            "of_raters_left_out": sum(row["rater"] in excluded for row in rows),
            "of_checks": sum(row["kind"] != "pair" for row in rows),
            "incomplete": sum(not row["complete"] for row in rows),
            "median_seconds": statistics.median(row["milliseconds"] for row in kept) / 1000,
        },
        "checks": _checks(study, [row for row in rows if row["rater"] not in excluded]),
        "questions": {
            q["id"]: _question(study.systems, [row for row in kept if row["question"] == q["id"]])
            for q in study.questions
        },
    }
    out.write_json(REPORT, report)
    return report


def _why_nothing(rows: Sequence[Row], excluded: dict[int, str]) -> str:
    """Says why there is no complete rating of a pair by a rater who counts."""
    raters = {row["rater"] for row in rows}
    if not rows:
        return "Nobody has rated a pair yet: send out the links of links.csv."
    if raters <= excluded.keys():
        reasons = Counter(re.sub(r"\d+", "N", excluded[rater]) for rater in raters)
        why = ", ".join(f"{number} {reason}" for reason, number in reasons.most_common())
        return (
            f"The rule of the study leaves out all {len(raters)} raters who answered ({why}): invite others with "
            "`mav study serve --raters`."
        )
    left_out = len(raters & excluded.keys())
    begun = f"answers so far: {len(rows)}, of {len(raters)} {'rater' if len(raters) == 1 else 'raters'}"
    more = f", {left_out} of them left out by the rule" if left_out else ""
    return f"No pair has a rating that counts yet ({begun}{more}): wait until a rater has answered all about a pair."


def _csv(columns: Sequence[str], rows: Sequence[Row]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _no_formula(value) for name, value in row.items()} for row in rows)
    return text.getvalue().encode()


def _no_formula(value: Any) -> Any:
    """Returns a cell that a spreadsheet shows as it is: after an apostrophe nothing is a formula."""
    if not isinstance(value, str):
        return value
    text = value.replace("\r", "\n")  # a lone one is not quoted by Python, and ends the row elsewhere
    return f"'{text}" if text.lstrip(" ").startswith(FORMULAS) else text


def _checks(study: Study, rows: Sequence[Row]) -> dict[str, Any]:
    """Returns how often gold pairs were answered right, and mirrored pairs by the same video."""
    preferred = {(row["rater"], row["item"], row["question"]): row["preferred"] for row in rows}
    gold = [row["preferred"] == "intact" for row in rows if row["kind"] == "gold"]
    mirrored = []
    for row in rows:
        first = (row["rater"], study.key[row["item"]]["of"], row["question"])
        if row["kind"] == "mirror" and first in preferred:
            mirrored.append(preferred[first] == row["preferred"])
    return {
        "gold_right": sum(gold), "gold": len(gold), "mirrored_same_video": sum(mirrored), "mirrored": len(mirrored),
    }  # fmt: skip


def _question(systems: Sequence[str], rows: Sequence[Row]) -> dict[str, Any]:
    """Returns all statistics of one question."""
    count, lefts, pairs = len(rows), sum(row["answer"] == "left" for row in rows), {}
    wins: Counter[tuple[str, str]] = Counter()
    for one, other in itertools.combinations(systems, 2):
        between = [row for row in rows if {row["left"], row["right"]} == {one, other}]
        if between:
            categories = sorted({row["category"] for row in between if row["category"]})
            parts = {name: [row for row in between if row["category"] == name] for name in categories}
            by_category = {name: _preference(part, one) for name, part in parts.items()}
            pairs[f"{one} over {other}"] = {**_preference(between, one), "categories": by_category}
            first = sum(row["preferred"] == one for row in between)
            wins[one, other], wins[other, one] = first, len(between) - first
    left = {"votes": lefts, "of": count, "share": lefts / max(count, 1), "interval": wilson(lefts, count)}
    found: dict[str, Any] = {"left": left, "agreement": _agreement(rows), "pairs": pairs}
    if len(systems) > 2:
        found["bradley_terry"] = agreement.bradley_terry(wins) if agreement.connected(wins) else UNCONNECTED
    return found


def _preference(rows: Sequence[Row], system: str) -> dict[str, Any]:
    """Returns how often a system won the majority of an item's raters, and how often it won single votes."""
    by_item: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        by_item[row["item"]].append(row["preferred"] == system)
    votes = [(float(sum(won)), len(won)) for won in by_item.values()]
    majority = [1.0 if 2 * wins > count else 0.0 for wins, count in votes if 2 * wins != count]
    wins, count = int(sum(majority)), len(majority)
    share, low, high = clustered_share(votes) if votes else (0.0, 0.0, 1.0)
    return {
        "items": len(by_item),
        "ties": len(by_item) - count,  # an even number of raters was split in two halves
        "majority_wins": wins,
        "majority_share": wins / count if count else None,
        "majority_wilson": wilson(wins, count),
        "sign_test_p": agreement.sign_test(wins, count - wins),
        "vote_share": share,
        "vote_interval": (low, high),
    }


def _agreement(rows: Sequence[Row]) -> dict[str, float | None]:
    """Returns the agreement on which video was better, with items as units; None when it is not defined."""
    units: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        units[row["item"]].append(float(row["answer"] == "left"))
    table = list(units.values())
    kappa, alpha = agreement.fleiss_kappa(table), agreement.krippendorff_alpha(table)
    return {"fleiss_kappa": kappa if kappa == kappa else None, "krippendorff_alpha": alpha if alpha == alpha else None}
