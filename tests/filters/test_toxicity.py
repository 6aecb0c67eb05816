import itertools
import random
import re

import pyarrow as pa
import pytest

from filters.toxicity import ToxicWords, fold, load_words, unsettled
from mav.errors import UserError

EN = load_words(("en",))


def found(words: ToxicWords, *captions: str | None) -> dict[int, str]:
    positions, names = words.find(pa.array(captions, pa.string()))
    return dict(zip(positions.tolist(), names, strict=True))


def test_whole_words_only():
    words = ToxicWords(EN)
    assert (
        found(words, "Essex and Scunthorpe", "a grass assassin in class", "cockatoo", "Dickens novel", None, "") == {}
    )
    assert found(words, "what a bollocks!", "bollocks", "(BOLLOCKS)", "total_bollocks.jpg") == dict.fromkeys(
        range(4), "bollocks"
    )


def test_phrases_match_across_blanks_and_hyphens():
    words = ToxicWords(EN)
    assert found(words, "God  Damn it", "god-damn", "god_damn", "god, damn", "godly damned") == dict.fromkeys(
        range(3), "god damn"
    )


def test_longest_phrase_names_the_match():
    words = ToxicWords(("red", "red rag", "red rag bull"))
    assert found(words, "a red rag bull", "a red rag", "red") == {0: "red rag bull", 1: "red rag", 2: "red"}


def test_unicode_is_folded():
    words = ToxicWords(("bollocks", "straße"))
    wide = "".join(chr(ord(letter) + 0xFEE0) for letter in "Bollocks")
    assert found(words, wide, "bol\u200blocks", "BOL\u00adLOCKS", "STRASSE") == {
        0: "bollocks", 1: "bollocks", 2: "bollocks", 3: "strasse"}  # fmt: skip
    assert fold("ﬁne") == "fine"


def test_texts_of_settled_characters_are_searched_as_well_unfolded():
    """In all of Unicode, folding a character outside the class only lowers its case and yields no ASCII."""
    odd = re.compile(unsettled())
    for place in itertools.chain(range(0x80, 0xD800), range(0xE000, 0x110000)):
        character = chr(place)
        if not odd.match(character):
            folded, lower = fold(character), character.lower()
            assert folded == lower, hex(place)
            assert len(folded) == 1, hex(place)
            assert not folded.isascii(), hex(place)
            assert lower == character or lower.upper() != lower, (
                f"{hex(place)}: phrases with a letter of two cases are recognised"
            )
    words = ToxicWords(("bollocks", "straße", "kiss me", "été"))
    disguised = [
        "\u212aiss me",
        "kiss\u00a0me",
        "STRA\u1e9eE",
        "e\u0301te\u0301",
        "\u24d1ollocks",
        "\U0001d41bollocks",
        "ÉTÉ",
        "bo\ufb02locks",
    ]
    assert found(words, *disguised) == {
        0: "kiss me",
        1: "kiss me",
        2: "strasse",
        3: "été",
        4: "bollocks",
        5: "bollocks",
        6: "été",
    }


def test_letters_beyond_ascii_are_letters():
    words = ToxicWords(("ass", "дурак", "été"))
    assert found(words, "éass", "assé", "дураком", "дурак!", "l'été", "étés") == {3: "дурак", 4: "été"}


def test_scripts_without_spaces_and_signs_match_anywhere():
    assert found(ToxicWords(("ちんぽ", "🖕")), "これはちんぽです", "no🖕way") == {0: "ちんぽ", 1: "🖕"}


def test_words_that_begin_with_signs():
    words = ToxicWords(("$hit", "a$$", "s&m"))
    assert found(words, "oh $hit", "cash$hit", "kiss my a$$", "S&M club", "ps&ms") == {0: "$hit", 2: "a$$", 3: "s&m"}


def test_exceptions():
    words = ToxicWords(("dick", "bastard", "cock"), exceptions=("Dick van Dyke", "bastard"))
    assert found(words, "dick  van dyke on stage", "the bastard", "dick van dyke is a dick", "dick van") == {
        2: "dick",
        3: "dick",
    }


