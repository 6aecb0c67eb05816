"""What raters said: who was preferred, how sure that is, and how well they agreed. By the rule that was fixed before."""

import csv
import io
import itertools
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from mav.errors import UserError
from mav.storage import Folder
from mav.study.agreement import (
    bradley_terry,
    cluster_bootstrap,
    connected,
    fleiss_kappa,
    krippendorff_alpha,
    sign_test,
    wilson,
)
from mav.study.votes import Study, Votes

REPORT, VOTES_CSV, RATERS_CSV = "report.json", "votes.csv", "raters.csv"


def report_study(study: Study, votes: Votes, out: Folder) -> dict[str, Any]:
    """Writes report.json, votes.csv and raters.csv (with completion codes, for crowd platforms); returns the report.

    Raises UserError when nobody has rated a pair yet.
    """
    rows, raters = votes.rows()
    answers: dict[int, dict[tuple[str, str], str]] = defaultdict(dict)
    for row in rows:
        answers[row["rater"]][row["item"], row["question"]] = row["answer"]
    excluded = {rater["rater"]: rater["excluded"] for rater in raters if rater["excluded"]}
    kept = [
        {**row, **study.key[row["item"]], "category": study.items[row["item"]]["category"]}
        for row in rows
        if row["complete"] and row["rater"] not in excluded and study.key[row["item"]]["kind"] == "pair"
    ]
    if not kept:
        raise UserError("Nobody has rated a pair yet: send out the links of links.csv.")
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
        "votes": {
            "kept": len(kept),
            "of_raters_left_out": sum(row["rater"] in excluded for row in rows),
            "of_checks": sum(study.key[row["item"]]["kind"] != "pair" for row in rows),
            "incomplete": sum(not row["complete"] for row in rows),
            "median_seconds": statistics.median(row["milliseconds"] for row in kept) / 1000,
        },
        "checks": _checks(study, answers, excluded),
        "questions": {
            q["id"]: _question(study, [row for row in kept if row["question"] == q["id"]]) for q in study.questions
        },
    }
    out.write_json(REPORT, report)
    columns = [
        "rater",
        "item",
        "kind",
        "question",
        "answer",
        "preferred",
        "left",
        "right",
        "category",
        "milliseconds",
        "at",
        "complete",
    ]
    out.write_bytes(VOTES_CSV, _csv(columns, [_told(study, row) for row in rows]))
    out.write_bytes(RATERS_CSV, _csv(["rater", "code", "ratings", "finished", "excluded"], raters))
    return report


def _told(study: Study, row: dict[str, Any]) -> dict[str, Any]:
    entry = study.key[row["item"]]
    return {**row, **{name: entry[name] for name in ("kind", "left", "right")}, "preferred": entry[row["answer"]],
            "category": study.items[row["item"]]["category"]}  # fmt: skip


def _csv(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _checks(study: Study, answers: dict[int, dict[tuple[str, str], str]], excluded: dict[int, str]) -> dict[str, Any]:
    """How the raters who count did on gold and mirrored pairs."""
    gold, mirrored = [], []
    for rater, given in answers.items():
        if rater in excluded:
            continue
        for (item, question), side in given.items():
            entry = study.key[item]
            if entry["kind"] == "gold":
                gold.append(entry[side] == "intact")
            elif entry["kind"] == "mirror" and (entry["of"], question) in given:
                mirrored.append(study.key[entry["of"]][given[entry["of"], question]] == entry[side])
    return {
        "gold_right": sum(gold), "gold": len(gold), "mirrored_same_video": sum(mirrored), "mirrored": len(mirrored),
    }  # fmt: skip


def _question(study: Study, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """All statistics of one question."""
    names = study.systems
    lefts = sum(row["answer"] == "left" for row in rows)
    found: dict[str, Any] = {
        "left": {
            "votes": lefts,
            "of": len(rows),
            "share": lefts / max(len(rows), 1),
            "interval": wilson(lefts, len(rows)),
        },
        "agreement": _agreement(rows),
        "pairs": {},
    }
    wins: Counter[tuple[str, str]] = Counter()
    for one, other in itertools.combinations(names, 2):
        between = [row for row in rows if {row["left"], row["right"]} == {one, other}]
        if between:
            found["pairs"][f"{one} over {other}"] = {
                **_preference(between, one),
                "categories": {
                    category: _preference([row for row in between if row["category"] == category], one)
                    for category in sorted({row["category"] for row in between})
                    if category
                },
            }
            first = sum(row[row["answer"]] == one for row in between)
            wins[one, other], wins[other, one] = first, len(between) - first
    if len(names) > 2:
        strengths = bradley_terry(wins) if connected(wins) else None
        found["bradley_terry"] = (
            strengths or "the comparisons do not connect all systems by wins and losses: no finite strengths"
        )
    return found


def _preference(rows: list[dict[str, Any]], system: str) -> dict[str, Any]:
    """How often a system won the majority of an item's raters, and how often single votes."""
    by_item: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        by_item[row["item"]].append(row[row["answer"]] == system)
    votes = [(float(sum(won)), float(len(won))) for won in by_item.values()]
    majority = [1.0 if 2 * wins > count else 0.0 for wins, count in votes if 2 * wins != count]
    wins, count = int(sum(majority)), len(majority)
    return {
        "items": len(by_item),
        "ties": len(by_item) - count,  # an even number of raters split in two
        "majority_wins": wins,
        "majority_share": wins / count if count else None,
        "majority_wilson": wilson(wins, count),
        "majority_bootstrap": cluster_bootstrap([(won, 1.0) for won in majority]),
        "sign_test_p": sign_test(wins, count - wins),
        "vote_share": sum(w for w, _ in votes) / max(sum(c for _, c in votes), 1),
        "vote_bootstrap": cluster_bootstrap(votes),
    }


def _agreement(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Agreement on which video was better, items as units."""
    units: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        units[row["item"]].append(float(row["answer"] == "left"))
    table = list(units.values())
    values = {"fleiss_kappa": fleiss_kappa(table), "krippendorff_alpha": krippendorff_alpha(table)}
    return {name: None if value != value else value for name, value in values.items()}
