"""Random calls of the public functions: a wrong argument gives an error of ours, never one from the inside."""

import random
import traceback
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import cka_probe as cp
from cka_probe.distill import FeatureCKALoss, LogitCKALoss, Outputs, RCKALoss, SignLoss
from cka_probe.distill.baselines import ATLoss, CCLoss, DISTLoss, DKDLoss, KDLoss, PKDLoss, RKDLoss, SPLoss

PACKAGE = Path(cp.__file__).parent
OURS = (ValueError, TypeError, FileNotFoundError, FloatingPointError, cp.CaptureError)


def array(rng, *, spoil=0.3):
    """An array that is mostly fine, sometimes odd in shape, dtype, content or kind."""
    n, p = rng.choice([1, 2, 3, 4, 5, 8, 17]), rng.choice([0, 1, 2, 3, 7])
    shape = (n, p) if rng.random() > spoil else rng.choice([(), (n,), (n, p, 2), (0, p), (n, p, 2, 2), (1, 0)])
    values = np.random.default_rng(rng.randrange(10**6)).normal(size=shape)
    dtype = "float64"
    if rng.random() < spoil:
        dtype = rng.choice(["float32", "float16", "int64", "bool", "complex128", "uint8", "object", "U3"])
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # casting to the odd dtype
        values = values.astype(dtype)
    if rng.random() < spoil and values.size and values.dtype.kind == "f":
        values.flat[0] = rng.choice([np.nan, np.inf, -np.inf, 1e300, 1e-300, 0.0])
        if rng.random() < 0.3:
            values[...] = values.flat[0]
    if rng.random() < 0.4 and values.dtype.kind in "fiub":
        return torch.from_numpy(np.ascontiguousarray(values))
    return values if rng.random() < 0.9 else values.tolist()


def odd(rng):
    """Something that is almost never right."""
    return rng.choice(
        [None, 0, -1, 1.5, "", "x", "linear", b"a", [], (), {}, set(), object(), [None], float("nan"), 10**30, True,
         np.float32(2), torch.tensor(3.0), nn.Linear(2, 2), nn.ReLU, print, Path("nowhere")]
    )  # fmt: skip


def maybe(rng, *good):
    """One of the right values, or now and then an odd one."""
    return odd(rng) if rng.random() < 0.15 else rng.choice(good)


def kernel(rng):
    makers = (
        lambda: cp.Linear(),
        lambda: cp.RBF(maybe(rng, "median", 1.0), maybe(rng, 1.0, 0.5)),
        lambda: cp.Laplacian(),
        lambda: cp.Polynomial(),
        lambda: cp.Cosine(),
        lambda: cp.RBF,
        lambda: odd(rng),
        lambda: None,
    )
    return rng.choice(makers)()


def given(rng, **choices):
    """Some of the keyword arguments."""
    return {name: make() for name, make in choices.items() if rng.random() < 0.35}


def model(rng):
    if rng.random() < 0.1:
        return odd(rng)
    torch.manual_seed(rng.randrange(100))
    return rng.choice(
        [
            lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)),
            lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout()),
            lambda: nn.LSTM(3, 4, batch_first=True),
            lambda: nn.MultiheadAttention(3, 1, batch_first=True),
            lambda: nn.Identity(),
            lambda: nn.Sequential(),
            lambda: nn.Embedding(5, 3),
        ]
    )()


def data(rng):
    n = rng.choice([0, 1, 2, 3, 4, 5, 9])
    batches = [
        lambda: torch.randn(n, 3),
        lambda: [torch.randn(n, 3), torch.randn(rng.choice([n, 1, 4]), 3)],
        lambda: [(torch.randn(n, 3), torch.zeros(n)) for _ in range(2)],
        lambda: [{"input": torch.randn(n, 3)}],
        lambda: iter([torch.randn(5, 3)]),
        lambda: torch.randn(n, 2, 3),
        lambda: np.random.default_rng(0).normal(size=(n, 3)),
        lambda: torch.randint(5, (n, 2)),
        lambda: torch.full((n, 3), float(rng.choice([0, 1e30, float("nan")]))),
        lambda: [torch.randn(5, 3), odd(rng)],
        lambda: odd(rng),
    ]
    return rng.choice(batches)()


