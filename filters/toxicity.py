"""Toxic captions: whole words and phrases of word lists, found in columns of millions of rows.

Matching is by whole word, so Essex and Scunthorpe stay; phrases match across any run of blanks, hyphens or underscores. Text and
lists are folded alike (NFKC, case, invisible characters), so full-width or zero-width disguises do not help. Hyperscan looks for all
phrases at once through the bytes of a whole column, folded first where folding would change more than case; the few rows it finds are
looked at again one by one, to be exact, to set exceptions aside and to name the word.

The shipped lists are those of the package glin-profanity (MIT), 24 languages of which the English one continues the usual LDNOOBW list;
any file of one phrase a line can be named instead or as well.
"""

import functools
import importlib.util
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mav.errors import UserError

LANGUAGES = {
    "ar": "arabic", "cs": "czech", "da": "danish", "de": "german", "en": "english", "eo": "esperanto", "es": "spanish", "fa": "persian",
    "fi": "finnish", "fr": "french", "hi": "hindi", "hu": "hungarian", "it": "italian", "ja": "japanese", "ko": "korean", "nl": "dutch",
    "no": "norwegian", "pl": "polish", "pt": "portuguese", "ru": "russian", "sv": "swedish", "th": "thai", "tr": "turkish", "zh": "chinese",
}  # fmt: skip
INVISIBLE = re.compile("[\u00ad\u034f\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufe00-\ufe0f\ufeff]")
SEPARATOR = "\0"  # stays itself when folded, and joins with nothing
SETTLING = (
    (0x80, 0x3400),
    (0xA000, 0xAC00),
    (0xD7B0, 0xD800),
    (0xF900, 0x20000),
    (0x2F800, 0x2FA20),
    (0xE0000, 0xE0200),
)  # all but Han,
# Hangul and what is unassigned, which folding leaves alone
BETWEEN = r"[\s_-]+"  # between the words of a phrase
LOOKALIKE = {
    "a": "a4@",
    "b": "b8",
    "e": "e3",
    "g": "g9",
    "i": "i1!|",
    "l": "l1|",
    "o": "o0",
    "s": "s5$",
    "t": "t7+",
    "u": "uv",
}
MASKS = "*#%@$!.-"  # one of them in a letter's place


def fold(text: str) -> str:
    """Compatibility form, case folded, invisible characters removed."""
    seen = INVISIBLE.sub("", text)
    return (seen if unicodedata.is_normalized("NFKC", seen) else unicodedata.normalize("NFKC", seen)).casefold()


def load_words(lists: Sequence[str]) -> tuple[str, ...]:
    """Folded, distinct phrases of shipped languages (`en`) and of files. Raises UserError for a list that is neither."""
    words: set[str] = set()
    for name in lists:
        words.update(_shipped(name) if name in LANGUAGES else _file(name))
    return tuple(sorted(_folded(words)))


def _folded(phrases: Iterable[str]) -> set[str]:
    return {" ".join(fold(phrase).split()) for phrase in phrases} - {""}


def _shipped(language: str) -> list[str]:
    spec = importlib.util.find_spec("glin_profanity")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "The shipped word lists need the package glin-profanity: install it, or name files in `screening.word_lists`."
        )
    path = os.path.join(spec.submodule_search_locations[0], "data", "dictionaries", f"{LANGUAGES[language]}.json")
    with open(path, encoding="utf-8") as file:
        words: list[str] = json.load(file)["words"]
    return words


