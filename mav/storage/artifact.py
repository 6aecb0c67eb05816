"""Artifacts: what a stage makes. A directory on any fsspec storage whose `manifest.json` is written last.

Files in storage are the truth. No manifest, no artifact; a manifest names every file with its size and sha256, those of shards through
their ledgers (`mav.storage.ledger`), so a reader can check what it reads and `verify` can find a changed byte anywhere, the manifest itself
included (it carries its own digest and is stored in one canonical form).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mav.errors import UserError
from mav.storage.counts import unbalanced
from mav.storage.folder import Folder, _canonical
from mav.storage.ledger import Marker, ledgers, read_ledger

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """What an artifact is made of and where it came from."""

    stage: str
    version: int
    fingerprint: str
    recipe: str  # name of the recipe it was first built under
    config: dict[str, Any]  # the stage's own sections
    inputs: dict[str, str]  # input stage -> fingerprint
    files: dict[str, dict[str, Any]]  # relative name -> {"bytes", "sha256"}, without those that its ledgers name
    counts: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    finished: str = ""  # UTC, ISO 8601
    software: dict[str, str] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The one stored form: sorted keys, and a digest over everything else."""
        body: dict[str, Any] = dict(self.__dict__)
        body["digest"] = hashlib.sha256(_canonical(body)).hexdigest()
        return _canonical(body)

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> Manifest:
        """Reads and checks a manifest. Raises UserError when a byte of it was changed."""
        try:
            body = json.loads(data)
            manifest = cls(**{key: value for key, value in body.items() if key != "digest"})
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{name} is not a readable manifest ({error}): rerun its stage.") from None
        if manifest.to_bytes() != data:
            raise UserError(f"{name} was changed after it was written: rerun its stage.")
        return manifest

    @property
    def content(self) -> str:
        """sha256 over the files alone, ledgers included: equal for two runs that made the same bytes, whenever they ran."""
        return hashlib.sha256(_canonical(self.files)).hexdigest()


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: its folder and its manifest."""

    folder: Folder
    manifest: Manifest

    @classmethod
    def open(cls, url: str | Folder) -> Artifact:
        """Raises UserError when there is none or its manifest was changed; FileNotFoundError never escapes."""
        folder = url if isinstance(url, Folder) else Folder(url)
        try:
            data = folder.read_bytes(MANIFEST)
        except FileNotFoundError:
            raise UserError(f"There is no finished artifact at {folder.url}: run its stage first.") from None
        return cls(folder, Manifest.from_bytes(data, folder.path(MANIFEST)))

    @classmethod
    def publish(cls, folder: Folder, **facts: Any) -> Artifact:
        """Digests the files of the folder, then writes the manifest: from here on the artifact exists.

        What a ledger names was digested where it was written, so that terabytes of shards are not read again.
        """
        sizes = folder.sizes()
        sizes.pop(MANIFEST, None)
        for ledger in ledgers(sizes):
            for marker in read_ledger(folder, ledger, counts=False):
                for name in marker["files"]:
                    sizes.pop(name, None)
        files = {name: {"bytes": size, "sha256": folder.sha256(name, size)} for name, size in sorted(sizes.items())}
        manifest = Manifest(files=files, **facts)
        folder.sync()
        folder.write_bytes(MANIFEST, manifest.to_bytes())
        folder.sync()
        return cls(folder, manifest)

    def shards(self, counts: bool = True) -> Iterator[Marker]:
        """What its ledgers say of each shard, retry passes after the stage itself; nothing for a stage without shards."""
        for ledger in ledgers(self.manifest.files):
            yield from read_ledger(self.folder, ledger, counts)

    def facts(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every file with its bytes and sha256, one at a time: the manifest's, then those of the shards."""
        yield from self.manifest.files.items()
        for marker in self.shards(counts=False):
            yield from ((name, facts) for name, facts in marker["files"].items() if name not in self.manifest.files)

    def files(self, suffix: str = "", prefix: str = "") -> list[str]:
        """Names of the artifact's files, sorted."""
        return sorted(n for n, _ in self.facts() if n.endswith(suffix) and n.startswith(prefix))

    def problems(self, full: bool = True) -> Iterator[str]:
        """One sentence for each file missing, changed or unexpected, and for counts that do not add up; `full` re-reads every byte."""
        present = self.folder.sizes()
        present.pop(MANIFEST, None)
        told = ledgers(self.manifest.files)
        broken = [
            problem
            for name in told
            for problem in self._problem(name, self.manifest.files[name], present.get(name), full=True)
        ]  # what a changed ledger says of shards is worth nothing
        yield from broken
        for name, facts in self.manifest.files.items() if broken else self.facts():
            size = present.pop(name, None)
            if name not in told:
                yield from self._problem(name, facts, size, full)
        if broken:
            return
        for name in sorted(present):
            yield f"{self.folder.path(name)} is not part of the artifact"
        yield from (f"{self.folder.path(MANIFEST)}: {problem}" for problem in unbalanced(self.manifest.counts))
        yield from (
            f"shard {shard['shard']}: {problem}" for shard in self.shards() for problem in unbalanced(shard["counts"])
        )

    def _problem(self, name: str, facts: Mapping[str, Any], size: int | None, full: bool) -> Iterator[str]:
        path = self.folder.path(name)
        if size is None:
            yield f"{path} is missing"
        elif size != facts["bytes"]:
            yield f"{path} has {size} bytes instead of {facts['bytes']}"
        elif full and self.folder.sha256(name, size) != facts["sha256"]:
            yield f"{path} was changed: its sha256 is not the one it was written with"
