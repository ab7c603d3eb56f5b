"""Which samples go together, in which order, on which rank."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import Sampler

MIXINGS = ("homogeneous", "mixed")


class Draw(NamedTuple):
    """A sample's turn: its index, and the number of the pass, so that each pass can show it differently."""

    index: int
    turn: int


class BatchStream(Sampler[list[Draw]]):
    """An endless stream of batches of draws, indices into `labels`.

    A pass holds every index once, cut into batches: of one class each (`homogeneous`) or of any (`mixed`). All ranks make
    the same passes and take turns: rank r gets batches position * world + r, (position + 1) * world + r, ... of the endless
    sequence of passes. So `position` is the number of steps done, and a stream started there continues exactly.
    Each `iter()` starts at `position`.

    Raises ValueError for an empty data set, a batch size, rank, world or position out of range, or an unknown mixing.
    """

    def __init__(
        self, labels: Sequence[int], batch_size: int, *, seed: int = 0, rank: int = 0, world: int = 1, mixing: str = "homogeneous", position: int = 0
    ) -> None:
        if mixing not in MIXINGS:
            raise ValueError(f"mixing is {mixing!r}: expected one of {MIXINGS}")
        if len(labels) == 0:
            raise ValueError("no samples to draw batches from: expected at least one")
        if batch_size < 1 or position < 0:
            raise ValueError(f"batch_size is {batch_size}, position {position}: expected at least 1 and 0")
        _check_rank(rank, world)
        classes = sorted(set(labels)) if mixing == "homogeneous" else [None]
        self._groups = [torch.tensor([i for i, label in enumerate(labels) if c is None or label == c]) for c in classes]
        self.batch_size, self.seed, self.rank, self.world, self.position = batch_size, seed, rank, world, position
        if world > self.batches_per_pass:
            raise ValueError(
                f"{world} ranks, but {len(labels)} samples make only {self.batches_per_pass} batches of {batch_size}: "
                "use fewer ranks, smaller batches or more samples"
            )

    @property
    def batches_per_pass(self) -> int:
        """Batches of one pass over the data, all ranks together."""
        return sum(-(-len(group) // self.batch_size) for group in self._groups)

    def __iter__(self) -> Iterator[list[Draw]]:
        number = self.position * self.world + self.rank
        current, batches = -1, []
        while True:
            index, k = divmod(number, self.batches_per_pass)
            if index != current:
                current, batches = index, self._pass(index)
            yield [Draw(i, index) for i in batches[k]]
            number += self.world

    def _pass(self, index: int) -> list[list[int]]:
        # torch seeds its CPU generator with 32 bits only: hash both numbers into them
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed},{index}".encode()))
        batches: list[list[int]] = []
        for group in self._groups:
            shuffled = group[torch.randperm(len(group), generator=generator)]
            batches += [batch.tolist() for batch in shuffled.split(self.batch_size)]
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def some(items: Sequence[Any], count: int) -> Sequence[Any]:
    """At most `count` of them, drawn at random, always the same: equal distances would meet whatever repeats itself in their order."""
    if count >= len(items):
        return items
    drawn = torch.randperm(len(items), generator=torch.Generator().manual_seed(0))[:count]
    return [items[i] for i in drawn.sort().values.tolist()]


def shard(n: int, rank: int, world: int) -> range:
    """The indices of 0..n-1 that `rank` of `world` evaluates; each index belongs to exactly one rank. May be empty."""
    _check_rank(rank, world)
    if n < 0:
        raise ValueError(f"n is {n}: expected the number of samples")
    return range(rank, n, world)


def _check_rank(rank: int, world: int) -> None:
    if not 0 <= rank < world:
        raise ValueError(f"rank is {rank} of {world}: expected 0 <= rank < world")
