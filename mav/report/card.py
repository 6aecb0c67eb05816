"""Writes a validity card (`mav.evaluation.card`) as one page in the report's style."""

from typing import Any

from mav.evaluation.card import blind_to
from mav.evaluation.protocols.titles import shown
from mav.report.templates import rendered


def card_page(card: dict[str, Any]) -> bytes:
    """Returns the page: what each metric sees in words, a table of damages by metrics, and all values."""
    return rendered("card.html", card_context(card))


def card_context(card: dict[str, Any]) -> dict[str, Any]:
    """Returns what the tables of a card are made of."""
    metrics = list(card["real"])
    rows = {(row["corruption"], row["metric"]): row for row in card["rows"]}
    return {
        "card": card,
        "names": {name: shown(name).title for name in (*metrics, *card["not_judged"])},
        "metrics": metrics,
        "rows": rows,
        "blind": [shown(name).title for name in blind_to("strobing", card)],
    }
