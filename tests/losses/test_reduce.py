import itertools

import pytest
import torch

from posttrain.losses.reduce import AGGREGATES, Denominators

MASK = torch.tensor([[1.0] * 2 + [0.0] * 6, [1.0] * 8])
LOSS = torch.tensor([[1.0] * 2 + [99.0] * 6, [0.5] * 8])
COUNTS = Denominators(sequences=2, tokens=10, max_tokens=10)


@pytest.mark.parametrize(
    ("name", "value"), [("sequence_mean", 0.75), ("token_mean", 0.6), ("sequence_sum", 3.0), ("constant", 0.3)]
)
def test_two_sequences(name, value):
    """UT 5.4: L=2 with values 1, L=8 with values .5."""
    assert AGGREGATES[name](LOSS, MASK, COUNTS).item() == pytest.approx(value)


@pytest.mark.parametrize("name", AGGREGATES)
def test_any_split_into_micro_batches_gives_the_same_sum(name):
    torch.manual_seed(0)
    loss = torch.randn(5, 7, dtype=torch.float64)
    mask = (torch.arange(7) < torch.tensor([[7], [3], [1], [5], [0]])).double()
    counts = Denominators(sequences=5, tokens=16, max_tokens=9)
    whole = AGGREGATES[name](loss, mask, counts)
    for cut in itertools.pairwise([0, 1, 3, 5]):
        assert cut[0] < cut[1]
    parts = [AGGREGATES[name](loss[a:b], mask[a:b], counts) for a, b in itertools.pairwise([0, 1, 3, 5])]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-12, atol=1e-12)
    order = torch.tensor([3, 0, 4, 2, 1])
    torch.testing.assert_close(AGGREGATES[name](loss[order], mask[order], counts), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", AGGREGATES)
def test_a_sequence_that_is_not_trained_only_counts(name):
    mask = torch.cat([MASK, torch.zeros(1, 8)])
    loss = torch.cat([LOSS, torch.full((1, 8), 7.0)])
    assert AGGREGATES[name](loss, mask, COUNTS) == AGGREGATES[name](LOSS, MASK, COUNTS)
