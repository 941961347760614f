from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tenantry.control.fleet_changes import compare

NAMES = st.text("abc", min_size=1, max_size=2)
TREES = st.recursive(
    st.none() | st.integers(0, 3) | st.text("xy", max_size=2),
    lambda children: st.dictionaries(NAMES, children, max_size=3) | st.lists(children, max_size=2),
    max_leaves=10,
)


@given(TREES)
def test_a_thing_does_not_differ_from_itself(tree: object) -> None:
    assert list(compare(tree, tree)) == []


@given(TREES, TREES)
def test_what_differs_is_told_and_turning_it_around_turns_it_around(one: object, two: object) -> None:
    forth = {(c.path, c.change): (c.before, c.after) for c in compare(one, two)}
    back = {(c.path, c.change): (c.before, c.after) for c in compare(two, one)}
    assert bool(forth) is (one != two)
    turned = {"added": "removed", "removed": "added", "changed": "changed"}
    assert back == {(p, turned[c]): (after, before) for (p, c), (before, after) in forth.items()}


def test_members_are_named_by_their_path() -> None:
    before = {"a": {"b": 1, "c": [1]}, "d": 2}
    after = {"a": {"b": 1, "c": [2], "e": {"f": 1}}}
    told = [(c.path, c.change) for c in compare(before, after)]
    assert told == [("$.a.c", "changed"), ("$.a.e", "added"), ("$.d", "removed")]