def layers(rng):
    return maybe(rng, "leaves", "blocks", "0", ["0", "2"], "re:.*", "*", nn.Linear, ["nothing"], {"0": "first"})


def options(rng):
    return given(
        rng,
        layers=lambda: layers(rng),
        exclude=lambda: layers(rng),
        kernel=lambda: kernel(rng),
        estimator=lambda: maybe(rng, "unbiased", "biased"),
        pooling=lambda: maybe(rng, "auto", "flatten", "mean", "cls", "last", "spatial", "all", lambda x: x.flatten(1)),
        device=lambda: maybe(rng, "cpu", None),
        forward=lambda: maybe(rng, lambda m, batch: m(batch), None),
    ) | {"progress": False}


def scoped(rng):
    return given(
        rng,
        scope=lambda: maybe(rng, "minibatch", "dataset"),
        measure=lambda: maybe(rng, "cka", "procrustes", "cca", "rsa_spearman"),
        autocast=lambda: maybe(rng, torch.bfloat16, None),
    )


def outputs(rng):
    logits = torch.randn(rng.choice([1, 2, 5, 8]), rng.choice([1, 2, 3, 10]))
    feature = torch.randn(len(logits), *rng.choice([(), (3,), (4, 2, 2), (2, 3)]))
    both = Outputs(maybe(rng, logits), maybe(rng, (feature,), (feature, feature), ()))
    return maybe(rng, both, both, both, logits, (feature,))


def distances(rng):
    x, y = array(rng), array(rng)
    return rng.choice(
        [
            lambda: cp.cka(x, y, **given(rng, kernel=lambda: kernel(rng), estimator=lambda: maybe(rng, "biased"))),
            lambda: cp.hsic(x, y, **given(rng, kernel=lambda: kernel(rng), estimator=lambda: maybe(rng, "biased"))),
            lambda: cp.mmd_squared(x, y, **given(rng, kernel=lambda: kernel(rng))),
            lambda: cp.cka_mmd_bounds(x, y, **given(rng, tau=lambda: maybe(rng, 0.5))),
            lambda: cp.mmd_test(x, y, **given(rng, permutations=lambda: maybe(rng, 20))),
            lambda: cp.energy_distance(x, y),
            lambda: cp.cka_with_error(x, y, **given(rng, kernel=lambda: kernel(rng))),
            lambda: cp.cka_matrix(maybe(rng, [x, y]), **given(rng, kernel=lambda: kernel(rng))),
            lambda: cp.cka_from_grams(x, y),
            lambda: cp.hsic_from_grams(x, y),
            lambda: cp.alignment_corridor(x, y),
            lambda: cp.MEASURES[rng.choice(sorted(cp.MEASURES))](x, y),
            lambda: kernel(rng),
        ]
    )  # fmt: skip


def losses(rng):
    weight = maybe(rng, 0.0, 1.0)
    made = rng.choice(
        [
            lambda: FeatureCKALoss(**given(rng, weight=lambda: weight, estimator=lambda: maybe(rng, "unbiased"))),
            lambda: LogitCKALoss(**given(rng, intra_weight=lambda: weight, temperature=lambda: maybe(rng, 4.0))),
            lambda: RCKALoss(**given(rng, feature_weight=lambda: weight, kernel=lambda: kernel(rng))),
            *(SignLoss, KDLoss, DKDLoss, DISTLoss, ATLoss, CCLoss, PKDLoss, RKDLoss, SPLoss),
        ]
    )
    student, teacher = outputs(rng), outputs(rng)
    target = maybe(rng, torch.zeros(5, dtype=torch.long), torch.randint(3, (8,)), None)
    return lambda: made()(student, teacher, target)


def comparisons(rng):
    first, second = model(rng), model(rng)
    return rng.choice(
        [
            lambda: cp.compare(first, second, data(rng), **options(rng), **scoped(rng)),
            lambda: cp.compare(first, first, data(rng), **options(rng), **scoped(rng)),
            lambda: cp.compare_many(maybe(rng, {"a": first, "b": second}), data(rng), **options(rng), **scoped(rng)),
            lambda: cp.signature(first, data(rng), **options(rng)),
            lambda: probed(rng, first),
            lambda: cp.compare_signatures(maybe(rng, SIGNED), maybe(rng, SIGNED)),
            lambda: cp.Shard(data(rng), rank=maybe(rng, 0), world=maybe(rng, 2)),
            lambda: cp.extract(
                first, data(rng), **{k: v for k, v in options(rng).items() if k not in ("kernel", "estimator")}
            ),
            lambda: cp.compare_features(
                maybe(rng, {"a": array(rng), "b": array(rng)}), maybe(rng, {"c": array(rng)}, None), progress=False
            ),
        ]
    )


