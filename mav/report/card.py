"""Writes a validity card (`mav.evaluation.card`) as one page in the report's style."""

from typing import Any

from mav.report.page import METRICS
from mav.report.templates import templates

NAMES = {"kvd": "KVD", "kid": "KID"}  # of metrics that no report shows


def card_page(card: dict[str, Any]) -> bytes:
    """Returns the page: what each metric sees in words, a table of damages by metrics, and all values."""
    metrics = list(card["real"])
    rows = {(row["corruption"], row["metric"]): row for row in card["rows"]}
    context = {
        "card": card,
        "names": {name: _title(name) for name in (*metrics, *card["not_judged"])},
        "metrics": metrics,
        "rows": rows,
        "blind": [_title(name) for name in metrics if not any(p["worse"] for p in rows["strobing", name]["points"])],
    }
    return templates().get_template("card.html").render(context).encode()


def _title(metric: str) -> str:
    kind, _, second = metric.partition("_")
    return f"{METRICS[kind][0] if kind in METRICS else NAMES.get(kind, kind.upper())} {second}".strip()
