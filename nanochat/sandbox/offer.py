"""What this machine offers to programs that a model wrote, found out by running one."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from nanochat.confined.tiers import is_enough
from nanochat.errors import UserError
from nanochat.sandbox.host import run

MEANING = {
    "limited": "with limits of time and memory",
    "filtered": "without network, processes and writing",
    "closed": "without network, and files out of reach",
    "full": "with Landlock and namespaces",
}


@dataclass(frozen=True)
class Offer:
    tier: str
    missing: Mapping[str, str]  # layer -> why it does not take effect

    def __str__(self) -> str:
        """closed (no user namespace: No space left on device)"""
        reasons: dict[str, list[str]] = {}
        for layer, reason in self.missing.items():
            reasons.setdefault(reason, []).append(layer)
        missing = "; ".join(f"no {', '.join(layers)}: {reason}" for reason, layers in reasons.items())
        return f"{self.tier} ({missing})" if missing else self.tier


@cache
def probe() -> Offer:
    """Takes 0.3 s, once. UserError if no program can be run here at all."""
    result = run(b"", None, tier="limited")
    return Offer(result.tier, {layer: reason for layer, reason in result.layers.items() if reason})


def require(tier: str) -> Offer:
    """UserError unless programs run at this tier or a higher one here."""
    offer = probe()
    if not is_enough(offer.tier, tier):
        raise UserError(
            f"the sandbox for programs that a model wrote is to be {tier} ({MEANING[tier]}), and this machine offers {offer}.\n"
            f"Use another machine, or leave humaneval out of chat_eval.tasks, or take less: chat_eval.sandbox: {offer.tier} "
            "(docs/sandbox.md says what that means)"
        )
    return offer
