"""StopMatcher: the same text whatever the chunks, and no text held back without need."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.gateway.text.stop import MAX_STOP_BYTES, MAX_STOPS, StopMatcher, StopStrings

letters = st.text("ab c", max_size=24)
stop_lists = st.lists(st.text("ab c", min_size=1, max_size=5), min_size=1, max_size=4)


def split(text: str, cuts: list[int]) -> list[str]:
    places = sorted({0, len(text), *(c % (len(text) + 1) for c in cuts)})
    return [text[a:b] for a, b in itertools.pairwise(places)]


def expected(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """The match that ends first; of those, the longest."""
    found = [(text.find(s) + len(s), -len(s), s) for s in stops if s in text]
    if not found:
        return text, None
    end, _, stop = min(found)
    return text[: end if include else end - len(stop)], stop


@settings(deadline=None)
@given(letters, stop_lists, st.lists(st.integers(0, 30), max_size=6), st.booleans())
def test_chunks_do_not_matter_and_holding_back_is_minimal(
    text: str, stops: list[str], cuts: list[int], include: bool
) -> None:
    matcher = StopMatcher(StopStrings.of(stops), include_stop_text=include)
    shown, fed = "", ""
    for chunk in split(text, cuts):
        shown += matcher.feed(chunk)
        fed += chunk
        if matcher.matched is not None:
            break
        held = fed[len(shown) :]
        assert fed.startswith(shown)
        longest = max((n for n in range(len(fed) + 1) for s in stops if s.startswith(fed[len(fed) - n :])), default=0)
        assert len(held) == longest
    if matcher.matched is None:
        shown += matcher.flush()
    assert (shown, matcher.matched) == expected(text, stops, include)


def test_characters_that_mean_something_in_patterns() -> None:
    for character in "^]-\\[.*&|~ \n\t\0":
        matcher = StopMatcher(StopStrings.of([character + "x"]))
        assert matcher.feed("a" + character) == "a"
        assert matcher.feed("x") == ""
        assert matcher.matched == character + "x"


def test_the_largest_allowed_stops_take_steps_in_proportion_to_the_text() -> None:
    stops = [("a" * i + "b") * (MAX_STOP_BYTES // (i + 1)) for i in range(1, MAX_STOPS + 1)]
    matcher = StopMatcher(StopStrings.of(stops))
    shown = "".join(matcher.feed("a") for _ in range(3000))
    assert shown + matcher.flush() == "a" * 3000


def test_one_prepared_set_serves_many_completions() -> None:
    stops = StopStrings.of(["END", "END"])
    first, second = StopMatcher(stops), StopMatcher(stops)
    assert first.feed("xE") + second.feed("ND") == "xND"
    assert first.feed("ND") == ""
    assert first.matched == "END"
    assert second.matched is None
