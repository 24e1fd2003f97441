"""Hints for names that do not exist."""

import pytest

from cka_probe.capture.nearest import nearest, nearest_hint


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("layr1", ["layer1", "fc"], ["layer1"]),
        ("RESNET50", ["resnet50", "vgg"], ["resnet50"]),
        ("resnet50", ["ResNet50", "resnet50"], ["ResNet50", "resnet50"]),  # both, in the given order
        ("nothing like it", ["a", "b"], []),
        ("", ["a"], []),
    ],
)
def test_nearest_names(name, known, expected):
    assert nearest(name, known) == expected


def test_at_most_so_many():
    known = [f"layer{i}" for i in range(10)]
    assert len(nearest("layer", known)) == 3
    assert nearest("layer4", known, 1) == ["layer4"]


def test_a_hint_without_near_names_lists_the_first_six():
    known = ["", *"abcdefgh"]
    assert nearest_hint("zzzz", known) == "Known names are 'a', 'b', 'c', 'd', 'e', 'f' and 2 more."
    assert nearest_hint("zzzz", "ab", kind="Its layers") == "Its layers are 'a', 'b'."


def test_a_hint_with_near_names():
    assert nearest_hint("rkca", ["rcka", "rkd", "lcka"], most=1) == "Did you mean 'rcka'?"
    assert nearest_hint("conv", ["conv1", "conv2", "fc"]) == "Did you mean 'conv2' or 'conv1'?"
