"""What frozen encoders see in a picture, computed once and kept on disk.

A cache folder holds cache.json, which says what its features were computed by, and shards of safetensors. A shard is written under another name
and then renamed, so a kill leaves whole shards only. A picture is known by the hash of its file: copies share an entry, a changed file has none.

Dimensions: P image patches (and the class token), D width of the vision tower, E x g x g SAM's embedding.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.types import Size
from utils.data.records import Stored

IDENTITY = "cache.json"


class Features(NamedTuple):
    """Of one picture."""

    clip: Tensor  # float16 [P, D], before the projector
    sam: Tensor | None  # float16 [E, g, g]; None where nothing is tampered, so nothing is drawn
    original_hw: Size


def content_key(path: Path | Stored) -> str:
    """Hash of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


class FeatureCache:
    """Features by content key, for encoders and preprocessing that `identity` describes.

    Raises ValueError when `folder` holds something else, or features computed by something else; nothing is overwritten.
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, object]) -> None:
        self.folder = Path(folder)
        self._claim(json.loads(json.dumps(identity)))
        self._shard_of: dict[str, Path] = {}
        self._open: dict[Path, safe_open] = {}
        self.refresh()

    def _claim(self, identity: Mapping[str, object]) -> None:
        note = self.folder / IDENTITY
        # Looked at before the note is: another process may write that, and shards after it, at any moment
        foreign = self.folder.is_dir() and any(path.stem != note.stem for path in self.folder.iterdir())
        if note.is_file():
            found = json.loads(note.read_text())
            wrong = sorted(name for name in {*found, *identity} if found.get(name) != identity.get(name))
            if wrong:
                said = "; ".join(f"{name}: {found.get(name)} there, {identity.get(name)} here" for name in wrong)
                raise ValueError(f"the features in {self.folder} were computed by something else ({said}): give another folder, or delete this one")
            return
        if foreign:
            raise ValueError(f"{self.folder} is not a cache of features: it has files but no {IDENTITY}; give a new or empty folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        fresh = note.with_suffix(f".{uuid.uuid4().hex}")
        fresh.write_text(json.dumps(identity, indent=2) + "\n")
        os.replace(fresh, note)

    def refresh(self) -> None:
        """Take note of shards that other processes have written."""
        for shard in sorted(self.folder.glob("*.safetensors")):
            if shard not in self._shard_of.values():
                with safe_open(shard, "pt") as tensors:
                    self._shard_of |= {name.removesuffix(".clip"): shard for name in tensors.keys() if name.endswith(".clip")}  # noqa: SIM118 not a dict

    def __contains__(self, key: str) -> bool:
        return key in self._shard_of

    def has(self, key: str, sam: bool) -> bool:
        """Whether `key` is there, with SAM's embedding if `sam`."""
        return key in self and (not sam or f"{key}.sam" in self._tensors(key).keys())  # noqa: SIM118

    def __getitem__(self, key: str) -> Features:
        """Read through a memory map. KeyError when absent."""
        tensors = self._tensors(key)
        names = tensors.keys()
        sam = tensors.get_tensor(f"{key}.sam") if f"{key}.sam" in names else None
        return Features(tensors.get_tensor(f"{key}.clip"), sam, tuple(tensors.get_tensor(f"{key}.hw").tolist()))

    def _tensors(self, key: str) -> safe_open:
        shard = self._shard_of[key]
        if shard not in self._open:
            self._open[shard] = safe_open(shard, "pt")
        return self._open[shard]

    def write(self, features: Mapping[str, Features]) -> None:
        """One more shard. OSError when the disk is full; what was there stays."""
        tensors: dict[str, Tensor] = {}
        for key, (clip, sam, original_hw) in features.items():
            tensors |= {f"{key}.clip": clip.half().contiguous(), f"{key}.hw": torch.tensor(original_hw)}
            if sam is not None:
                tensors[f"{key}.sam"] = sam.half().contiguous()
        shard = self.folder / f"{uuid.uuid4().hex}.safetensors"
        unfinished = shard.with_suffix(".tmp")
        try:
            save_file(tensors, unfinished)
        except Exception as error:  # safetensors has errors of its own for a full disk
            unfinished.unlink(missing_ok=True)
            raise OSError(f"cannot write {shard}: {error}") from error
        os.replace(unfinished, shard)
        self._shard_of |= dict.fromkeys(features, shard)
