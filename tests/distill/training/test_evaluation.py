"""When a run is scored and when it stops."""

import math

import pytest

from cka_probe.distill.training.evaluation import Evaluation, stopped_early


def rows(*scores):
    return [{"score": score} for score in scores]


@pytest.mark.parametrize(
    ("scores", "patience", "higher", "stopped"),
    [
        ((), 1, True, False),
        ((0.5,), 1, True, False),
        ((0.5, 0.5), 1, True, True),
        ((0.5, 0.6, 0.6, 0.4), 2, True, True),
        ((0.5, 0.6, 0.6, 0.4), 3, True, False),
        ((0.5, 0.6, 0.6, 0.4), 3, False, False),
        ((0.4, 0.6, 0.6, 0.5), 3, False, True),
        ((0.5, 0.1, 0.1), None, True, False),
        ((0.5, math.nan, math.nan), 2, True, True),
        ((math.nan, 0.1, 0.2), 2, True, False),
        ((math.nan, math.nan), 2, True, False),
        ((math.nan, math.nan, math.nan), 2, True, True),
    ],
)
def test_a_run_stops_after_evaluations_without_a_better_score(scores, patience, higher, stopped):
    assert stopped_early(rows(*scores), "score", patience, higher) is stopped


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"every": 0}, ValueError, "`every` of Evaluation must be at least 1, got 0"),
        ({"patience": -1}, ValueError, "`patience` of Evaluation"),
        ({"columns": ("f1",)}, ValueError, "may hold .* got 'f1'"),
        ({"columns": ("top0",)}, ValueError, "may hold .* got 'top0'"),
        ({"columns": "top5"}, TypeError, "tuple of names, got the text 'top5'"),
    ],
)
def test_wrong_options_are_refused_by_name(options, kind, message):
    with pytest.raises(kind, match=message):
        Evaluation(**options)


def test_columns_may_be_a_list():
    assert Evaluation(columns=["top2", "loss"]) == Evaluation(columns=("top2", "loss"))
