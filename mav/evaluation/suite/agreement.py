"""How often a metric ranks two videos for one prompt as the raters did.

Of each pair, the raters prefer the side with more votes; pairs on which they are even are counted and left out. A
metric that ranks the pair as they do counts 1, one that gives both videos the same number 1/2. A coin reaches a half.
What one rater reaches against the majority of the others, with `no difference` as 1/2, stands beside it. Metrics that
are distances of sets have no number of one video and rank whole systems instead: of two systems, the raters prefer the
one that wins more prompts. Intervals count the pairs of one prompt together, and hold for these systems and raters.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mav.evaluation.intervals import clustered_share, estimate
from mav.evaluation.protocols.titles import shown
from mav.evaluation.suite.ratings import Pair, Ratings

EQUAL = 1e-9  # of two numbers: closer ones are the same up to rounding


def agreement(
    ratings: Ratings, each: Mapping[str, Mapping[str, float]], systems: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """Returns what the suite stores of how metrics agree with the raters, question by question.

    `each` has the numbers of every file by metric, `systems` those of every system, for metrics that are distances.
    """
    rows, raters = [], {}
    for question in sorted({pair.question for pair in ratings.pairs}):
        asked = [pair for pair in ratings.pairs if pair.question == question]
        raters[question] = one_rater(asked)
        for of, pairs, values in (("videos", asked, each), ("systems", between_systems(asked), systems)):
            for name, numbers in values.items():
                found = ranking(pairs, numbers, shown(name).better == "lower")
                rows.append({"metric": name, "question": question, "of": of, **found})
    return {
        "ratings": ratings.source,
        "raters": len({rater for pair in ratings.pairs for rater in pair.votes}),
        "systems": sorted(set(ratings.files.values())),
        "rated_videos": len(ratings.files),
        "answers_without_video": ratings.without_video,
        "rows": rows,
        "one_rater": raters,
    }


def ranking(pairs: Sequence[Pair], values: Mapping[str, float], lower: bool) -> dict[str, Any]:
    """Returns how often the values rank the sides of a pair as its raters; lower: a lower value is better.

    `value`, `low` and `high` are the share with its 95 % interval, over `pairs` judged ones of `prompts`; of these,
    `metric_even` have equal values. `raters_even` pairs are left out, and so are `unmeasured` ones, which lack a value.
    `verdict` says on which side of a half the interval lies: follows, opposes or chance. Without a pair that can be
    judged, the share is None and there is a `reason`.
    """
    wins: dict[str, list[float]] = defaultdict(list)
    counts = {"raters_even": 0, "metric_even": 0, "unmeasured": 0}
    for pair in pairs:
        first, second = (values.get(side, math.nan) for side in pair.sides)
        if math.isnan(first) or math.isnan(second):
            counts["unmeasured"] += 1
        elif not pair.preferred:
            counts["raters_even"] += 1
        else:
            even = math.isclose(first, second, rel_tol=EQUAL, abs_tol=EQUAL * EQUAL)
            counts["metric_even"] += even
            prefers = (1 if first > second else -1) * (-1 if lower else 1)
            wins[pair.prompt].append(0.5 if even else float(prefers == pair.preferred))
    return _share(wins) | counts


def one_rater(pairs: Iterable[Pair]) -> dict[str, Any]:
    """Returns how often one rater ranks a pair as the majority of the others, in the form of `ranking`."""
    wins: dict[str, list[float]] = defaultdict(list)
    for pair in pairs:
        total = sum(pair.votes.values())
        for vote in pair.votes.values():
            if others := total - vote:
                wins[pair.prompt].append(0.5 if vote == 0 else float((vote > 0) == (others > 0)))
    return _share(wins)


def between_systems(pairs: Iterable[Pair]) -> list[Pair]:
    """Returns the pairs of systems, for which every prompt has one vote: that of its raters."""
    votes: dict[tuple[str, str, str], dict[str, int]] = defaultdict(dict)
    for pair in pairs:
        if pair.systems[0] != pair.systems[1]:
            votes[pair.question, *pair.systems][pair.prompt] = pair.preferred
    return [Pair(q, f"{a} | {b}", (a, b), (a, b), told) for (q, a, b), told in sorted(votes.items())]


def _share(wins: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    judged = {"pairs": sum(map(len, wins.values())), "prompts": len(wins)}
    if not wins:
        reason = "no pair has both a value of each video and a side that more raters prefer"
        return {"value": None, "low": None, "high": None, "reason": reason, "verdict": "chance", **judged}
    value, low, high = clustered_share([(sum(won), len(won)) for _, won in sorted(wins.items())])
    verdict = "follows" if low > 0.5 else "opposes" if high < 0.5 else "chance"
    return estimate(value, low, high, interval="Wilson's, clustered by prompt", verdict=verdict, **judged)
