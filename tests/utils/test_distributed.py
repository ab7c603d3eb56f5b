import torch

from utils import distributed


def test_alone_it_is_rank_0_of_1() -> None:
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    distributed.barrier()
    assert distributed.all_reduce_sum(torch.tensor([2.0])).tolist() == [2.0]
    assert distributed.gather_objects({"a": 1}) == [{"a": 1}]
