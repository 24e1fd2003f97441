"""CKA losses: value against the brute-force definition, gradient, formulas of the released code, and bad input."""

import math

import numpy as np
import pytest
import reference
import torch
from torch import nn

from cka_probe.distill.losses import wide_gram as grams
from cka_probe.distill.losses.cka import FeatureCKALoss, LogitCKALoss, RCKALoss
from cka_probe.distill.losses.contract import Outputs
from cka_probe.estimators import RBF, Laplacian

F64 = torch.float64


def normal(*shape, seed=0, dtype=F64, offset=0.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype) + offset


def flat(x):
    return x.reshape(len(x), -1).numpy()


# --- the paper's variant -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_features_are_one_minus_the_mean_cka_of_the_pairs(estimator):
    student = [normal(9, 3, 4, 4, offset=2.0), normal(9, 5, 7, seed=1), normal(9, 30, seed=2)]
    teacher = [normal(9, 6, 4, 4, seed=3, offset=-1.0), normal(9, 11, seed=4), normal(9, 4, 2, 2, seed=5)]
    loss = FeatureCKALoss(2.5, estimator=estimator)
    expected = np.mean([reference.cka(flat(x), flat(y), estimator) for x, y in zip(student, teacher, strict=True)])
    value = loss(student, teacher)
    assert value.shape == ()
    torch.testing.assert_close(value, torch.tensor(2.5 * (1 - expected), dtype=F64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("classes", [6, 40])
@pytest.mark.parametrize("temperature", [None, 3.0])
def test_logits_over_samples_and_over_classes(estimator, classes, temperature):
    x, y = normal(8, classes), normal(8, classes, seed=1, offset=3.0)
    terms = LogitCKALoss(15, 4, temperature=temperature, estimator=estimator).terms(x, y)
    if temperature:
        x, y = (torch.exp(z / temperature) / torch.exp(z / temperature).sum(1, keepdim=True) for z in (x, y))
    x, y = x.numpy(), y.numpy()
    assert float(terms["intra"]) == pytest.approx(15 * (1 - reference.cka(x, y, estimator)), abs=1e-11)
    assert float(terms["inter"]) == pytest.approx(4 * (1 - reference.cka(x.T, y.T, estimator)), abs=1e-11)


def test_rbf_equals_its_definition():
    x, y = normal(7, 5), normal(7, 3, seed=1)
    grams = [reference.gram(z.numpy(), reference.rbf(0.7 * reference.median_distance(z.numpy()))) for z in (x, y)]
    value = FeatureCKALoss(kernel=RBF(fraction=0.7))(x, y)
    assert float(value) == pytest.approx(1 - reference.cka_grams(*grams, "biased"), abs=1e-12)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_rcka_is_the_sum_of_its_terms(variant):
    x, y = normal(8, 6), normal(8, 6, seed=1)
    maps, others = [normal(8, 2, 3, 3, seed=2)], [normal(8, 4, 3, 3, seed=3)]
    loss = RCKALoss(2, 3, 4, variant=variant)
    outputs = Outputs(x, maps), Outputs(y, others)
    terms = loss.terms(*outputs)
    assert list(terms) == ["features", "intra", "inter"]
    assert float(loss(*outputs)) == pytest.approx(sum(map(float, terms.values())))
    assert float(terms["features"]) == float(FeatureCKALoss(2, variant=variant)(maps, others))
    assert float(terms["intra"]) == float(LogitCKALoss(3, 4, variant=variant).terms(x, y)["intra"])


def test_a_perfect_match_is_zero_up_to_what_cka_ignores():
    logits, maps = normal(8, 6), normal(8, 5, seed=1)
    rotation = torch.linalg.qr(normal(5, 5, seed=2)).Q
    value = RCKALoss()(Outputs(2.0 * logits + 1.0, (3.0 * maps @ rotation + 7.0,)), Outputs(logits, (maps,)))
    assert abs(float(value)) < 1e-12
    squeezed = FeatureCKALoss()([maps @ torch.diag(torch.tensor([1, 9, 1, 1, 0.1], dtype=F64))], [maps])
    assert float(squeezed) > 0.05  # CKA sees a general linear map


# --- gradients ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"estimator": "unbiased"},
        {"temperature": 2.0},
        {"kernel": RBF(bandwidth=2.0)},
        {"kernel": RBF(), "estimator": "unbiased"},
        {"kernel": Laplacian(bandwidth=3.0)},
        {"variant": "released"},
        {"variant": "released", "temperature": 2.0},
    ],
    ids=str,
)
def test_gradcheck(settings):
    loss = RCKALoss(1, 2, 3, **settings)
    logits, maps, matrix = normal(5, 4), normal(5, 1, 2, 2, seed=1), normal(5, 3, seed=2)
    teacher = Outputs(normal(5, 4, seed=3), (normal(5, 3, 2, 2, seed=4), normal(5, 4, seed=5)))
    for tensor in (logits, maps, matrix):
        tensor.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, b, c: loss(Outputs(a, (b, c)), teacher), (logits, maps, matrix), atol=1e-7, rtol=1e-5
    )