def _file(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            words = [line.strip() for line in file]
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(sorted(LANGUAGES))
        raise UserError(
            f"`screening.word_lists` names {path!r}, which is neither a shipped language ({known}) nor a readable file ({error})."
        ) from None
    return words


class ToxicWords:
    """A compiled set of phrases. Build it once a process (`toxic_words`), it is slow to make and fast to use."""

    def __init__(self, words: Sequence[str], exceptions: Sequence[str] = (), obfuscations: bool = False) -> None:
        excepted = _folded(exceptions)
        self.words = sorted(_folded(words) - excepted)
        patterns = {word: _pattern(word, obfuscations) for word in self.words}
        cased = any(
            not c.isascii() and c.upper() != c for word in self.words for c in word
        )  # bytes do not tell cases beyond ASCII
        self._odd = "" if cased else unsettled()  # which texts are searched folded too; empty: all beyond ASCII
        self._database = _compiled([_loose(word, pattern) for word, pattern in patterns.items()])
        self._row = self._exact(patterns)
        self._excepted = (
            re.compile("|".join(_whole(p, _pattern(p, False)) for p in sorted(excepted, key=len, reverse=True)))
            if excepted
            else None
        )

    def _exact(self, patterns: dict[str, str]) -> re.Pattern[str] | None:
        """One group a phrase, phrases gathered by their first letter: a place in the text is tried against few of them."""
        initials: dict[str, list[str]] = {}
        self.words.sort(key=lambda word: (_boundless(word), word[0], -len(word), word))
        for word in self.words:
            start = ("" if _boundless(word) else r"(?<![^\W_])") + f"(?={re.escape(word[0])})"
            initials.setdefault(start, []).append(f"({patterns[word]})" + ("" if _boundless(word) else r"(?![^\W_])"))
        return (
            re.compile("|".join(f"{start}(?:{'|'.join(group)})" for start, group in initials.items()))
            if initials
            else None
        )

    def find(self, captions: pa.ChunkedArray | pa.Array) -> tuple[np.ndarray, list[str]]:
        """(positions of toxic captions, the phrase found in each); null captions are never toxic."""
        if self._database is None or len(captions) == 0:
            return np.zeros(0, dtype=np.int64), []
        texts = pc.fill_null(captions.combine_chunks() if isinstance(captions, pa.ChunkedArray) else captions, "")
        suspects, beyond = self._suspects(texts)
        odd = beyond[
            pc.match_substring_regex(texts.take(pa.array(beyond)), self._odd)
            .to_numpy(zero_copy_only=False)
            .astype(bool)
        ]
        if len(odd):
            suspects = np.union1d(suspects, odd[self._suspects(fold_all(texts.take(pa.array(odd))))[0]])
        lines = [fold(text) for text in texts.take(pa.array(suspects)).to_pylist()]
        found = [
            (place, word) for place, line in zip(suspects.tolist(), lines, strict=True) if (word := self.first(line))
        ]
        return np.array([place for place, _ in found], dtype=np.int64), [word for _, word in found]

    def _suspects(self, texts: pa.Array) -> tuple[np.ndarray, ...]:
        """(positions of the texts in which something like a phrase is, positions of those with characters beyond ASCII), ascending.

        All texts are searched as one, a line each: what runs across two lines makes a suspect and hides nothing, for every match is told.
        """
        lines = pc.binary_join(pa.ListArray.from_arrays(pa.array([0, len(texts)], pa.int32()), texts), "\n").buffers()[
            2
        ]
        whole = b"".join((b"\n", lines, b"\n"))
        starts = np.cumsum(pc.binary_length(texts).to_numpy() + 1, dtype=np.int64) + 1  # of each text but the first
        ends: list[int] = []
        self._database.scan(whole, match_event_handler=lambda _id, _from, to, _flags, _context: ends.append(to))
        signs = np.flatnonzero(np.frombuffer(whole, np.int8) < 0)
        return tuple(
            np.unique(np.searchsorted(starts, places, "right")) for places in (np.array(ends, np.int64) - 1, signs)
        )

    def first(self, folded: str) -> str:
        """The first phrase of one folded caption, or an empty string."""
        if self._excepted is not None:
            folded = self._excepted.sub("|", folded)
        match = self._row.search(folded) if self._row is not None else None
        return self.words[match.lastindex - 1] if match is not None and match.lastindex else ""


@functools.lru_cache(maxsize=4)
def toxic_words(lists: tuple[str, ...], exceptions: tuple[str, ...], obfuscations: bool) -> ToxicWords:
    return ToxicWords(load_words(lists), exceptions, obfuscations)


def fold_all(texts: pa.Array) -> pa.Array:
    """`fold` over a column that holds no null, joined for the steps that take one text as well as many."""
    whole = pc.replace_substring(texts, SEPARATOR, " ")
    joined = pc.binary_join(pa.ListArray.from_arrays(pa.array([0, len(texts)], pa.int32()), whole), SEPARATOR)[
        0
    ].as_py()
    lines = INVISIBLE.sub("", joined).split(SEPARATOR) if len(texts) else []
    normal = [
        line if unicodedata.is_normalized("NFKC", line) else unicodedata.normalize("NFKC", line) for line in lines
    ]
    return pa.array([line.casefold() for line in normal], texts.type)


@functools.cache
def unsettled() -> str:
    """A class of the characters that `fold` does more to than change their case: texts without them need no folding to be searched.

    Those that vanish, that become others or several (full width, ligatures, the dotted capital I), and those that join a neighbour.
    """
    characters = [chr(place) for first, last in SETTLING for place in range(first, last)]
    whole = unicodedata.normalize(
        "NFKC", INVISIBLE.sub("", SEPARATOR.join(characters))
    ).casefold()  # `fold`, of all at once
    places = [ord(c) for c, folded in zip(characters, whole.split(SEPARATOR), strict=True) if _unsettled(c, folded)]
    ranges: list[list[int]] = []
    for place in places:
        if ranges and place == ranges[-1][1] + 1:
            ranges[-1][1] = place
        else:
            ranges.append([place, place])
    return "[" + "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges) + "]"


