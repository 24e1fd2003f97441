"""Nested state as JSON and arrays: what goes in comes out, and nothing else can be read."""

import json
import math
from collections import deque

import numpy as np
import pytest
import torch

from cka_probe.capture.masks import Place
from cka_probe.capture.trial import Trial
from cka_probe.comparison.grams.findings import FarSample
from cka_probe.comparison.packed import packed, unpacked

STATES = [
    None,
    True,
    1.0e-17,
    -math.inf,
    "fc",
    [1, [2.5, "a"]],
    (1, (2, 3)),
    {"a": {"b": 1}, 3: None},
    {"x", "y"},
    deque([1, 2]),
    torch.float16,
    Place("attention_mask", 2),
    Trial(2, 12, 5, {"fc": (2, 5, 3)}),
    {"fc": FarSample(1, 7, math.inf, "up to 1e-4")},
    2**90,
]

TENSORS = [
    torch.randn(3, 2),
    torch.randn(2, 3).T,
    torch.tensor(1.5, dtype=torch.float64),
    torch.randn(4).bfloat16(),
    torch.tensor([True, False]),
    torch.empty(0, 3),
    torch.arange(3),
]


def there_and_back(value):
    arrays = {}
    text = json.dumps(packed(value, arrays))
    assert all(not array.dtype.hasobject for array in arrays.values())
    return unpacked(json.loads(text), arrays)


@pytest.mark.parametrize("value", STATES, ids=lambda value: type(value).__name__)
def test_what_goes_in_comes_out(value):
    found = there_and_back(value)
    assert type(found) is type(value)
    assert found == value


@pytest.mark.parametrize("value", TENSORS, ids=lambda value: f"{value.dtype} {tuple(value.shape)}")
def test_tensors_keep_their_bits(value):
    [found] = there_and_back([value])
    assert (found.dtype, found.shape) == (value.dtype, value.shape)
    assert torch.equal(found, value)


def test_arrays_of_a_random_generator():
    found = there_and_back({"state": {"key": np.arange(4, dtype=np.uint64)}})
    assert found["state"]["key"].dtype == np.uint64
    assert found["state"]["key"].tolist() == [0, 1, 2, 3]


def test_an_object_of_another_kind_is_refused():
    with pytest.raises(TypeError, match="an object of the class object cannot be saved"):
        packed({"a": [object()]}, {})


@pytest.mark.parametrize(
    "text",
    [
        '{"os.system": ["ls"]}',
        '{"tensor": ["a", "float32", [1000000]]}',
        '{"tensor": ["a", "load", [1]]}',
        '{"tensor": ["missing", "float32", [1]]}',
        '{"dtype": "save"}',
        '{"Place": [["path", "x"]]}',
        '{"dict": 3}',
        '{"a": 1, "b": 2}',
    ],
)
def test_what_packed_did_not_write_is_an_error(text):
    with pytest.raises((ValueError, TypeError, LookupError, RuntimeError)):
        unpacked(json.loads(text), {"a": np.zeros(4, dtype=np.uint8)})
