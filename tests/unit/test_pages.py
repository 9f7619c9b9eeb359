"""Pages of the KV cache: each has one owner at most."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dia2_engine.runtime.pages import PagePool, cache_pages


@given(st.integers(0, 30), st.lists(st.tuples(st.integers(0, 5), st.integers(0, 12)), max_size=40))
def test_no_page_has_two_owners_and_none_is_lost(count: int, calls: list[tuple[int, int]]) -> None:
    pool, owned = PagePool(count), dict[int, list[int]]()
    for slot, wanted in calls:
        if slot in owned:
            pool.give_back(slot)
            del owned[slot]
        elif wanted > pool.free:
            with pytest.raises(ValueError, match=f"slot {slot} needs {wanted} pages"):
                pool.take(slot, wanted)
        else:
            owned[slot] = list(pool.take(slot, wanted))
            assert pool.of(slot) == owned[slot]
        pages = [page for taken in owned.values() for page in taken]
        assert len(set(pages)) == len(pages)
        assert set(pages) <= set(range(count))
        assert pool.free == count - len(pages)
    pool.give_back(99)  # one that has none


def test_a_slot_takes_pages_once() -> None:
    pool = PagePool(4)
    pool.take(1, 2)
    with pytest.raises(ValueError, match="slot 1"):
        pool.take(1, 1)


@pytest.mark.parametrize(
    ("room", "pages"), [(0, 24), (23, 24), (50, 50), (10_000, 96)], ids=["none", "too little", "some", "plenty"]
)
def test_a_cache_holds_what_there_is_room_for_and_one_context_at_least(room: int, pages: int) -> None:
    assert cache_pages(slots=4, whole=24, room=room) == pages
