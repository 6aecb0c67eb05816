"""Artifacts: what a stage makes. An artifact is a folder whose `manifest.json` is written last.

The files in storage are the truth: without a manifest there is no artifact. The manifest names every file with its size
and sha256; the files of shards are named by the ledgers that it names (`mav.storage.ledger`). It carries its own
digest, so that `mav verify` can find a changed byte anywhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mav.errors import UserError
from mav.storage.counts import unbalanced
from mav.storage.folder import Folder, canonical_json
from mav.storage.ledger import LEDGER, Marker, ledgers, read_ledger

MANIFEST = "manifest.json"
Reread = Literal["all", "own", "none"]  # whose bytes a check reads again
FORMAT = 2  # of manifests; 1 had no number, no `how` and no `outside`


@dataclass(frozen=True)
class Manifest:
    """What an artifact is made of and where it came from.

    What an older release wrote has a lower `format`, lacks the fields that came later, and is read as long as there are
    artifacts: add fields with a default, and raise `FORMAT` with them.
    """

    stage: str
    version: int
    fingerprint: str
    recipe: str  # name of the recipe it was first built under
    config: dict[str, Any]  # what the stage read of the recipe and decides what it made, by section
    inputs: dict[str, str]  # input stage -> fingerprint
    files: dict[str, dict[str, Any]]  # relative name -> {"bytes", "sha256"}, without the files that its ledgers name
    counts: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    finished: str = ""  # UTC, ISO 8601
    software: dict[str, str] = field(default_factory=dict)
    how: dict[str, Any] = field(default_factory=dict)  # the other values that it read, by key: how it was made
    outside: dict[str, Any] = field(default_factory=dict)  # `key:path` of the recipe's outside files -> their identity
    format: int = FORMAT

    def to_bytes(self) -> bytes:
        """Returns the stored form: canonical JSON with a digest over everything else."""
        return _with_digest(dict(self.__dict__))

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> Manifest:
        """Reads and checks a manifest of this release or an older one.

        Raises UserError when a byte of it was changed, or when a newer release wrote it.
        """
        try:
            body = json.loads(data)
            body.pop("digest")
            whole, number = _with_digest(body) == data, int(body.setdefault("format", 1))
            if whole and number > FORMAT:
                told = f"{name} has format {number}, and this release reads up to {FORMAT}"
                raise UserError(f"{told}: use the release that wrote it, or a later one.")
            manifest = cls(**body)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise UserError(f"{name} is not a readable manifest ({error}): rerun its stage.") from None
        if not whole:
            raise UserError(f"{name} was changed after it was written: rerun its stage.")
        return manifest

    @property
    def content(self) -> str:
        """The sha256 of the list of files, ledgers included: equal for two runs that made the same bytes."""
        return hashlib.sha256(canonical_json(self.files)).hexdigest()


def _with_digest(body: dict[str, Any]) -> bytes:
    return canonical_json(body | {"digest": hashlib.sha256(canonical_json(body)).hexdigest()})


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: its folder and its manifest."""

    folder: Folder
    manifest: Manifest

    @classmethod
    def open(cls, url: str | Folder) -> Artifact:
        """Opens a finished artifact. Raises UserError when there is none, or when its manifest was changed."""
        folder = url if isinstance(url, Folder) else Folder(url)
        try:
            data = folder.read_bytes(MANIFEST)
        except FileNotFoundError:
            raise UserError(f"There is no finished artifact at {folder.url}: run its stage first.") from None
        return cls(folder, Manifest.from_bytes(data, folder.path(MANIFEST)))

    @classmethod
    def publish(cls, folder: Folder, **fields: Any) -> Artifact:
        """Hashes the files of the folder, then writes the manifest: from here on the artifact exists.

        Files that a ledger names were hashed where they were written, so terabytes of shards are not read again.
        `fields` are those of `Manifest` except `files`.
        """
        sizes = folder.sizes()
        if not folder.local:  # one listing may lack what was written last, and a ledger that is left out loses all rows
            sizes |= folder.sizes()
            if LEDGER not in sizes and folder.exists(LEDGER):
                sizes[LEDGER] = folder.size(LEDGER)
        sizes.pop(MANIFEST, None)
        for ledger in ledgers(sizes):
            for marker in read_ledger(folder, ledger, counts=False):
                for name in marker["files"]:
                    sizes.pop(name, None)
        files = {name: {"bytes": size, "sha256": folder.sha256(name, size)} for name, size in sorted(sizes.items())}
        manifest = Manifest(files=files, **fields)
        folder.sync()
        folder.write_bytes(MANIFEST, manifest.to_bytes())
        folder.sync([MANIFEST])
        return cls(folder, manifest)

    def shards(self, counts: bool = True) -> Iterator[Marker]:
        """Yields the ledgers' record of each shard, retry passes after the stage itself; nothing without shards."""
        for ledger in ledgers(self.manifest.files):
            yield from read_ledger(self.folder, ledger, counts)

    def entries(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields every file with its {"bytes", "sha256"}: first the manifest's files, then those of the shards."""
        yield from self.manifest.files.items()
        for marker in self.shards(counts=False):
            yield from ((name, entry) for name, entry in marker["files"].items() if name not in self.manifest.files)

    def files(self, suffix: str = "", prefix: str = "") -> list[str]:
        """Lists the artifact's files, sorted."""
        return sorted(name for name, _ in self.entries() if name.endswith(suffix) and name.startswith(prefix))

    def damage(self, reread: Reread, endings: tuple[str, ...] = ("",)) -> Iterator[str]:
        """Yields a sentence for each file that is missing or changed; of files with these endings only.

        Sizes are always compared, and the bytes of the files in `reread`: all, the manifest's own without those of
        shards, or none but the ledgers. What a changed ledger says of shards is not trusted.
        """
        present = self.folder.sizes()
        broken = self._broken_ledgers(present)
        yield from broken
        yield from self._changed(present, not broken, reread, endings)

    def problems(self, quick: bool = False) -> Iterator[str]:
        """Yields a sentence for each file that is missing, changed or unexpected, and for counts that do not add up.

        `quick` compares only sizes; otherwise every byte is read again.
        """
        present = self.folder.sizes()
        broken = self._broken_ledgers(present)
        yield from broken
        yield from self._changed(present, not broken, "none" if quick else "all")
        if broken:
            return
        unexpected = present.keys() - {name for name, _ in self.entries()} - {MANIFEST}
        yield from (f"{self.folder.path(name)} is not part of the artifact" for name in sorted(unexpected))
        yield from (f"{self.folder.path(MANIFEST)}: {text}" for text in unbalanced(self.manifest.counts))
        yield from (
            f"shard {shard['shard']}: {text}" for shard in self.shards() for text in unbalanced(shard["counts"])
        )

    def _broken_ledgers(self, present: Mapping[str, int]) -> list[str]:
        own = self.manifest.files
        return [text for name in ledgers(own) for text in self._check(name, own[name], present.get(name), True)]

    def _changed(
        self, present: Mapping[str, int], shards: bool, reread: Reread, endings: tuple[str, ...] = ("",)
    ) -> Iterator[str]:
        """Checks the files that are no ledgers: the manifest's own, and those of shards where the ledgers are right."""
        own = self.manifest.files
        checked = set(ledgers(own))
        for name, entry in self.entries() if shards else own.items():
            if name not in checked and name.endswith(endings):
                again = reread == "all" or (reread == "own" and name in own)
                yield from self._check(name, entry, present.get(name), again)

    def _check(self, name: str, entry: Mapping[str, Any], size: int | None, reread: bool) -> Iterator[str]:
        path = self.folder.path(name)
        if size is None:
            yield f"{path} is missing"
        elif size != entry["bytes"]:
            yield f"{path} has {size} bytes instead of {entry['bytes']}"
        elif reread and self.folder.sha256(name, size) != entry["sha256"]:
            yield f"{path} was changed: its sha256 is not the one it was written with"
