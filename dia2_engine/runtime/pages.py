"""Which pages of the KV cache belong to which slot: a stream gets as many as it may ever need, when it starts."""

from __future__ import annotations


def cache_pages(slots: int, whole: int, room: int) -> int:
    """How many pages a cache has: `whole`, a context, for each slot, or what there is room for; one context at least.

    No stream that is admitted runs out of pages, so fewer than all contexts only make streams wait.
    """
    return max(whole, min(slots * whole, room))


class PagePool:
    """Pages 0 .. count-1."""

    def __init__(self, count: int) -> None:
        self._free = list(range(count - 1, -1, -1))
        self._taken: dict[int, list[int]] = {}

    @property
    def free(self) -> int:
        """How many pages nobody has."""
        return len(self._free)

    def take(self, slot: int, count: int) -> list[int]:
        """Pages for a slot that has none. Raises ValueError if there are not as many."""
        if count > len(self._free) or slot in self._taken:
            raise ValueError(f"slot {slot} needs {count} pages; {len(self._free)} are free")
        self._taken[slot] = [self._free.pop() for _ in range(count)]
        return self._taken[slot]

    def of(self, slot: int) -> list[int]:
        """A slot's pages, in the order of its columns."""
        return self._taken[slot]

    def give_back(self, slot: int) -> None:
        """Free a slot's pages, if it has any."""
        self._free.extend(reversed(self._taken.pop(slot, [])))
