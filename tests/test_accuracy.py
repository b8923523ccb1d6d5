"""Intervals against published values and their own promise: to hold the truth in 95 % of all evaluations."""

from collections.abc import Callable
from itertools import combinations
from math import comb, sqrt

import numpy as np
import pytest

from nanochat.accuracy import (
    Z_95,
    centered,
    centered_interval,
    mean_interval,
    mean_wilson,
    pass_at_k,
    wilson_interval,
)

Interval = Callable[[int, int], tuple[float, float]]


def wald_interval(num_correct: int, num_items: int) -> tuple[float, float]:
    """The normal approximation of the textbooks, which fails near 0 % and 100 %: the negative control of all that follows."""
    share = num_correct / num_items
    half = Z_95 * sqrt(share * (1 - share) / num_items)
    return share - half, share + half


# -- one accuracy ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_correct", "num_items", "low", "high"),
    # computed with the closed formula and z = 1.96, as in Wilson's paper and every statistics package
    [(5, 10, 0.2366, 0.7634), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_equals_published_values(num_correct, num_items, low, high):
    assert wilson_interval(num_correct, num_items) == pytest.approx((low, high), abs=1e-4)


def test_no_items_say_nothing():
    assert wilson_interval(0, 0) == (0.0, 1.0)


def coverage(interval: Interval, num_items: int, shares: np.ndarray) -> np.ndarray:
    """In which part of all outcomes, weighed by their probability, the interval holds the true share; one number a share."""
    low, high = np.array([interval(k, num_items) for k in range(num_items + 1)]).T
    correct = np.arange(num_items + 1)
    ways = np.array([float(comb(num_items, k)) for k in correct])
    probability = ways * shares[:, None] ** correct * (1 - shares[:, None]) ** (num_items - correct)
    return (probability * ((low <= shares[:, None]) & (shares[:, None] <= high))).sum(axis=1)


@pytest.mark.parametrize("num_items", [10, 20, 50, 200, 1000])
def test_the_interval_covers_the_truth_in_95_percent_of_all_outcomes(num_items):
    shares = np.arange(1, 200) / 200
    covered = coverage(wilson_interval, num_items, shares)
    assert covered.mean() == pytest.approx(0.95, abs=0.01)
    assert covered[(shares > 0.1) & (shares < 0.9)].min() > 0.91, "and nowhere much less, in spite of whole numbers"


@pytest.mark.parametrize("num_items", [10, 20, 50])
def test_a_normal_approximation_does_not(num_items):
    shares = np.arange(1, 200) / 200
    covered = coverage(wald_interval, num_items, shares)
    assert covered.mean() < 0.93 and covered.min() < 0.4


def test_centered_is_0_at_the_baseline_and_1_at_the_top():
    assert [centered(accuracy, 0.25) for accuracy in (0.25, 0.625, 1.0, 0.1)] == pytest.approx([0, 0.5, 1, -0.2])


def test_the_interval_of_a_centred_score_is_centred_like_the_score():
    assert centered_interval((0.25, 0.625), 0.25) == pytest.approx((0.0, 0.5))
    low, high = wilson_interval(30, 100)
    assert centered_interval((low, high), 0.62) == pytest.approx((centered(low, 0.62), centered(high, 0.62)))


# -- CORE --------------------------------------------------------------------------------------------------------------------

# the tasks of the published bundle: items, chance, and the true accuracy of a model about as good as the d20
CORE = {
    "hellaswag_zeroshot": (10042, 0.25, 0.44), "jeopardy": (2117, 0.0, 0.06), "bigbench_qa_wikidata": (20321, 0.0, 0.48),
    "arc_easy": (2376, 0.25, 0.60), "arc_challenge": (1172, 0.25, 0.31), "copa": (100, 0.5, 0.64),
    "commonsense_qa": (1221, 0.2, 0.28), "piqa": (1838, 0.5, 0.69), "openbook_qa": (500, 0.25, 0.35),
    "lambada_openai": (5153, 0.0, 0.36), "hellaswag": (10042, 0.25, 0.44), "winograd": (273, 0.5, 0.62),
    "winogrande": (1267, 0.5, 0.52), "bigbench_dyck_languages": (1000, 0.0, 0.11), "agi_eval_lsat_ar": (230, 0.2, 0.26),
    "bigbench_cs_algorithms": (1320, 0.0, 0.38), "bigbench_operators": (210, 0.0, 0.15),
    "bigbench_repeat_copy_logic": (32, 0.0, 0.03), "squad": (10570, 0.0, 0.25), "coqa": (7983, 0.0, 0.20),
    "boolq": (3270, 0.62, 0.55), "bigbench_language_identification": (10000, 0.091, 0.26),
}  # fmt: skip
# what a model of minutes shows: open tasks at 0 %, choices at chance; and one task that is always right
TINY_MODEL = {name: (n, chance, 1.0 if name == "copa" else chance) for name, (n, chance, _) in CORE.items()}
SIMULATIONS = 3_000
# a share of 95 % found in that many simulations is within 1.6 points, with a probability of 99.99 %
TOLERANCE = 4 * sqrt(0.95 * 0.05 / SIMULATIONS)


def core_coverage(tasks: dict, max_per_task: int | None, interval: Interval = wilson_interval) -> float:
    """In which part of simulated evaluations the interval of CORE, made as evaluations make it, holds the true CORE."""
    rng = np.random.default_rng(7)
    truth = np.mean([centered(accuracy, chance) for _, chance, accuracy in tasks.values()])
    columns = []
    for num_available, chance, accuracy in tasks.values():
        num_items = min(num_available, max_per_task or num_available)
        num_correct = rng.binomial(num_items, accuracy, SIMULATIONS)
        found = {k: centered_interval(interval(k, num_items), chance) for k in set(num_correct.tolist())}
        columns.append([(centered(k / num_items, chance), found[k]) for k in num_correct.tolist()])
    wholes = [mean_interval(*zip(*row, strict=True)) for row in zip(*columns, strict=True)]
    return float(np.mean([low <= truth <= high for low, high in wholes]))


@pytest.mark.parametrize(("max_per_task", "expected"), [(None, 0.95), (500, 0.95), (100, 0.95), (20, 0.94)])
def test_the_interval_of_core_covers_the_true_value_in_95_percent_of_simulated_evaluations(max_per_task, expected):
    # with 20 items a task Wilson's limits lie far from what was found, where shares vary less: the sum is a little too narrow
    assert core_coverage(CORE, max_per_task) == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("max_per_task", [None, 100, 20])
def test_and_does_so_where_tasks_are_at_0_and_at_100_percent(max_per_task):
    assert core_coverage(TINY_MODEL, max_per_task) >= 0.95 - TOLERANCE


def test_an_interval_of_core_from_normal_approximations_does_not():
    rare = ("jeopardy", "bigbench_repeat_copy_logic", "bigbench_operators", "bigbench_dyck_languages")
    tasks = {name: CORE[name] for name in rare}  # hardly anything is right, as with every small model
    assert core_coverage(tasks, None) == pytest.approx(0.95, abs=TOLERANCE)
    assert core_coverage(tasks, None, wald_interval) < 0.95 - 2 * TOLERANCE


def test_the_interval_of_a_mean_keeps_the_sides_of_its_parts_apart():
    assert mean_interval([0.0, 0.5], [(0.0, 0.3), (0.1, 0.9)]) == pytest.approx((0.05, 0.5))
    assert mean_interval([0.4], [(0.3, 0.7)]) == pytest.approx((0.3, 0.7)), "of one score, it is that score's"


# -- several answers to an item ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_samples", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_all_choices_of_k_answers_that_hold_a_right_one(num_samples):
    for num_correct in range(num_samples + 1):
        answers = [number < num_correct for number in range(num_samples)]
        for k in range(1, num_samples + 1):
            choices = [any(choice) for choice in combinations(answers, k)]
            assert pass_at_k(num_samples, num_correct, k) == pytest.approx(sum(choices) / len(choices))


@pytest.mark.parametrize("k", [0, 5])
def test_pass_at_more_than_there_are_is_refused(k):
    with pytest.raises(ValueError, match=f"pass@{k} needs at least"):
        pass_at_k(4, 1, k)


def rate_coverage(likeness: float, interval: Callable[[np.ndarray], tuple[float, float]], num_items=60, num_samples=8) -> float:
    """Items differ in how hard they are (beta distribution): a likeness of 1 makes all answers to an item alike, 0 independent.

    In which part of simulated evaluations the interval holds the mean rate.
    """
    rng = np.random.default_rng(11)
    mean, spread = 0.3, (1 - likeness) / likeness
    rates = rng.beta(mean * spread, (1 - mean) * spread, (SIMULATIONS, num_items))
    found = rng.binomial(num_samples, rates) / num_samples
    return float(np.mean([low <= mean <= high for low, high in map(interval, found)]))


@pytest.mark.parametrize("likeness", [0.05, 0.4, 0.95])
def test_the_interval_of_a_mean_of_rates_covers_it_however_alike_the_answers_to_an_item_are(likeness):
    assert rate_coverage(likeness, mean_wilson) >= 0.95 - TOLERANCE


def test_to_count_each_answer_as_an_item_would_be_too_narrow():
    assert rate_coverage(0.4, lambda rates: wilson_interval(8 * sum(rates), 8 * len(rates))) < 0.8


def test_the_interval_of_rates_that_are_right_or_wrong_is_that_of_the_accuracy():
    assert mean_wilson([1.0, 0.0, 0.0, 1.0, 1.0]) == wilson_interval(3, 5)
