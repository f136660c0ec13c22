"""Files that stay open while they are used."""

from __future__ import annotations

import resource

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpvla import kept_open
from dpvla.kept_open import KeptOpen


@given(st.lists(st.integers(0, 9)), st.integers(1, 5), st.integers(0, 20))
def test_what_was_asked_for_last_is_kept_within_both_bounds(keys: list[int], most: int, most_bytes: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kept_open, "most_open", lambda: most)
        kept: KeptOpen[int, list[int]] = KeptOpen(lambda opened: opened[0], most_bytes)
    last: list[int] = []
    for key in keys:
        opened = kept.get(key, lambda key=key: [key])  # type: ignore[misc]
        assert opened == [key] and kept.get(key, lambda: [-1]) is opened
        last = [*(k for k in last if k != key), key]
        while len(last) > 1 and (len(last) > most or sum(last) > most_bytes):
            last.pop(0)
        assert list(kept._kept) == last


def test_what_cannot_be_opened_is_not_kept() -> None:
    kept: KeptOpen[str, str] = KeptOpen()

    def missing() -> str:
        raise FileNotFoundError("gone")

    with pytest.raises(FileNotFoundError, match="gone"):
        kept.get("a", missing)
    assert kept.get("a", lambda: "there") == "there"


def test_readers_share_the_descriptors_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, most in ((256, 64), (1024, 256), (1 << 20, 4096), (2, 1), (resource.RLIM_INFINITY, 4096)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        assert kept_open.most_open() == most
