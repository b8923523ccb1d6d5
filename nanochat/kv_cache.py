"""The keys and values of tokens that were read, so that no token is read twice (the KV cache).

Letters in the shape comments: B rows, T new tokens a row, S keys, H heads, G heads of keys and values, D width of a head.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nanochat.batching import PackedTrees, Tree
from nanochat.gpt import Attention, GPTConfig


class KVCache:
    """Keys and values of the tokens already read, for rows of different lengths, a slot each.

    The model asks it for the `positions` of the new tokens, and lets them `attend` layer by layer, which stores their keys and
    values; `advance` moves on. Behind a row's own length lie zeros or leftovers: no query sees a key behind its own position,
    and they are overwritten as the row grows.
    """

    wanted: Tensor | None = None

    def __init__(self, config: GPTConfig, batch_size: int, capacity: int, dtype: torch.dtype, device: torch.device | str):
        shape = (config.n_layer, batch_size, capacity, config.n_kv_head, config.head_dim)  # a token's heads lie together
        self.config = config
        self.k = torch.zeros(shape, dtype=dtype, device=device)  # zeros: masked out or not, NaN times 0 is NaN
        self.v = torch.zeros(shape, dtype=dtype, device=device)
        # the embedding of the token read last, for the one after it
        self.last = torch.zeros(batch_size, 1, config.n_embd if config.smear else 0, dtype=dtype, device=device)
        # on the host, which decides what is read next; a layer that asked a GPU for them would wait for it
        self.lengths = [0] * batch_size
        self._slots = torch.arange(batch_size, device=device)[:, None]  # (B, 1)

    @property
    def capacity(self) -> int:
        return self.k.size(2)

    @property
    def num_slots(self) -> int:
        return self.k.size(1)

    def positions(self, num_tokens: int) -> Tensor:
        """Where the next tokens of each row stand in its sequence, (B, T)."""
        end = max(self.lengths) + num_tokens
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens a row, and {end} were to be stored")
        device = self.k.device
        starts = torch.tensor(self.lengths).to(device, non_blocking=True)[:, None]  # (B, 1)
        self._positions = starts + torch.arange(num_tokens, device=device)  # (B, T)
        # the same for all layers. A row may be shorter than the longest: what lies behind it is never visible
        self._visible = torch.arange(end, device=device) <= self._positions[:, None, :, None]  # (B, 1, T, S)
        self._visible_near: dict[int, Tensor] = {}  # through windows
        return self._positions

    def before(self, x: Tensor) -> Tensor:
        """Of the new tokens' embeddings (B, T, C) those of the token before each one, zeros where a sequence begins."""
        before = torch.cat([self.last.to(x.dtype), x], dim=1)[:, :-1]  # (B, T, C)
        self.last = x[:, -1:].to(self.last.dtype)  # (B, 1, C)
        return before.masked_fill((self._positions == 0)[:, :, None], 0)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, attention: Attention, window: int | None = None) -> Tensor:
        """Store the new keys and values (B, G, T, D) of a layer; what the queries (B, H, T, D) find among all, (B, H, T, D)."""
        self.k[layer][self._slots, self._positions] = k.transpose(1, 2).to(self.k.dtype)  # (B, T, G, D)
        self.v[layer][self._slots, self._positions] = v.transpose(1, 2).to(self.v.dtype)  # (B, T, G, D)
        visible = self.visible_within(window)
        end = self._visible.size(3)
        keys, values = (
            kept[layer, :, end - visible.size(3) : end].transpose(1, 2) for kept in (self.k, self.v)
        )  # (B, G, S, D)
        return attention(q.to(keys.dtype), keys, values, visible).to(q.dtype)  # (B, H, T, D)

    def visible_within(self, window: int | None) -> Tensor:
        """What each query sees, (B, 1, T, S); through a window, of the last keys alone, from the first that any row sees on."""
        if window is None:
            return self._visible
        if window not in self._visible_near:
            first, end = max(0, min(self.lengths) - window), self._visible.size(3)
            distance = self._positions[:, None, :, None] - torch.arange(first, end, device=self.k.device)
            self._visible_near[window] = (distance >= 0) & (distance <= window)
        return self._visible_near[window]

    def advance(self, num_tokens: int) -> None:
        """The tokens that were just read are kept."""
        self.lengths = [length + num_tokens for length in self.lengths]

    def put(self, layer: int, slot: int, k: Tensor, v: Tensor) -> None:
        """Keys and values (G, T, D) of a whole prompt, into a slot."""
        self.k[layer, slot, : k.size(1)] = k.transpose(0, 1)
        self.v[layer, slot, : v.size(1)] = v.transpose(0, 1)

    def resized(self, slots: Sequence[int], num_slots: int, capacity: int) -> "KVCache":
        """A cache of another size, with these slots of this one first."""
        other = KVCache(self.config, num_slots, capacity, self.k.dtype, self.k.device)
        kept = min(capacity, self.capacity)
        for new, old in enumerate(slots):
            other.k[:, new, :kept] = self.k[:, old, :kept]
            other.v[:, new, :kept] = self.v[:, old, :kept]
            other.last[new] = self.last[old]
            other.lengths[new] = self.lengths[old]
        return other


class Prefill(PackedTrees):
    """The `Cache` of a pass over whole prompts, which also puts their keys and values into the slots of a `KVCache`.

    Wanted is the last token of each: it says what comes next.
    """

    def __init__(self, prompts: Sequence[Tree], cache: KVCache, slots: Sequence[Sequence[int]]):
        super().__init__(prompts, cache.k.device, np.cumsum(list(map(len, prompts))) - 1)
        self.cache, self.slots = cache, slots

    def before(self, x: Tensor) -> Tensor:
        for (_, _, end), slots in zip(self.spans, self.slots, strict=True):
            self.cache.last[slots] = x[:, end - 1].to(self.cache.last.dtype)
        return super().before(x)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, attention: Attention, window: int | None = None) -> Tensor:
        for (start, _, end), slots in zip(self.spans, self.slots, strict=True):
            for slot in slots:
                self.cache.put(layer, slot, k[0, :, start:end], v[0, :, start:end])
        return super().attend(layer, q, k, v, attention, window)