def _unsettled(character: str, folded: str) -> bool:
    joins = (
        unicodedata.category(character).startswith("M") or "\u1100" <= character <= "\u11ff"
    )  # marks; the letters of Hangul
    return joins or folded != character.lower() or len(folded) != 1 or ord(folded) < 128


def _compiled(expressions: list[bytes]) -> Any:
    """A Hyperscan database of the expressions, or None when there are none. One thread at a time may search with it."""
    import hyperscan

    if not expressions:
        return None
    database = hyperscan.Database(mode=hyperscan.HS_MODE_BLOCK)
    database.compile(expressions=expressions, elements=len(expressions), flags=hyperscan.HS_FLAG_CASELESS)
    return database


def _boundless(word: str) -> bool:
    """Scripts without spaces between words, and signs such as emoji: matched anywhere."""
    return any(
        ord(c) > 127 and (_spaceless(c) or not c.isalnum()) and not unicodedata.combining(c)
        for c in (word[0], word[-1])
    )


def _spaceless(character: str) -> bool:
    return unicodedata.name(character, "").split(" ")[0] in {
        "CJK",
        "HIRAGANA",
        "KATAKANA",
        "THAI",
        "LAO",
        "KHMER",
        "MYANMAR",
    }


def _pattern(phrase: str, obfuscations: bool) -> str:
    """The expression of one folded phrase, in what Hyperscan and Python's re have in common."""
    parts: Iterable[str] = [part for part in re.split(BETWEEN, phrase) if part] or [phrase]
    if obfuscations and len(phrase) >= 4 and phrase.isascii() and phrase.isalpha():
        return _obfuscated(phrase)
    return BETWEEN.join(re.escape(part) for part in parts)


def _obfuscated(word: str) -> str:
    """Look-alike signs or one masking sign in the place of inner letters; the first letter stays, or numbers would match."""
    inner = "".join(f"[{re.escape(LOOKALIKE.get(c, c) + MASKS)}]" for c in word[1:-1])
    return f"{re.escape(word[0])}{inner}[{re.escape(LOOKALIKE.get(word[-1], word[-1]))}]"


def _loose(word: str, pattern: str) -> bytes:
    """What Hyperscan looks for in bytes: it may find too much (any byte that is no ASCII letter or digit is an edge, or a blank of
    whatever kind), never too little. Words that neither begin nor end in ASCII have no edges."""
    inner = pattern.replace(BETWEEN, "[^a-z0-9]+").encode()
    return b"[^a-z0-9](?:" + inner + b")[^a-z0-9]" if word.isascii() else inner


def _whole(word: str, pattern: str) -> str:
    return pattern if _boundless(word) else rf"(?<![^\W_])(?:{pattern})(?![^\W_])"