def test_the_gradient_is_the_one_derived_in_closed_form():
    """dc/dX = (2 / |Kc|)(Lhat - c Khat) X for centred X (docs/theory.md, section 8)."""
    x, y = normal(7, 4), normal(7, 6, seed=1)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(FeatureCKALoss()(x, y), x)
    centred = x.detach().numpy() - x.detach().numpy().mean(0)
    k, other = (reference.centred_linear_gram(z.detach().numpy()) for z in (x, y))
    khat, lhat = k / np.linalg.norm(k), other / np.linalg.norm(other)
    expected = -2 / np.linalg.norm(k) * (lhat - (khat * lhat).sum() * khat) @ centred
    np.testing.assert_allclose(gradient.numpy(), expected, atol=1e-12)


def test_wide_features_are_centred_some_columns_at_a_time(monkeypatch):
    monkeypatch.setattr(grams, "CHUNK", 12)
    x, y = normal(5, 31, offset=3.0).requires_grad_(), normal(5, 17, seed=1)
    value = FeatureCKALoss()(x, y)
    assert float(value.detach()) == pytest.approx(1 - reference.cka(flat(x.detach()), flat(y), "biased"), abs=1e-12)
    assert torch.autograd.gradcheck(lambda z: FeatureCKALoss()(z, y), x, atol=1e-7)


