"""The votes of a study in SQLite: which rater is asked what, and the answers. Rows of answers are only ever added.

It is safe under many raters at once and under kill -9: every call is one transaction that holds the write lock from its
start, and is on the disk before it is answered. The seats of a pair are its complete ratings by raters who are not left
out, plus the leases of raters who are rating it. A pair with `raters` taken seats is given to nobody else, so it gets
exactly this number of ratings. A lease expires; a rater who returns later keeps the seat only if it is still free.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mav.errors import UserError
from mav.storage import Folder
from mav.study.queries import ALL_RATERS, ALL_VOTES, NEXT_PAIR, SCHEMA
from mav.study.study import GOLD_EVERY, GOLD_MISSES, KEY, MIRROR_EVERY, SIDE_ANSWERS, STUDY

LEASE_SECONDS = 600.0
UNKNOWN_LINK = "This link is not known. Open the link you were sent."


class RefusedError(Exception):
    """A request that cannot be granted; `status` is that of HTTP."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Study:
    """A frozen study with its key."""

    items: dict[str, dict[str, Any]]
    key: dict[str, dict[str, Any]]
    systems: list[str]  # in the order in which they were named, ours first
    questions: list[dict[str, Any]]
    raters: int
    session: int
    rule: str
    sha256: str

    @classmethod
    def load(cls, folder: Folder) -> Study:
        """Reads a study. Raises UserError when there is none, or it was changed after it was frozen."""
        if not folder.exists(STUDY):
            raise UserError(f"{folder.url} holds no study: `mav study freeze` makes one.")
        name = KEY
        try:
            key = folder.read_json(KEY)
            entries, systems, wanted = key["items"], key["systems"], key["study_sha256"]
            name = STUDY
            study = folder.read_json(STUDY)
            items = {item["id"]: item for item in study["items"]}
            fields = {name: study[name] for name in ("questions", "raters", "session", "rule")}
        except FileNotFoundError:
            raise UserError(f"{folder.path(KEY)} is lost: bring it back from a copy, or freeze again.") from None
        except (ValueError, KeyError, TypeError) as error:
            remedy = "bring it back from a copy, or freeze again"
            raise UserError(f"{folder.path(name)} is damaged ({error!r}): {remedy}.") from None
        digest = folder.sha256(STUDY)
        if wanted != digest or set(items) != set(entries):
            raise UserError(f"{folder.path(STUDY)} was changed after it was frozen: freeze it again.")
        return cls(items, entries, systems, **fields, sha256=digest)

    def damaged(self, folder: Folder) -> list[str]:
        """Returns the videos that are lost or no more what they were: each is named by the digest of its bytes."""
        videos = sorted({item[side] for item in self.items.values() for side in ("left", "right")})
        return [name for name in videos if not _is_whole(folder, name)]

    def of_kind(self, kind: str) -> list[str]:
        """Returns the items of a kind, in the order of the study."""
        return [name for name in self.items if self.key[name]["kind"] == kind]


def _is_whole(folder: Folder, video: str) -> bool:
    stem = video.rpartition("/")[2].partition(".")[0]
    return folder.exists(video) and folder.sha256(video).startswith(stem)