SIGNED = cp.signature(nn.Sequential(nn.Linear(3, 2)), torch.randn(6, 3), progress=False)


def probed(rng, net):
    with cp.Probe(net, layers(rng), maybe(rng, "flatten", "mean", None)) as probe:
        if isinstance(net, nn.Sequential):
            net(torch.randn(4, 3))
    return probe.features


def results(rng):
    r, c = rng.choice([0, 1, 2, 3]), rng.choice([0, 1, 3])
    names = [f"l{i}" for i in range(max(r, c))]
    values = maybe(rng, np.zeros((r, c)), np.full((r, c), np.nan), np.ones((2, 3)))
    more = given(
        rng, standard_error=lambda: maybe(rng, np.ones((r, c))), p_value=lambda: maybe(rng, np.zeros((r, c))),
        notes=lambda: maybe(rng, ["a"]), meta=lambda: maybe(rng, {"a": 1}), chance=lambda: maybe(rng, np.ones((r, c))),
        row_models=lambda: maybe(rng, ["m"] * r),
    )  # fmt: skip

    def use():
        matrix = cp.SimilarityMatrix(values, maybe(rng, names[:r]), maybe(rng, names[:c]), **more)
        use = rng.choice(
            [
                lambda: matrix[maybe(rng, ("l0", "l1"), "l0")],
                lambda: matrix.select(rows=maybe(rng, "l*", ["l0"]), columns=maybe(rng, None, "l1")),
                lambda: matrix.rename(maybe(rng, {"l0": "first"}, str.upper)),
                lambda: matrix.best_match(),
                lambda: matrix.pairs(maybe(rng, 0.9)),
                lambda: matrix.interval(maybe(rng, 0.9)),
                lambda: (repr(matrix), matrix._repr_html_(), len(matrix)),
                lambda: matrix.to_latex(),
                lambda: matrix.to_frame(),
            ]
        )
        return use()

    return use


FAMILIES = {
    "estimators": (distances, 2000),
    "losses": (losses, 1200),
    "comparisons": (comparisons, 1000),
    "results": (results, 800),
}


def from_inside(error):
    """Why an error is not one for users; None if it is one."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return "memory"
    frames = traceback.extract_tb(error.__traceback__)
    last = Path(frames[-1].filename)
    in_package = any(PACKAGE in Path(frame.filename).parents for frame in frames)
    if not in_package:
        return None  # the call itself was wrong: an unknown keyword, a missing argument
    if getattr(error, "__notes__", None):
        return None  # a model failed on its batch: ours names both
    if isinstance(error, TypeError) and "unexpected keyword" in str(error):
        return None
    if not (isinstance(error, OURS) or type(error).__module__.startswith("cka_probe")):
        return "class"
    if PACKAGE not in last.parents:
        return "raised in a library"
    return None if str(error).strip() else "no message"


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_no_internal_error_reaches_the_user(family):
    make, count = FAMILIES[family]
    found = {}
    for seed in range(count):
        rng = random.Random(f"{family} {seed}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch and numpy about the odd values
            call = make(rng)
            try:
                call()
            except Exception as error:
                reason = from_inside(error)
                if reason is not None:
                    frame = traceback.extract_tb(error.__traceback__)[-1]
                    place = next(
                        f"{Path(f.filename).relative_to(PACKAGE)}:{f.lineno}"
                        for f in reversed(traceback.extract_tb(error.__traceback__))
                        if PACKAGE in Path(f.filename).parents
                    )
                    text = f"{reason}: {type(error).__name__}: {str(error)[:160]} (at {place}, {frame.name})"
                    found.setdefault(place, f"seed {seed}: {text}")
    assert not found, "\n".join(found.values())
