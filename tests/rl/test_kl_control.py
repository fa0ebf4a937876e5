import pytest

from posttrain.rl.kl_control import adapted


@pytest.mark.parametrize(("kl", "coefficient"), [(9.0, 0.201024), (3.0, 0.198976), (6.0, 0.2), (6.6, 0.200512)])
def test_the_coefficient_follows_the_kl(kl, coefficient):
    """UT 3.8: beta .2, target 6, 256 samples, horizon 10,000; errors beyond 20 % count as 20 %."""
    assert adapted(0.2, kl, target=6.0, horizon=10_000, samples=256) == pytest.approx(coefficient, abs=1e-9)


def test_it_converges_on_a_policy_that_gives_way():
    """A policy whose KL falls as the coefficient rises ends at the target."""
    coefficient = 0.01
    for _ in range(3000):
        coefficient = adapted(coefficient, 1.0 / coefficient, target=4.0, horizon=1000, samples=64)
    assert 1.0 / coefficient == pytest.approx(4.0, rel=1e-3)