class Votes:
    """The database of one study."""

    def __init__(self, path: str, study: Study, lease_seconds: float = LEASE_SECONDS) -> None:
        """Opens or makes the database. Raises UserError when it belongs to another study."""
        self.path, self.study, self.lease_seconds = path, study, lease_seconds
        self._local = threading.local()
        pairs, self._gold = study.of_kind("pair"), study.of_kind("gold")
        self._mirror_of = {study.key[name]["of"]: name for name in study.of_kind("mirror")}
        self._pairs = frozenset(pairs)
        remedy = "bring it back from a copy, or move it away to begin anew"
        if os.path.exists(path) and not os.path.getsize(path):
            raise UserError(f"{path} is empty, so the votes in it are lost: {remedy}.")
        try:
            self._begin(pairs)
        except sqlite3.DatabaseError as error:
            raise UserError(f"{path} is not a database of votes that can be used ({error}): {remedy}.") from None

    def _begin(self, pairs: list[str]) -> None:
        """Makes the tables, unless they are there."""
        self._connection().executescript(SCHEMA)
        os.chmod(self.path, 0o600)  # it holds everybody's link
        study, path = self.study, self.path
        with self._transaction() as db:
            known = db.execute("SELECT sha256 FROM study").fetchone()
            if known is None:
                db.execute("INSERT INTO study VALUES (?)", (study.sha256,))
                db.executemany("INSERT INTO pairs VALUES (?, ?)", [(name, i) for i, name in enumerate(pairs)])
            elif known[0] != study.sha256:
                other = f"{path} holds the votes of another study ({known[0][:12]})"
                raise UserError(f"{other}: name another folder with --votes.")

    def _connection(self) -> sqlite3.Connection:
        """Returns the connection of this thread."""
        if not hasattr(self._local, "connection"):
            connection = sqlite3.connect(self.path, timeout=30, isolation_level=None)
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            self._local.connection = connection
        found: sqlite3.Connection = self._local.connection
        return found

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        db = self._connection()
        db.execute("BEGIN IMMEDIATE")
        try:
            yield db
            db.execute("COMMIT")
        except BaseException:
            db.execute("ROLLBACK")
            raise

    def invite(self, count: int) -> list[str]:
        """Makes raters until there are `count`; returns the tokens of the new ones."""
        with self._transaction() as db:
            present = db.execute("SELECT COUNT(*) FROM raters").fetchone()[0]
            tokens = [secrets.token_urlsafe(18) for _ in range(count - present)]
            for token in tokens:
                row = (_digest(token), secrets.token_hex(4).upper())
                rater = db.execute("INSERT INTO raters (token_sha256, code) VALUES (?, ?)", row).lastrowid
                db.execute("INSERT INTO links VALUES (?, ?)", (token, rater))
        return tokens

    def tokens(self, known: Iterable[str] = ()) -> list[str]:
        """Returns a token of every rater, in their order, so that lost links can be written again.

        A database of before did not store them: of such a rater, one of the `known` tokens, or else a second one that
        is as good as the first.
        """
        with self._transaction() as db:
            raters = dict(db.execute("SELECT token_sha256, id FROM raters ORDER BY id").fetchall())
            stored = {rater: token for token, rater in db.execute("SELECT token, rater FROM links").fetchall()}
            found = {raters[digest]: token for token in known if (digest := _digest(token)) in raters}
            for rater in raters.values():
                if rater not in stored:
                    stored[rater] = found.get(rater) or secrets.token_urlsafe(18)
                    db.execute("INSERT INTO links VALUES (?, ?)", (stored[rater], rater))
        return [stored[rater] for rater in raters.values()]

    def _rater(self, db: sqlite3.Connection, token: str) -> tuple[int, str]:
        """Returns (id, completion code) of a rater. Raises RefusedError for an unknown token."""
        query = "SELECT id, code FROM raters WHERE token_sha256 = ? OR id = (SELECT rater FROM links WHERE token = ?)"
        try:
            row = db.execute(query, (_digest(token), token)).fetchone()
        except UnicodeEncodeError:  # a token that SQLite cannot hold is nobody's
            row = None
        if row is None:
            raise RefusedError(401, UNKNOWN_LINK)
        return int(row[0]), str(row[1])

    def next(self, token: str) -> dict[str, Any]:
        """Returns the present question {"state": "ask", ...}, or {"state": "end", "code"} when nothing is left."""
        with self._transaction() as db:
            return self._next(db, *self._rater(db, token))

    def _next(self, db: sqlite3.Connection, rater: int, code: str) -> dict[str, Any]:
        # The item: a check that is due, or else a pair.
        rated = [row[0] for row in db.execute("SELECT item FROM ratings WHERE rater = ? ORDER BY at, rowid", (rater,))]
        pairs = [item for item in rated if item in self._pairs]
        item = self._check(rated, pairs)
        if item is None and len(pairs) < self.study.session:
            item = self._seat(db, rater)
        if item is None:
            db.execute("UPDATE raters SET finished = COALESCE(finished, ?) WHERE id = ?", (time.time(), rater))
            return {"state": "end", "code": code if rated else None, "rated": len(rated)}
        # Its first question without an answer.
        answers = db.execute("SELECT question FROM votes WHERE item = ? AND rater = ?", (item, rater))
        answered, questions, shown = {row[0] for row in answers}, self.study.questions, self.study.items[item]
        question = next(q for q in questions if q["id"] not in answered)
        return {
            "state": "ask",
            "item": item,
            "question": {"id": question["id"], "text": question["text"]},
            "prompt": shown["prompt"] if question["prompt"] else None,
            "left": f"/{shown['left']}",
            "right": f"/{shown['right']}",
            "done": len(rated) * len(questions) + len(answered),
            "total": self._total() * len(questions),
        }

    def _total(self) -> int:
        """Returns the number of items of a whole session, with the checks."""
        pairs = min(self.study.session, len(self._pairs))
        return pairs + min(_due_gold(pairs), len(self._gold)) + pairs // MIRROR_EVERY

    def _check(self, rated: list[str], pairs: list[str]) -> str | None:
        """Returns the check that is due, if any: a gold pair, or the mirrored copy of a pair that was rated earlier."""
        seen = set(rated)
        unseen = [name for name in self._gold if name not in seen]
        if unseen and len(self._gold) - len(unseen) < _due_gold(len(pairs)):
            return unseen[0]
        mirrored = sum(self.study.key[name]["kind"] == "mirror" for name in rated)
        if mirrored < len(pairs) // MIRROR_EVERY:
            return self._mirror_of[pairs[mirrored * MIRROR_EVERY]]
        return None

    def _seat(self, db: sqlite3.Connection, rater: int) -> str | None:
        """Takes or renews a lease of the rater's next pair and returns the pair; None when no seat is free."""
        now = time.time()
        row = db.execute(NEXT_PAIR, {"rater": rater, "now": now, "seats": self.study.raters}).fetchone()
        if row is None:
            return None
        db.execute("DELETE FROM leases WHERE rater = ? AND item <> ?", (rater, row[0]))
        db.execute("INSERT OR REPLACE INTO leases VALUES (?, ?, ?)", (row[0], rater, now + self.lease_seconds))
        return str(row[0])

    def vote(self, token: str, item: str, question: str, answer: str, milliseconds: int) -> dict[str, Any]:
        """Stores an answer and returns the next question. A repeated answer, as after a lost connection, is ignored.

        Raises RefusedError when it is not the present question, or was answered differently before.
        """
        with self._transaction() as db:
            rater, code = self._rater(db, token)
            # An answer that is there already is only compared.
            same = "SELECT answer FROM votes WHERE item = ? AND question = ? AND rater = ?"
            known = db.execute(same, (item, question, rater)).fetchone()
            if known is not None and known[0] != answer:
                raise RefusedError(409, "This question was answered before; an answer cannot be changed.")
            asked = self._next(db, rater, code)
            if known is not None:
                return asked
            if asked["state"] != "ask" or (asked["item"], asked["question"]["id"]) != (item, question):
                raise RefusedError(409, "This pair is no longer yours to answer. Here is the next one.")
            # The answer; with the last one of an item, its rating is complete and the rater may be left out.
            now, columns = time.time(), "item, question, rater, answer, milliseconds, at"
            row = (item, question, rater, answer, milliseconds, now)
            db.execute(f"INSERT INTO votes ({columns}) VALUES (?, ?, ?, ?, ?, ?)", row)
            votes = db.execute("SELECT item, question, answer FROM votes WHERE rater = ?", (rater,)).fetchall()
            if sum(vote[0] == item for vote in votes) == len(self.study.questions):
                db.execute("INSERT INTO ratings VALUES (?, ?, ?)", (item, rater, now))
                db.execute("DELETE FROM leases WHERE rater = ?", (rater,))
                check = self.study.key[item]["kind"] != "pair"
                if check and (reason := self.judge({(vote[0], vote[1]): vote[2] for vote in votes})):
                    db.execute("UPDATE raters SET excluded = ? WHERE id = ? AND excluded = ''", (reason, rater))
            return self._next(db, rater, code)

    def judge(self, votes: dict[tuple[str, str], str]) -> str:
        """Returns why the study's rule leaves out a rater with these answers, (item, question) -> side, or ''."""
        key, checks = self.study.key, list(votes.items())
        missed = {item for (item, _), side in checks if key[item]["kind"] == "gold" and key[item][side] != "intact"}
        if len(missed) > GOLD_MISSES:
            return f"missed {len(missed)} gold pairs"
        mirrored = [(item, question, side) for (item, question), side in checks if key[item]["kind"] == "mirror"]
        # The videos of a mirrored pair are swapped, so an equal side means that the rater did not look.
        same = sum(votes[(key[item]["of"], question)] == side for item, question, side in mirrored)
        if len(mirrored) >= SIDE_ANSWERS and same > len(mirrored) / 2:
            return f"answered {same} of {len(mirrored)} mirrored questions by side"
        return ""

    def rows(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Returns (votes, raters) as plain rows; a vote says whether its rating is complete."""
        try:
            votes, raters = (self._connection().execute(query).fetchall() for query in (ALL_VOTES, ALL_RATERS))
        except sqlite3.DatabaseError as error:
            raise UserError(f"{self.path} cannot be read ({error}): bring it back from a copy.") from None
        return [dict(row) for row in votes], [dict(row) for row in raters]


def _due_gold(pairs: int) -> int:
    """Returns how many gold pairs are due to a rater of this number of pairs."""
    return (pairs + GOLD_EVERY - 3) // GOLD_EVERY


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
