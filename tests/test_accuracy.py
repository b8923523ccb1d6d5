"""Intervals against published values and their own promise."""

from math import comb

import pytest

from nanochat.accuracy import centered, wilson_interval


@pytest.mark.parametrize(
    ("num_correct", "num_items", "low", "high"),
    # computed with the closed formula and z = 1.96, as in Wilson's paper and every statistics package
    [(5, 10, 0.2366, 0.7634), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_equals_published_values(num_correct, num_items, low, high):
    assert wilson_interval(num_correct, num_items) == pytest.approx((low, high), abs=1e-4)


def test_no_items_say_nothing():
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("num_items", [30, 200])
def test_the_interval_covers_the_truth_in_95_percent_of_all_outcomes(num_items):
    shares = [i / 100 for i in range(2, 99)]
    covered = [
        sum(
            comb(num_items, k) * share**k * (1 - share) ** (num_items - k)
            for k in range(num_items + 1)
            if wilson_interval(k, num_items)[0] <= share <= wilson_interval(k, num_items)[1]
        )
        for share in shares
    ]
    assert sum(covered) / len(covered) == pytest.approx(0.95, abs=0.01)


def test_centered_is_0_at_the_baseline_and_1_at_the_top():
    assert [centered(accuracy, 0.25) for accuracy in (0.25, 0.625, 1.0, 0.1)] == pytest.approx([0, 0.5, 1, -0.2])
