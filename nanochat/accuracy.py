"""What a share of right answers is worth: its interval, and its distance from guessing."""

import math

Z_95 = 1.959964  # a standard normal variable lies within +-Z_95 in 95 % of the cases


def wilson_interval(num_correct: int, num_items: int, z: float = Z_95) -> tuple[float, float]:
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


def difference_interval(first: tuple[float, int], second: tuple[float, int]) -> tuple[float, float]:
    """The 95 % interval of second - first, each an (accuracy, number of items) (Newcombe 1998, method 10).

    As if the two were asked different items. Where they were asked the same ones, the true interval is narrower.

    difference_interval((0.5, 100), (0.6, 100))  ->  (-0.037, 0.231)
    """
    (p, n), (q, m) = first, second
    low_p, high_p = wilson_interval(round(p * n), n)
    low_q, high_q = wilson_interval(round(q * m), m)
    difference = q - p
    return (
        difference - math.sqrt((q - low_q) ** 2 + (high_p - p) ** 2),
        difference + math.sqrt((high_q - q) ** 2 + (p - low_p) ** 2),
    )


def centered(accuracy: float, baseline: float) -> float:
    """0 where guessing stands, 1 where everything is right (DCLM, arXiv 2406.11794).  accuracy 0.625, baseline 0.25  ->  0.5"""
    return (accuracy - baseline) / (1 - baseline)
