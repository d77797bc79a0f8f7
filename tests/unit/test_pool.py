"""Hidden states beside keys and values: only what is asked for is combined, and all of it is counted and given back."""

import torch

from twinpass.cache.pool import Pool


def filled() -> Pool:
    pool, slots = Pool(4), torch.arange(4)
    values = torch.arange(4.0)
    pool.write(0, slots, values.view(4, 1, 1), -values.view(4, 1, 1))
    pool.write_hidden(slots, values[:, None].expand(4, 3))
    return pool


def test_hidden_states_are_combined_where_that_is_asked_for() -> None:
    pool, target, terms = filled(), torch.tensor([0]), [(2.0, torch.tensor([3])), (-1.0, torch.tensor([1]))]
    pool.combine(target, terms, range(1))
    assert [float(plane) for plane in pool.read(0, target)] == [5.0, -5.0]
    assert pool.read_hidden(target).tolist() == [[0.0] * 3]
    pool.combine(target, terms, range(0), hidden=True)
    assert pool.read_hidden(target).tolist() == [[5.0] * 3]


def test_all_of_it_is_counted_and_given_back() -> None:
    pool = filled()
    assert pool.nbytes == 4 * (1 + 1 + 3) * 4
    pool.release()
    assert pool.nbytes == 0
