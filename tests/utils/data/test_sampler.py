from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.data.sampler import BatchStream, shard, some

labels_of = st.lists(st.integers(0, 2), min_size=1, max_size=40)
mixings = st.sampled_from(["homogeneous", "mixed"])


def _all_ranks(labels: list[int], batch_size: int, world: int, passes: int, **options: object) -> list[list[list[int]]]:
    """`passes` lists of batches of indices, put together from what each rank draws."""
    streams = [BatchStream(labels, batch_size, rank=rank, world=world, **options) for rank in range(world)]
    size = streams[0].batches_per_pass
    drawn = [list(islice(stream, -(-size * passes // world))) for stream in streams]
    sequence = [[draw.index for draw in batch] for step in zip(*drawn, strict=True) for batch in step]
    return [sequence[i * size : (i + 1) * size] for i in range(passes)]


@given(labels_of, st.integers(1, 7), st.integers(1, 5), mixings, st.integers(0, 2**40))
def test_each_pass_holds_every_index_once_over_all_ranks(labels: list[int], batch_size: int, world: int, mixing: str, seed: int) -> None:
    world = min(world, BatchStream(labels, batch_size, mixing=mixing).batches_per_pass)
    for batches in _all_ranks(labels, batch_size, world, 3, mixing=mixing, seed=seed):
        assert sorted(i for batch in batches for i in batch) == list(range(len(labels)))
        assert all(1 <= len(batch) <= batch_size for batch in batches)
        if mixing == "homogeneous":
            assert all(len({labels[i] for i in batch}) == 1 for batch in batches)


@given(labels_of, st.integers(1, 7), st.integers(1, 3), mixings, st.integers(0, 60))
def test_starting_at_a_position_is_the_exact_continuation(labels: list[int], batch_size: int, world: int, mixing: str, position: int) -> None:
    world = min(world, BatchStream(labels, batch_size, mixing=mixing).batches_per_pass)
    for rank in range(world):
        whole = islice(BatchStream(labels, batch_size, rank=rank, world=world, mixing=mixing), position, position + 10)
        assert list(whole) == list(islice(BatchStream(labels, batch_size, rank=rank, world=world, mixing=mixing, position=position), 10))


@given(st.integers(0, 200), st.integers(1, 12))
def test_shards_hold_every_index_once(n: int, world: int) -> None:
    shards = [shard(n, rank, world) for rank in range(world)]
    assert sorted(i for part in shards for i in part) == list(range(n))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_order_depends_on_seed_and_pass_and_on_nothing_else() -> None:
    labels = [0] * 20 + [1] * 20
    first, second = _all_ranks(labels, 2, 1, 2, seed=1)
    assert first != second
    assert first == _all_ranks(labels, 2, 2, 1, seed=1)[0]
    assert first != _all_ranks(labels, 2, 1, 1, seed=2)[0]
    assert first != _all_ranks(labels, 2, 1, 1, seed=1 + 2**32)[0]


def test_a_draw_knows_its_pass() -> None:
    stream = BatchStream([0, 1, 2] * 4, 2, position=3)  # 6 batches a pass
    assert [{draw.turn for draw in batch} for batch in islice(stream, 10)] == [{0}] * 3 + [{1}] * 6 + [{2}]


def test_iterating_again_starts_at_position() -> None:
    stream = BatchStream([0, 1, 2] * 4, 2, position=3)
    assert list(islice(stream, 5)) == list(islice(stream, 5))


def test_last_batch_of_a_class_may_be_smaller() -> None:
    stream = BatchStream([0] * 5 + [1] * 2, 2)
    assert stream.batches_per_pass == 4
    assert sorted(len(batch) for batch in islice(stream, 4)) == [1, 2, 2, 2]
    assert BatchStream([0] * 5 + [1] * 2, 3, mixing="mixed").batches_per_pass == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": []}, "no samples"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"position": -1}, "position -1"),
        ({"mixing": "stratified"}, "mixing is 'stratified': expected one of"),
        ({"rank": 2, "world": 2}, "rank is 2 of 2"),
        ({"rank": -1}, "rank is -1 of 1"),
        ({"world": 4}, "4 ranks, but 6 samples make only 3 batches of 2: use fewer ranks"),
    ],
)
def test_bad_values(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchStream(**{"labels": [0, 0, 1, 1, 2, 2], "batch_size": 2, **arguments})


@pytest.mark.parametrize(("n", "rank", "world"), [(3, 1, 1), (3, 0, 0), (-1, 0, 1)])
def test_bad_shard(n: int, rank: int, world: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        shard(n, rank, world)


def test_some_are_drawn_from_all_kinds() -> None:
    """Each half as often where half of all are taken, though kinds alternate; in order, the same each time; never more than there are."""
    drawn = some(range(1000), 500)
    assert 200 < sum(i % 2 for i in drawn) < 300
    assert list(drawn) == sorted(set(drawn)) == list(some(range(1000), 500))
    assert len(drawn) == 500
    assert list(some(range(10), 99)) == list(range(10))
