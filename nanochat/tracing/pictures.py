"""Tensors as small heat maps that JSON can hold: at most 64 x 64 cells of one byte each, with the scale that they are on.

A row is a token. A cell that stands for several numbers shows the one furthest from zero, sign and all: a mean of twenty
numbers around zero would be near zero, and the few large ones are what a picture should show.

    {"rows": 9, "columns": 64, "row_step": 1, "column_step": 4, "planes": 1, "heads": 4, "scale": 3.2, "signed": true, "data":
    "..."}

`data` is base64 of planes x rows x columns bytes; 0 is no number (a masked score, minus infinity), 1..255 are -scale..scale if
`signed` and 0..scale if not. `planes` counts pictures beside one another (one a head for attention scores), `heads` the equal
parts of the columns where a row holds all heads. `row_step`, `column_step`: how many numbers a cell stands for.
"""

import base64
from typing import Any

import numpy as np
from torch import Tensor

MAX_SIDE = 64
MAX_PLANE_SIDE = 32  # of the pictures of single heads, of which a line makes many
SMALL_SIDE, SMALL_PLANE_SIDE = 40, 16  # columns, where there are very many pictures: deep models, long prompts
MAX_PLANES = 16


def number(value: float, digits: int = 6) -> float | None:
    """A float with about six significant digits, as JSON takes it; None for infinity and what is not a number."""
    return float(f"{value:.{digits}g}") if np.isfinite(value) else None


def summary(tensor: Tensor) -> dict[str, Any]:
    """Shape, dtype, and mean, spread (standard deviation), min and max of the finite numbers; how many are not finite."""
    numbers = as_numpy(tensor)
    finite = numbers[np.isfinite(numbers)]
    result: dict[str, Any] = {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
    if finite.size:
        result |= {
            "mean": number(finite.mean(dtype=np.float64)),
            "std": number(finite.std(dtype=np.float64)),
            "min": number(finite.min()),
            "max": number(finite.max()),
        }
    if finite.size < numbers.size:
        result["num_infinite"] = int(numbers.size - finite.size)
    return result


def picture(tensor: Tensor, num_tokens: int, letters: str | None = None, *, is_small: bool = False) -> dict[str, Any] | None:
    """A heat map of a tensor with one sequence of `num_tokens` tokens; None for a single number.

    `letters` ("B, H, T, D") tells which dimension is the tokens'; without them it is the first that has their number.
    `is_small`: with fewer columns.
    """
    numbers = as_numpy(tensor)
    if numbers.ndim == 0 or numbers.size < 2:
        return None
    planes, heads = arrange(numbers, num_tokens, letters)
    cells, row_step, column_step = shrink(planes, heads, is_small)
    finite = cells[np.isfinite(cells)]
    scale = float(np.abs(finite).max()) if finite.size else 0.0
    is_signed = bool(finite.size and finite.min() < 0)
    return {
        "rows": cells.shape[1],
        "columns": cells.shape[2],
        "row_step": row_step,
        "column_step": column_step,
        "planes": cells.shape[0],
        "heads": heads,
        "scale": number(scale),
        "signed": is_signed,
        "data": encode(quantize(cells, scale, is_signed)),
    }


def arrange(numbers: np.ndarray, num_tokens: int, letters: str | None) -> tuple[np.ndarray, int]:
    """(planes, tokens, numbers) and into how many heads the last dimension falls.

    (1, T, C) -> 1 plane; (1, T, H, D) and (1, H, T, D) -> 1 plane of H parts; attention's (1, H, T, S) -> H planes.
    """
    names = [name.strip() for name in (letters or "").split(",")]
    if numbers.ndim == 4 and numbers.shape[0] == 1:
        inner = numbers[0]
        if names[-2:] == ["T", "S"]:
            return inner, 1
        tokens_first = names[1] == "T" if len(names) == 4 else inner.shape[0] == num_tokens
        by_token = inner if tokens_first else inner.transpose(1, 0, 2)  # tokens, heads, numbers
        return by_token.reshape(1, by_token.shape[0], -1), by_token.shape[1]
    if numbers.ndim <= 2:
        return numbers.reshape(1, -1, numbers.shape[-1]), 1
    return numbers.reshape(1, -1, numbers.shape[-1]), 1


def shrink(planes: np.ndarray, heads: int, is_small: bool) -> tuple[np.ndarray, int, int]:
    """At most MAX_SIDE rows and columns (no cell reaches over two heads), and how many numbers one cell stands for."""
    num_planes, num_rows, num_columns = planes.shape
    max_rows, max_columns = MAX_SIDE, SMALL_SIDE if is_small else MAX_SIDE
    if num_planes > 1:
        max_rows = max_columns = SMALL_PLANE_SIDE if is_small else MAX_PLANE_SIDE
    row_step = -(-num_rows // max_rows)
    width = num_columns // heads
    column_step = -(-width // max(1, max_columns // heads))
    starts = [head * width + start for head in range(heads) for start in range(0, width, column_step)]
    cells = furthest(furthest(planes[:MAX_PLANES], np.arange(0, num_rows, row_step), axis=1), np.array(starts), axis=2)
    return cells, row_step, column_step


def furthest(values: np.ndarray, starts: np.ndarray, axis: int) -> np.ndarray:
    """Of each stretch that begins at one of `starts`, the number furthest from zero; NaN if it has none."""
    if len(starts) == values.shape[axis]:
        return values
    low = np.fmin.reduceat(values, starts, axis=axis)  # fmin and fmax pass over NaN
    high = np.fmax.reduceat(values, starts, axis=axis)
    return np.where(high >= -low, high, low)


def quantize(cells: np.ndarray, scale: float, is_signed: bool) -> np.ndarray:
    share = np.nan_to_num(cells) / (scale or 1.0)
    levels = 128 + np.rint(127 * share) if is_signed else 1 + np.rint(254 * share)
    return np.where(np.isfinite(cells), levels, 0).astype(np.uint8)


def encode(levels: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(levels, dtype=np.uint8).tobytes()).decode()


def as_numpy(tensor: Tensor) -> np.ndarray:
    """The numbers as float32 on the CPU, infinity as NaN: a masked score has no place on a scale."""
    numbers = tensor.detach().float().cpu().numpy()
    return np.where(np.isfinite(numbers), numbers, np.nan)


def attention_triangle(weights: Tensor) -> str:
    """Attention weights (H, T, T) as bytes: row by row only what a token may see (itself and before), all heads in turn.

    A byte q stands for (q / 255)^2, so that small weights keep their differences.
    """
    numbers = as_numpy(weights)
    rows, columns = np.tril_indices(numbers.shape[1])
    return encode(np.rint(255 * np.sqrt(np.clip(np.nan_to_num(numbers[:, rows, columns]), 0, 1))))