def test_the_teacher_gets_no_gradient():
    x, y = normal(6, 5).requires_grad_(), normal(6, 5, seed=1).requires_grad_()
    RCKALoss()(Outputs(x, (x,)), Outputs(y, (y,))).backward()
    assert x.grad is not None
    assert y.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_compute_in_float32(dtype):
    x, y = normal(16, 10, dtype=dtype), normal(16, 10, seed=1, dtype=dtype)
    maps, others = normal(16, 200, seed=2, dtype=dtype), 300 * normal(16, 300, seed=3, dtype=dtype)
    loss = RCKALoss()
    exact = loss(Outputs(x.double(), (maps.double(),)), Outputs(y.double(), (others.double(),)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(Outputs(x, (maps,)), Outputs(y, (others,)))
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(float(exact), abs=1e-5)
    x.requires_grad_()
    loss(Outputs(x, (maps,)), Outputs(y, (others,))).backward()
    assert x.grad.dtype == dtype
    assert bool(torch.isfinite(x.grad).all())


@pytest.mark.parametrize("widths", [(20, 30), (200, 900)])
def test_float32_far_from_the_origin(widths):
    x, y = normal(32, widths[0], offset=1000.0), normal(32, widths[1], seed=1, offset=-1e4)
    exact = 1 - reference.cka(x.float().double().numpy(), y.float().double().numpy(), "biased")
    assert float(FeatureCKALoss()(x.float(), y.float())) == pytest.approx(exact, abs=1e-6)


def test_training_with_the_loss_aligns_a_student_that_is_narrower():
    torch.manual_seed(0)
    data = normal(64, 10, dtype=torch.float32)
    teacher, student = nn.Sequential(nn.Linear(10, 30), nn.Tanh()), nn.Sequential(nn.Linear(10, 6), nn.Tanh())
    goal = teacher(data).detach()
    optimizer = torch.optim.Adam(student.parameters(), 0.02)
    first = FeatureCKALoss()(student(data), goal).item()
    for _ in range(60):
        optimizer.zero_grad()
        value = FeatureCKALoss()(student(data), goal)
        value.backward()
        optimizer.step()
    assert value.item() < 0.6 * first


# --- the released code, as docs/paper.md, section 2, describes it -------------------------------------------------


def released_cka(x, y, scaled):
    """Departures 1 and 2: un-centred; the L2 option divides the rows of the Gram matrix by the root of its diagonal."""
    grams = [x @ x.T, y @ y.T]
    if scaled:
        grams = [gram / torch.sqrt(torch.diag(gram))[:, None] for gram in grams]
    a, b = grams
    return torch.trace(a @ b.T) / torch.sqrt(torch.trace(a @ a.T) * torch.trace(b @ b.T))


def released_logits(x, y, intra_weight, inter_weight, temperature):
    """Departure 3: inter has the intra weight; the temperature applies to intra only."""
    soft = (x, y) if temperature is None else (torch.softmax(x / temperature, 1), torch.softmax(y / temperature, 1))
    terms = {"intra": -intra_weight * released_cka(*soft, True)}
    if inter_weight:
        terms["inter"] = -intra_weight * released_cka(x.T, y.T, True)
    return terms


def released_features(x, y):
    """Departure 4: the rows of each B x B Gram matrix are normalised, and the result is used as features."""
    rows = [z.flatten(1) @ z.flatten(1).T for z in (x, y)]
    return -released_cka(*(gram / gram.norm(dim=1, keepdim=True) for gram in rows), False)


@pytest.mark.parametrize("temperature", [None, 4.0])
@pytest.mark.parametrize(("intra", "inter"), [(15, 15), (15, 2), (7, 0)])
@pytest.mark.parametrize("shape", [(8, 5), (5, 8), (3, 30)])
def test_released_logits(shape, intra, inter, temperature):
    x, y = normal(*shape, offset=1.0).requires_grad_(), normal(*shape, seed=1)
    expected = released_logits(x, y, intra, inter, temperature)
    (expected_gradient,) = torch.autograd.grad(sum(expected.values()), x)
    terms = LogitCKALoss(intra, inter, temperature=temperature, variant="released").terms(x, y)
    assert terms.keys() == expected.keys()
    for name, term in terms.items():
        torch.testing.assert_close(term, expected[name], rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(sum(terms.values()), x)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("channels", [2, 40])
def test_released_features(channels):
    x, y = normal(6, channels, 2, 2, offset=0.5).requires_grad_(), normal(6, 3, 4, 4, seed=1)
    expected = released_features(x, y)
    (expected_gradient,) = torch.autograd.grad(expected, x)
    value = FeatureCKALoss(variant="released")(x, y)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(value, x)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-12)


# --- weights, settings, errors -----------------------------------------------------------------------------------


def test_a_term_with_weight_zero_is_left_out():
    x = normal(6, 5)
    assert list(RCKALoss(0, 1, 0).terms(x, x)) == ["intra"]
    assert list(RCKALoss(0, 0, 1).terms(x, x)) == ["inter"]
    assert RCKALoss(0, 0, 0).terms(x, x) == {}
    assert float(RCKALoss(0, 0, 0)(x, x)) == 0.0


def test_the_text_of_a_loss_names_all_its_settings():
    text = repr(RCKALoss(2, 3, 4, temperature=5, kernel=RBF(fraction=0.5), estimator="unbiased", gather=False))
    for part in ("weight=2.0", "intra_weight=3.0", "inter_weight=4.0", "temperature=5", "fraction=0.5", "unbiased"):
        assert part in text
    assert "variant='paper', gather=False" in text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"feature_weight": -1}, "`feature_weight` must not be negative"),
        ({"intra_weight": -1}, "`intra_weight` must not be negative"),
        ({"inter_weight": math.nan}, "`inter_weight` must not be negative, got nan"),
        ({"temperature": 0}, "`temperature` must be positive"),
        ({"estimator": "debiased"}, '`estimator` must be "unbiased" or "biased"'),
        ({"variant": "official"}, '`variant` must be "paper" or "released"'),
        ({"variant": "released", "kernel": RBF()}, "linear kernel and the biased estimator only"),
        ({"variant": "released", "estimator": "unbiased"}, "linear kernel and the biased estimator only"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        RCKALoss(**settings)


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("owner", ["student", "teacher"])
def test_not_finite_features_are_named(variant, owner):
    good, bad = normal(6, 5), normal(6, 5, seed=1)
    bad[2, 3] = math.inf
    lists = {"student": [good, good], "teacher": [good, good]}
    lists[owner] = [good, bad]
    with pytest.raises(ValueError, match=rf"The {owner}'s feature 1, shape \(6, 5\), hold NaN or infinity"):
        FeatureCKALoss(variant=variant)(lists["student"], lists["teacher"])


@pytest.mark.parametrize("owner", ["student", "teacher"])
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_constant_features_are_named(owner, estimator):
    lists = {"student": [normal(6, 5)], "teacher": [normal(6, 5, seed=1)]}
    lists[owner] = [torch.full((6, 7), 3.3, dtype=torch.float32)]
    with pytest.raises(ValueError, match=f"The {owner}'s feature 0, shape .* are constant over the batch"):
        FeatureCKALoss(estimator=estimator)(lists["student"], lists["teacher"])


def test_logits_of_a_head_with_zero_weights_are_named():
    with pytest.raises(ValueError, match=r"The student's logits, shape .* are constant over the batch"):
        LogitCKALoss()(torch.zeros(8, 5), normal(8, 5, dtype=torch.float32))
    rows = normal(8, 1, dtype=torch.float32).expand(8, 5)
    with pytest.raises(ValueError, match=r"The student's transposed logits, shape .* are constant"):
        LogitCKALoss(0, 1)(rows, normal(8, 5, dtype=torch.float32))


def test_a_zero_row_that_the_released_code_divides_by():
    x = normal(6, 5)
    x[2] = 0
    with pytest.raises(ValueError, match="one of them has a zero row"):
        LogitCKALoss(variant="released")(x, normal(6, 5, seed=1))


def test_coinciding_samples_with_the_median_bandwidth():
    x = normal(6, 5)
    x[:5] = x[0]
    with pytest.raises(ValueError, match="more than half of its samples coincide"):
        FeatureCKALoss(kernel=RBF())(x, normal(6, 5, seed=1))


def test_batches_that_are_too_small():
    x = normal(1, 5)
    with pytest.raises(ValueError, match="There are 1 samples in the batch, but the biased CKA needs at least 2"):
        RCKALoss()(Outputs(x, (x,)), Outputs(x, (x,)))
    with pytest.raises(ValueError, match=r'There are 3 samples .* at least 4.* or estimator="biased"'):
        RCKALoss(0, 1, 0, estimator="unbiased")(normal(3, 5), normal(3, 5))
    with pytest.raises(ValueError, match=r"needs at least 3 .* the logits have 2. Set inter_weight=0"):
        LogitCKALoss()(normal(6, 2), normal(6, 2, seed=1))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            (Outputs(features=normal(4, 2)), normal(4, 2)),
            TypeError,
            "student's features must be a tuple of tensors",
        ),
        (([], []), ValueError, "FeatureCKALoss compares features, but got none"),
        (([normal(4, 2)] * 2, [normal(4, 2)]), ValueError, "the student has 2 and the teacher 1"),
        (([normal(4, 2)], [normal(5, 2)]), ValueError, "Feature 0 has 4 samples in the student and 5"),
        (([normal(4)], [normal(4)]), ValueError, "student's feature 0 must have shape"),
        (([torch.ones(4, 2, dtype=int)], [normal(4, 2)]), TypeError, "feature 0 must be floating"),
        ((["x"], [normal(4, 2)]), TypeError, "The student's feature 0 must be a tensor, got str"),
    ],
)
def test_features_that_do_not_fit(arguments, error, message):
    with pytest.raises(error, match=message):
        FeatureCKALoss()(*arguments)


@pytest.mark.parametrize(
    ("logits", "error", "message"),
    [
        ((normal(4, 5), normal(4, 6)), ValueError, r"shape \(4, 5\) and the teacher's \(4, 6\)"),
        ((normal(4, 5, 2), normal(4, 5, 2)), ValueError, r"The student's logits must have shape \(B, classes\)"),
        ((None, normal(4, 5)), TypeError, "compares logits: the student's must be a tensor or Outputs.*got NoneType"),
        ((normal(4, 5), torch.ones(4, 5, dtype=int)), TypeError, "The teacher's logits must be floating"),
    ],
)
def test_logits_that_do_not_fit(logits, error, message):
    with pytest.raises(error, match=message):
        LogitCKALoss()(*logits)
