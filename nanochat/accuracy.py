"""What a score is worth: the interval of a share of right answers, of a mean of several, and its distance from guessing.

Intervals are about the luck of which items a task has: what other items of the same kind would give. They say nothing about
another training of the same model, which moves CORE by about 0.01. Where all items were asked, a task's own interval stays: it
is as good as those items are many.

Not covered: items that two tasks share (HellaSwag is in CORE twice, with and without examples). The interval of CORE is then
too narrow, with as many items in each task by up to 4 %, with the real bundle's numbers of items by less than 1 %.
"""

import math
from collections.abc import Sequence

Z_95 = 1.959964  # a standard normal variable lies within +-Z_95 in 95 % of the cases

Estimate = tuple[float, Sequence[float]]  # a score and its interval


def wilson_interval(num_correct: float, num_items: int, z: float = Z_95) -> tuple[float, float]:
    """The 95 % interval of an accuracy (Wilson 1927), which keeps its meaning at 0 % and 100 % and for few items.

    wilson_interval(0, 10)  ->  (0.0, 0.278)
    """
    if num_items == 0:
        return 0.0, 1.0
    share = num_correct / num_items
    scale = 1 + z * z / num_items
    middle = (share + z * z / (2 * num_items)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / num_items + z * z / (4 * num_items**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def centered(accuracy: float, baseline: float) -> float:
    """0 where guessing stands, 1 where everything is right (DCLM, arXiv 2406.11794).  accuracy 0.625, baseline 0.25  ->  0.5"""
    return (accuracy - baseline) / (1 - baseline)


def centered_interval(interval: Sequence[float], baseline: float) -> tuple[float, float]:
    """The interval of a centred score, from that of its accuracy.  (0.25, 0.625), baseline 0.25  ->  (0.0, 0.5)"""
    low, high = interval
    return centered(low, baseline), centered(high, baseline)


def mean_interval(scores: Sequence[float], intervals: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The interval of the mean of independent scores (MOVER: Zou and Donner 2008), such as CORE's of its tasks' centred scores.

    On each side the distances from the scores to the ends of their intervals add up like standard deviations, so that it stays
    lopsided where they are, as at 0 %. Simulated with CORE's tasks it holds the truth in 95 % of evaluations, with 20 items a
    task in 94 %.

    mean_interval([0.0, 0.5], [(0.0, 0.3), (0.1, 0.9)])  ->  (0.05, 0.5)
    """
    mean = sum(scores) / len(scores)
    below = math.hypot(*(score - low for score, (low, _) in zip(scores, intervals, strict=True))) / len(scores)
    above = math.hypot(*(high - score for score, (_, high) in zip(scores, intervals, strict=True))) / len(scores)
    return mean - below, mean + above


def difference_interval(first: Estimate, second: Estimate) -> tuple[float, float]:
    """The interval of second - first, each a score and its interval (of shares: Newcombe 1998, method 10).

    As if the two were asked different items. Where they were asked the same ones, the true interval is narrower.

    difference_interval((0.5, (0.404, 0.596)), (0.6, (0.502, 0.691)))  ->  (-0.037, 0.232)
    """
    (a, (low_a, high_a)), (b, (low_b, high_b)) = first, second
    return b - a - math.hypot(b - low_b, high_a - a), b - a + math.hypot(high_b - b, a - low_a)


def mean_wilson(rates: Sequence[float]) -> tuple[float, float]:
    """The interval of a mean of rates in [0, 1], one an item, such as the share of right ones among several answers to it.

    Wilson's with the number of items. No distribution on [0, 1] varies more than right and wrong with the same mean, so it is
    rather too wide; to count each answer as an item would make it too narrow, since answers to one item are alike.
    """
    return wilson_interval(sum(rates), len(rates))


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """How often at least one of k answers to an item is right, from num_samples of them (arXiv 2107.03374, equation 1).

    The share of all choices of k among the samples that hold a right one.  pass_at_k(4, 1, 2)  ->  0.5
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} needs at least {max(k, 1)} samples, and k at least 1; there are {num_samples}")
    return 1 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)
