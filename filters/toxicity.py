"""Toxic captions: whole words and phrases of word lists, found in columns of millions of rows.

Only whole words match, so Essex and Scunthorpe stay; phrases match across blanks, hyphens and underscores. Texts and
lists are folded alike (NFKC, case, invisible characters). Hyperscan searches the bytes of a whole column for all
phrases at once; its few matches are checked again one by one, to be exact, to apply the exceptions and to name the
word. The shipped lists are those of the package glin-profanity (MIT), whose English list continues LDNOOBW.
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
    "ar": "arabic", "cs": "czech", "da": "danish", "de": "german", "en": "english", "eo": "esperanto", "es": "spanish",
    "fa": "persian", "fi": "finnish", "fr": "french", "hi": "hindi", "hu": "hungarian", "it": "italian",
    "ja": "japanese", "ko": "korean", "nl": "dutch", "no": "norwegian", "pl": "polish", "pt": "portuguese",
    "ru": "russian", "sv": "swedish", "th": "thai", "tr": "turkish", "zh": "chinese",
}  # fmt: skip
INVISIBLE = re.compile("[\u00ad\u034f\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufe00-\ufe0f\ufeff]")
SEPARATOR = "\0"  # folding does not change it, and it joins with no other character
# All characters beyond ASCII but Han, Hangul and the unassigned ones, which folding does not change.
FOLDABLE = (
    (0x80, 0x3400), (0xA000, 0xAC00), (0xD7B0, 0xD800), (0xF900, 0x20000), (0x2F800, 0x2FA20), (0xE0000, 0xE0200),
)  # fmt: skip
BETWEEN = r"[\s_-]+"  # between the words of a phrase
BEFORE, AFTER = r"(?<![^\W_])", r"(?![^\W_])"  # the edges of a word
LOOKALIKE = {
    "a": "a4@", "b": "b8", "e": "e3", "g": "g9", "i": "i1!|", "l": "l1|", "o": "o0", "s": "s5$", "t": "t7+", "u": "uv",
}  # fmt: skip
MASKS = "*#%@$!.-"  # one of them in a letter's place
SPACELESS = {"CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR"}  # scripts without spaces between words


def fold(text: str) -> str:
    """Returns the compatibility form (NFKC), case folded, without invisible characters."""
    return _normal(INVISIBLE.sub("", text)).casefold()


def _normal(text: str) -> str:
    return text if unicodedata.is_normalized("NFKC", text) else unicodedata.normalize("NFKC", text)


def load_words(lists: Sequence[str]) -> tuple[str, ...]:
    """Returns the folded, distinct phrases of shipped languages (`en`) and of files.

    Raises UserError for a list that is neither.
    """
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
            "The shipped word lists need the package glin-profanity: install it, or name files in "
            "`screening.word_lists`."
        )
    path = os.path.join(spec.submodule_search_locations[0], "data", "dictionaries", f"{LANGUAGES[language]}.json")
    with open(path, encoding="utf-8") as file:
        words: list[str] = json.load(file)["words"]
    return words


def _file(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            return [line.strip() for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"`screening.word_lists` names {path!r}, which is neither a shipped language "
            f"({', '.join(sorted(LANGUAGES))}) nor a readable file ({error})."
        ) from None


class ToxicWords:
    """A compiled set of phrases. It is slow to make and fast to use: build it once a process (`toxic_words`)."""

    def __init__(self, words: Sequence[str], exceptions: Sequence[str] = (), obfuscations: bool = False) -> None:
        excepted = sorted(_folded(exceptions), key=len, reverse=True)
        self.words = sorted(_folded(words).difference(excepted), key=_order)
        patterns = {word: _pattern(word, obfuscations) for word in self.words}
        # `_odd` matches the texts that are searched folded too; empty, it matches all beyond ASCII, because a search in
        # bytes ignores case in ASCII only.
        cased = any(not c.isascii() and c.upper() != c for word in self.words for c in word)
        self._odd = "" if cased else unsettled()
        self._database = _compiled([_loose(word, pattern) for word, pattern in patterns.items()])
        self._row = _any_of(_by_initial(patterns))
        self._excepted = _any_of([_whole(phrase, _pattern(phrase, False)) for phrase in excepted])

    def find(self, captions: pa.ChunkedArray | pa.Array) -> tuple[np.ndarray, list[str]]:
        """Returns the positions of toxic captions, ascending, and the phrase found in each. Nulls are never toxic."""
        if self._database is None or len(captions) == 0:
            return np.zeros(0, dtype=np.int64), []
        texts = pc.fill_null(captions.combine_chunks() if isinstance(captions, pa.ChunkedArray) else captions, "")
        suspects, beyond = self._suspects(texts)
        odd = beyond[np.asarray(pc.match_substring_regex(texts.take(pa.array(beyond)), self._odd), dtype=bool)]
        if len(odd):
            suspects = np.union1d(suspects, odd[self._suspects(fold_all(texts.take(pa.array(odd))))[0]])
        lines = zip(suspects.tolist(), texts.take(pa.array(suspects)).to_pylist(), strict=True)
        found = [(position, word) for position, line in lines if (word := self.first(fold(line)))]
        return np.array([position for position, _ in found], dtype=np.int64), [word for _, word in found]

    def _suspects(self, texts: pa.Array) -> tuple[np.ndarray, ...]:
        """Returns the positions of texts that seem to hold a phrase, and of texts beyond ASCII, ascending.

        All texts are searched as one, a line each. A match across two lines makes a suspect and hides no other match.
        """
        lines = _join(texts, "\n").buffers()[2]
        whole = b"".join((b"\n", lines, b"\n"))
        starts = np.cumsum(pc.binary_length(texts).to_numpy() + 1, dtype=np.int64) + 1  # of each text but the first
        ends: list[int] = []
        self._database.scan(whole, match_event_handler=lambda _id, _from, to, _flags, _context: ends.append(to))
        places = np.array(ends, np.int64) - 1, np.flatnonzero(np.frombuffer(whole, np.int8) < 0)
        return tuple(np.unique(np.searchsorted(starts, at, "right")) for at in places)

    def first(self, folded: str) -> str:
        """Returns the first phrase of one folded caption, or an empty string."""
        if self._excepted is not None:
            folded = self._excepted.sub("|", folded)
        match = self._row.search(folded) if self._row is not None else None
        return self.words[match.lastindex - 1] if match is not None and match.lastindex else ""


@functools.lru_cache(maxsize=4)
def toxic_words(lists: tuple[str, ...], exceptions: tuple[str, ...], obfuscations: bool) -> ToxicWords:
    """Returns the compiled phrases of these lists, made once a process."""
    return ToxicWords(load_words(lists), exceptions, obfuscations)


def fold_all(texts: pa.Array) -> pa.Array:
    """Applies `fold` to a column without nulls; most of its steps run once over all texts joined."""
    joined = _join(pc.replace_substring(texts, SEPARATOR, " "), SEPARATOR)[0].as_py()
    lines = INVISIBLE.sub("", joined).split(SEPARATOR) if len(texts) else []
    return pa.array([_normal(line).casefold() for line in lines], texts.type)


def _join(texts: pa.Array, separator: str) -> Any:
    return pc.binary_join(pa.ListArray.from_arrays(pa.array([0, len(texts)], pa.int32()), texts), separator)


@functools.cache
def unsettled() -> str:
    """Returns a class of the characters that `fold` changes in more than their case. Other texts need no folding.

    They vanish, become others or several (full width, ligatures, the dotted capital I), or join a neighbour.
    """
    characters = [chr(code) for first, end in FOLDABLE for code in range(first, end)]
    # `fold`, applied to all of them at once.
    whole = unicodedata.normalize("NFKC", INVISIBLE.sub("", SEPARATOR.join(characters))).casefold()
    codes = [ord(c) for c, folded in zip(characters, whole.split(SEPARATOR), strict=True) if _unsettled(c, folded)]
    ends = np.flatnonzero(np.diff(codes) > 1)  # of each range of consecutive characters but the last
    ranges = zip(np.array(codes)[[0, *(ends + 1)]], np.array(codes)[[*ends, -1]], strict=True)
    return "[" + "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges) + "]"


def _unsettled(character: str, folded: str) -> bool:
    # Marks join the character before them, and the letters of Hangul each other.
    joins = unicodedata.category(character).startswith("M") or "\u1100" <= character <= "\u11ff"
    return joins or folded != character.lower() or len(folded) != 1 or ord(folded) < 128


def _compiled(expressions: list[bytes]) -> Any:
    """Returns a Hyperscan database of the expressions, or None when there are none. It is not thread-safe."""
    import hyperscan

    if not expressions:
        return None
    database = hyperscan.Database(mode=hyperscan.HS_MODE_BLOCK)
    database.compile(expressions=expressions, elements=len(expressions), flags=hyperscan.HS_FLAG_CASELESS)
    return database


def _any_of(expressions: Sequence[str]) -> re.Pattern[str] | None:
    return re.compile("|".join(expressions)) if expressions else None


def _order(word: str) -> tuple[Any, ...]:
    """Sorts phrases with the same first letter together, longer ones first."""
    return _boundless(word), word[0], -len(word), word


def _by_initial(patterns: dict[str, str]) -> list[str]:
    """Returns an expression for each first letter, with one group a phrase, so that few are tried at a place."""
    initials: dict[str, list[str]] = {}
    for word, pattern in patterns.items():
        before, after = ("", "") if _boundless(word) else (BEFORE, AFTER)
        initials.setdefault(f"{before}(?={re.escape(word[0])})", []).append(f"({pattern}){after}")
    return [f"{start}(?:{'|'.join(group)})" for start, group in initials.items()]


def _boundless(word: str) -> bool:
    """Says whether a phrase matches anywhere: scripts without spaces between words, and signs such as emoji."""
    ends = [c for c in (word[0], word[-1]) if ord(c) > 127 and not unicodedata.combining(c)]
    return any(unicodedata.name(c, "").split(" ")[0] in SPACELESS or not c.isalnum() for c in ends)


def _pattern(phrase: str, obfuscations: bool) -> str:
    """Returns the expression of one folded phrase, in the syntax that Hyperscan and Python's re have in common."""
    if obfuscations and len(phrase) >= 4 and phrase.isascii() and phrase.isalpha():
        # Look-alike or masking signs may replace inner letters. The first letter stays, or numbers would match.
        inner = "".join(f"[{re.escape(LOOKALIKE.get(c, c) + MASKS)}]" for c in phrase[1:-1])
        return f"{re.escape(phrase[0])}{inner}[{re.escape(LOOKALIKE.get(phrase[-1], phrase[-1]))}]"
    return BETWEEN.join(re.escape(part) for part in [part for part in re.split(BETWEEN, phrase) if part] or [phrase])


def _loose(word: str, pattern: str) -> bytes:
    """Returns the expression that Hyperscan looks for in bytes. It may find too much, never too little.

    Any byte but an ASCII letter or digit is an edge or a blank. Words with characters beyond ASCII have no edges.
    """
    inner = pattern.replace(BETWEEN, "[^a-z0-9]+").encode()
    return b"[^a-z0-9](?:" + inner + b")[^a-z0-9]" if word.isascii() else inner


def _whole(word: str, pattern: str) -> str:
    return pattern if _boundless(word) else f"{BEFORE}(?:{pattern}){AFTER}"
