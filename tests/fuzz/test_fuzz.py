"""The small part of `make fuzz` that every run of the tests can afford, and what holds for any text."""

import hashlib
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from corpus import SHARES, corpus
from hostile_pickles import hostile_pickles
from hypothesis import given, settings
from hypothesis import strategies as st
from targets import TARGETS

from mav.data.fetching.addresses import is_public
from mav.data.fetching.rules import FetchError, as_sent, opted_out, request_target, seconds_to_wait, split_url
from mav.secrets import redacted

SEED = 20
PART = 20  # of the inputs, one in so many; and those that were made by hand come first


# `test_nasties.py` has the pictures and answers that were made by hand.
SLOW = ("pictures", "answers")


@pytest.mark.parametrize("parser", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in SHARES])
def test_hostile_inputs_end_as_foreseen(parser, tmp_path, monkeypatch):
    """Any error that is not foreseen is raised here, and so is what an input must not reach."""
    monkeypatch.chdir(tmp_path)
    run = TARGETS[parser](tmp_path)
    for data in corpus(parser, max(SHARES[parser] // PART, 5), SEED):
        assert run(data)
    assert not (tmp_path / "evil").exists()


def test_no_hostile_pickle_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = TARGETS["pickles"](tmp_path)
    assert {run(data) for data in hostile_pickles()} <= {"UserError", "read"}  # raises where a file did what it says


def test_the_corpus_is_the_same_for_a_seed_and_no_input_comes_twice():
    for parser in ("lists", "yaml", "torch", "votes"):
        inputs = list(corpus(parser, SHARES[parser], SEED))
        assert inputs == list(corpus(parser, SHARES[parser], SEED))
        assert len({hashlib.sha256(data).digest() for data in inputs}) == SHARES[parser]
        assert set(inputs) != set(corpus(parser, SHARES[parser], SEED + 1))
    assert sum(SHARES.values()) > 1000


@pytest.mark.slow
def test_the_command_counts_a_crash_a_hang_and_an_escape(tmp_path):
    """With a target that does each of them: the process dies, sleeps, runs a program, writes outside."""
    script = tmp_path / "broken.py"
    fuzz = Path(__file__).with_name("fuzz.py")
    deeds = ["os.abort()", "time.sleep(99)", "subprocess.run(['true'])", "open('/tmp/mav-fuzz-outside', 'w')", "1 / 0"]
    script.write_text(
        "import os, subprocess, sys, time\n"
        f"sys.path.insert(0, {str(fuzz.parent)!r})\n"
        "import fuzz, targets\n"
        f"deeds = iter({deeds!r})\n"
        "first = int(sys.argv[sys.argv.index('--first') + 1]) if '--first' in sys.argv else 0\n"
        f"targets.TARGETS['yaml'] = lambda folder: lambda data: exec(next(left)) or 'done'\n"
        f"left = iter({deeds!r}[first:] + ['pass'] * 9)\n"
        "fuzz.DEADLINE, fuzz.__file__ = 5.0, __file__\n"
        "fuzz.SHARES = {'yaml': 8}\n"
        "sys.exit(fuzz.main())\n"
    )
    command = [sys.executable, str(script), "--json", str(tmp_path / "fuzz.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, done.stderr
    assert "| yaml | 8 | 2 | 1 | 2 |" in done.stdout, done.stdout


SIGNS = st.sampled_from(["http://", "https:", *"/@:[]%\\?#é\0", "//", "::1", "127.0.0.1"])
TEXT = st.text(max_size=60) | st.lists(SIGNS, max_size=8).map("".join)


@settings(max_examples=100, deadline=None)
@given(TEXT)
def test_any_header_and_address_ends_as_foreseen(text):
    sent = as_sent(text)
    with suppress(FetchError):
        target = request_target(split_url(sent))
        assert target.startswith("/")
        assert target.isascii()
        assert not set(target) & set(" \r\n\0")
    assert seconds_to_wait(text) is None or seconds_to_wait(text) >= 0
    assert opted_out([text], ("noai",)) in (True, False)
    assert is_public(text) in (True, False)
    assert redacted(redacted(text)) == redacted(text)
