"""Formulas as MathML, which browsers draw by themselves: no fonts or scripts to fetch."""

import functools


@functools.cache
def mathml(latex: str, *, display: bool = False) -> str:
    """A formula of LaTeX as trusted MathML, in the line or (`display`) on a line of its own. For our own formulas only."""
    from latex2mathml.converter import convert

    return convert(latex, display="block" if display else "inline")