def test_obfuscations_are_an_option():
    captions = ("sh1t happens", "sh*t", "f**k it", "b@stard", "shift", "5417", "fork")
    assert found(ToxicWords(("shit", "fuck", "bastard")), *captions) == {}
    assert found(ToxicWords(("shit", "fuck", "bastard"), obfuscations=True), *captions) == {
        0: "shit",
        1: "shit",
        2: "fuck",
        3: "bastard",
    }


def test_files_and_languages(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("Foul Word\n\n  other \n", encoding="utf-8-sig")
    assert load_words((str(path),)) == ("foul word", "other")
    assert len(load_words(("en", "de", "ja", "ru"))) > len(EN) > 300
    with pytest.raises(UserError, match="word_lists"):
        load_words(("klingon",))


def test_many_languages_at_once_still_agree_with_a_plain_search():
    words = ToxicWords(load_words(("en", "de", "es", "fr", "ru", "it", "pl", "tr")))
    captions = [f"a photo of {word} here" for word in words.words[::7]] + ["a photo of a house"] * 3
    positions, _ = words.find(pa.array(captions))
    assert positions.tolist() == list(range(len(captions) - 3))


@pytest.mark.parametrize(
    ("phrases", "obfuscations"),
    [(EN, False), (EN[::9], True), ((*EN[::4], "straße", "дурак", "été", "ちんぽ"), False)],
    ids=["english", "obfuscated", "letters beyond ASCII"],
)
def test_the_column_is_searched_as_its_texts_one_by_one(phrases, obfuscations):
    """A seeded corpus of phrases, whole, cut, joined and disguised."""
    rng, words = random.Random(11), ToxicWords(phrases, exceptions=("sucks",), obfuscations=obfuscations)
    wide = {**{c: c + 0xFEE0 for c in range(0x21, 0x7F)}, 0x20: 0x3000}
    disguises = (
        str.upper, str.title, str.swapcase, lambda w: w[:-1], lambda w: w + "s", lambda w: w.translate(wide),
        lambda w: w.replace(" ", "\u00a0-"), lambda w: w.replace(" ", "\x85"), lambda w: w.replace(" ", "\n"),
        lambda w: "\u200b".join(w), lambda w: w.replace("k", "\u212a"),
        lambda w: w.replace("s", "$"), lambda w: w[:1] + "*" + w[2:], lambda w: "e\u0301" + w, lambda w: w,
    )  # fmt: skip
    plain = [
        "a",
        "photo",
        "of",
        "class",
        "Essex",
        "café",
        "naïve",
        "日本",
        "\u2026",
        "®",
        "",
        "\0",
        "god",
        "5",
        "\u00ad",
    ]

    def text() -> str | None:
        pieces = rng.choices(plain, k=rng.randrange(7)) + [
            rng.choice(disguises)(rng.choice(words.words)) for _ in range(rng.random() < 0.3)
        ]
        rng.shuffle(pieces)
        return rng.choice([" ", " ", "_", "", ", "]).join(pieces) if rng.random() < 0.98 else None

    texts = [text() for _ in range(6000)]
    exact = {at: word for at, caption in enumerate(texts) if caption and (word := words.first(fold(caption)))}
    assert 500 < len(exact) < 3000
    assert found(words, *texts) == exact
    column = pa.chunked_array([pa.array(texts[:100]), pa.array(texts)]).slice(100)
    assert dict(zip(*words.find(column), strict=True)) == exact, "in a slice of a longer column too"


def test_no_words_no_matches():
    assert found(ToxicWords(()), "anything") == {}


@pytest.mark.parametrize("language", ["en", "de", "es", "fr", "ja", "ru", "zh"])
def test_real_lists(language, real_data):
    lines = load_words((str(real_data / f"lexicon/ldnoobw_{language}.txt"),))
    words = ToxicWords(lines)
    assert len(words.words) > 30
    assert set(found(words, *[f"({line})" for line in lines])) == set(range(len(lines)))
    assert found(words, "Essex, Scunthorpe and Penistone", "the assassin's cockatoo", "analysis of a class") == {}
