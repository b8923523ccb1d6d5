"""The tiers of the sandbox, and which of them was reached."""

from __future__ import annotations

TYPE_CHECKING = False  # not from typing, which takes longer to import than all of this
if TYPE_CHECKING:
    from collections.abc import Mapping

TIERS = ("limited", "filtered", "closed", "full")
NAMESPACES = ("user", "mount", "pid", "network", "ipc", "uts")
# what is tried when no more than this tier is wanted
LAYERS = {
    "limited": (),
    "filtered": ("filter",),
    "closed": ("filter", "landlock"),
    "full": ("filter", "landlock", "namespaces"),
}


def reached(layers: Mapping[str, str]) -> str:
    """The tier of these layers: name -> why it did not take effect, "" if it did. What is not named did not."""
    works = {name for name, obstacle in layers.items() if not obstacle}
    if not {"filter", "capabilities"} <= works:
        return "limited"
    if not {"landlock", "root"} & works:
        return "filtered"
    return "full" if {"landlock", "root", *NAMESPACES} <= works else "closed"


def is_enough(tier: str, needed: str) -> bool:
    return TIERS.index(tier) >= TIERS.index(needed)
