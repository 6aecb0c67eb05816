"""Artifacts on any fsspec storage: folders whose files appear whole, manifests, and the ledgers of their shards."""

from mav.storage.artifact import MANIFEST, Artifact, Manifest
from mav.storage.folder import TEMPORARY, Folder

__all__ = ["MANIFEST", "TEMPORARY", "Artifact", "Folder", "Manifest"]
