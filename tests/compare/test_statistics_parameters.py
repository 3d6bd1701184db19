"""The Pareto front against its definition, and rivals by hand."""

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from melora.compare.record import Record
from melora.compare.statistics import summarise
from melora.compare.statistics_parameters import Rivals, pareto_front, rivals, sizes

Scored = Callable[..., list[Record]]
POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12)


def beats(one: tuple[float, float], other: tuple[float, float], greater_is_better: bool) -> bool:
    """No more parameters and no worse a score, and not the same point."""
    as_good = one[1] >= other[1] if greater_is_better else one[1] <= other[1]
    return one[0] <= other[0] and as_good and one != other


@given(POINTS, st.booleans())
def test_the_front_is_what_nothing_beats(points: list[tuple[float, float]], greater_is_better: bool) -> None:
    found = pareto_front(points, greater_is_better=greater_is_better)
    unbeaten = [
        i
        for i, point in enumerate(points)
        if not any(beats(other, point, greater_is_better) for other in points) and points.index(point) == i
    ]
    assert found == sorted(unbeaten, key=lambda i: points[i][0])
    scores = [points[i][1] for i in found]
    assert scores == sorted(set(scores), reverse=not greater_is_better)


def test_a_front_by_hand() -> None:
    points = [(10, 0.8), (5, 0.8), (5, 0.7), (20, 0.9), (1, 0.1), (30, 0.9)]
    assert pareto_front(points, greater_is_better=True) == [4, 1, 3]
    assert pareto_front(points, greater_is_better=False) == [4]
    assert pareto_front([], greater_is_better=True) == []


def found(records: list[Record]) -> dict[str, Rivals]:
    return {own.method.method: own for own in rivals(summarise(records, "large"))}


def names(own: Rivals) -> tuple[str | None, str | None]:
    return own.best and own.best.method, own.cheapest and own.cheapest.method


def test_rivals_by_size_and_by_score(scored: Scored) -> None:
    records = [
        *scored("head", [0.4, 0.4, 0.4], parameters=0),
        *scored("small", [0.7, 0.8, 0.9], parameters=10),
        *scored("middle", [0.6, 0.7, 0.8], parameters=20),
        *scored("large", [0.8, 0.9, 1.0], parameters=30),
        *scored("broken", [], parameters=1),
    ]
    by_method = found(records)
    assert {method: names(own) for method, own in by_method.items()} == {
        "head": (None, "small"),
        "small": ("head", "large"),
        "middle": ("small", "small"),
        "large": ("small", None),
    }
    assert by_method["middle"].difference.verdict == "loss"
    assert by_method["large"].difference.verdict == "win"
    assert by_method["head"].difference is None


def test_rivals_where_less_is_better(scored: Scored) -> None:
    fields = {"metric": "loss", "greater_is_better": False}
    by_method = found(
        [
            *scored("small", [2.0, 2.1, 2.2], parameters=10, **fields),
            *scored("large", [1.0, 1.1, 1.2], parameters=30, **fields),
        ]
    )
    assert names(by_method["small"]) == (None, "large")
    assert names(by_method["large"]) == ("small", None)
    assert by_method["large"].difference.verdict == "win"
    assert by_method["large"].difference.interval.mean < 0


def test_rivals_of_equal_size_and_score_name_each_other(scored: Scored) -> None:
    by_method = found([*scored("one", [0.5, 0.6, 0.7]), *scored("other", [0.5, 0.6, 0.7])])
    assert names(by_method["one"]) == ("other", "other")
    assert names(by_method["other"]) == ("one", "one")
    assert by_method["one"].difference.verdict == "tie"


def test_a_method_without_a_known_size_is_no_rival(scored: Scored) -> None:
    assert list(found([*scored("known", [0.5]), *scored("unknown", [0.9], parameters=None)])) == ["known"]


def test_methods_of_one_size_to_within_a_tenth(scored: Scored) -> None:
    counts = {"a": 100, "b": 1000, "c": 108, "d": 111, "e": 1000, "f": 5000}
    records = [run for name, count in counts.items() for run in scored(name, [0.5], parameters=count)]
    assert sizes(summarise(records, "a")) == {100: ["a", "c"], 1000: ["b", "e"]}
    other = scored("e", [0.5], "another task", parameters=900)
    assert sizes(summarise([*records, *other], "a")) == {100: ["a", "c"]}
    assert sizes(summarise(scored("head", [0.5], parameters=0) + scored("none", [0.5], parameters=0), "head")) == {}
