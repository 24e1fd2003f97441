"""Each baseline against loops written from its paper's equation, gradients, scale, and bad input."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from cka_probe.distill.baselines import (
    ATLoss,
    CCLoss,
    CWDLoss,
    DISTLoss,
    DKDLoss,
    FitNetLoss,
    KDLoss,
    PKDLoss,
    RKDLoss,
    SPLoss,
)
from cka_probe.distill.losses.contract import Outputs

F64 = torch.float64


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


LOGITS = normal(6, 5), 2 * normal(6, 5, seed=1)
TARGET = torch.tensor([0, 1, 2, 3, 4, 1])
MAPS = normal(3, 4, 5, 6, seed=2), normal(3, 4, 5, 6, seed=3)


def softmax(row, temperature=1.0):
    exponentials = [math.exp(z / temperature) for z in row]
    return [e / sum(exponentials) for e in exponentials]


def divergence(teacher, student):
    """KL(teacher || student) of two distributions."""
    return sum(p * math.log(p / q) for p, q in zip(teacher, student, strict=True))


def pearson(a, b):
    a, b = np.asarray(a) - np.mean(a), np.asarray(b) - np.mean(b)
    return sum(a * b) / math.sqrt(sum(a * a) * sum(b * b))


def huber(d):
    """Equation 6 of RKD."""
    return d * d / 2 if abs(d) <= 1 else abs(d) - 0.5


# --- values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd(temperature):
    rows = zip(*(z.tolist() for z in LOGITS), strict=True)
    values = [divergence(softmax(t, temperature), softmax(s, temperature)) for s, t in rows]
    expected = 0.7 * temperature**2 * np.mean(values)
    assert float(KDLoss(temperature, 0.7)(*LOGITS)) == pytest.approx(expected, rel=1e-12)


def test_dkd():
    temperature, tckd, nckd = 4.0, 0.0, 0.0
    for student, teacher, label in zip(*(z.tolist() for z in LOGITS), TARGET.tolist(), strict=True):
        p, q = softmax(teacher, temperature), softmax(student, temperature)
        tckd += divergence([p[label], 1 - p[label]], [q[label], 1 - q[label]])
        rest_p = [p[i] / (1 - p[label]) for i in range(5) if i != label]
        rest_q = [q[i] / (1 - q[label]) for i in range(5) if i != label]
        nckd += divergence(rest_p, rest_q)
    terms = DKDLoss(2.0, 3.0, temperature).terms(*LOGITS, target=TARGET)
    assert float(terms["tckd"]) == pytest.approx(2 * temperature**2 * tckd / 6, rel=1e-12)
    assert float(terms["nckd"]) == pytest.approx(3 * temperature**2 * nckd / 6, rel=1e-12)


def test_dkd_splits_kd_as_its_equation_5_says():
    """KD = TCKD + (1 - p_target of the teacher) NCKD, sample by sample."""
    for i in range(6):
        one = [z[i : i + 1] for z in LOGITS]
        terms = DKDLoss(1, 1, 4).terms(*one, target=TARGET[i : i + 1])
        rest = 1 - softmax(one[1][0].tolist(), 4.0)[TARGET[i]]
        expected = float(terms["tckd"]) + rest * float(terms["nckd"])
        assert float(KDLoss(4, 1)(*one)) == pytest.approx(expected, rel=1e-10)


def test_dist():
    temperature = 2.0
    student, teacher = (np.array([softmax(row, temperature) for row in z.tolist()]) for z in LOGITS)
    inter = 1 - np.mean([pearson(student[i], teacher[i]) for i in range(6)])
    intra = 1 - np.mean([pearson(student[:, j], teacher[:, j]) for j in range(5)])
    terms = DISTLoss(2, 3, temperature).terms(*LOGITS)
    assert float(terms["inter"]) == pytest.approx(2 * 4 * inter, rel=1e-12)
    assert float(terms["intra"]) == pytest.approx(3 * 4 * intra, rel=1e-12)


def flat(x):
    return x.reshape(len(x), -1).numpy()


def test_sp():
    pairs = [(normal(4, 3, 2, 2), normal(4, 5, 3, 3, seed=1)), (normal(4, 7, seed=2), normal(4, 2, seed=3))]
    expected = 0.0
    for student, teacher in pairs:
        grams = []
        for z in (flat(student), flat(teacher)):
            gram = np.array([[sum(u * v) for v in z] for u in z])
            grams.append(np.array([row / math.sqrt(sum(row**2)) for row in gram]))
        expected += ((grams[0] - grams[1]) ** 2).sum() / 4**2
    student, teacher = zip(*pairs, strict=True)
    assert float(SPLoss(11)(student, teacher)) == pytest.approx(11 * expected, rel=1e-12)


def test_rkd():
    x, y = normal(5, 3, 2, 2), normal(5, 6, seed=1)
    distance = angle = 0.0
    relations = []
    for z in (flat(x), flat(y)):
        apart = np.array([[math.dist(u, v) for v in z] for u in z])
        mean = np.mean([apart[i, j] for i in range(5) for j in range(5) if i != j])
        cosines = np.zeros((5, 5, 5))
        for i in range(5):
            for j in range(5):
                for k in range(5):
                    if i != j and k != j:
                        cosines[i, j, k] = sum((z[i] - z[j]) * (z[k] - z[j])) / (apart[i, j] * apart[k, j])
        relations.append((apart / mean, cosines))
    distance = np.mean([huber(d) for d in (relations[0][0] - relations[1][0]).flat])
    angle = np.mean([huber(d) for d in (relations[0][1] - relations[1][1]).flat])
    terms = RKDLoss(2, 3).terms([x], [y])
    assert float(terms["distance"]) == pytest.approx(2 * distance, rel=1e-10)
    assert float(terms["angle"]) == pytest.approx(3 * angle, rel=1e-10)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_cc(order):
    x, y = normal(4, 6), normal(4, 3, 2, 2, seed=1)
    matrices = []
    for z in (flat(x), flat(y)):
        z = [row / math.sqrt(sum(row**2)) for row in z]
        powers = [math.exp(-0.8) * 0.8**p / math.factorial(p) for p in range(order + 1)]
        matrices.append(np.array([[sum(f * sum(u * v) ** p for p, f in enumerate(powers)) for v in z] for u in z]))
    expected = 7 * ((matrices[0] - matrices[1]) ** 2).sum() / 4**2
    assert float(CCLoss(7, order=order)([x], [y])) == pytest.approx(expected, rel=1e-12)


def test_cc_of_a_high_order_is_the_gaussian_kernel():
    x, y = normal(4, 6), normal(4, 3, seed=1)
    matrices = []
    for z in (flat(x), flat(y)):
        z = [row / math.sqrt(sum(row**2)) for row in z]
        matrices.append(np.array([[math.exp(-0.4 * math.dist(u, v) ** 2) for v in z] for u in z]))
    expected = ((matrices[0] - matrices[1]) ** 2).mean()
    assert float(CCLoss(1, order=20)([x], [y])) == pytest.approx(expected, rel=1e-10)


def test_fitnet():
    x, y = normal(2, 3, 4, 4), normal(2, 5, 4, 4, seed=1)
    loss = FitNetLoss(4)
    loss.prepare([x], [y])
    loss.double()
    weight, bias = (p.detach().numpy() for p in loss.parameters())
    expected = 0.0
    for b in range(2):
        for i in range(4):
            for j in range(4):
                mapped = weight[:, :, 0, 0] @ x[b, :, i, j].numpy() + bias
                expected += sum((mapped - y[b, :, i, j].numpy()) ** 2)
    assert float(loss([x], [y]).detach()) == pytest.approx(4 * expected / y.numel(), rel=1e-12)


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_at(power):
    x, y = normal(2, 3, 4, 5), normal(2, 7, 4, 5, seed=1)
    total = 0.0
    for b in range(2):
        maps = []
        for z in (x[b].numpy(), y[b].numpy()):
            attention = [sum(abs(a) ** power for a in z[:, i, j]) for i in range(4) for j in range(5)]
            maps.append(np.array(attention) / math.sqrt(sum(a * a for a in attention)))
        total += sum((maps[0] - maps[1]) ** 2)
    assert float(ATLoss(3, power)([x], [y])) == pytest.approx(3 * total / (2 * 20), rel=1e-12)


def test_pkd_is_half_the_squared_difference_of_standardised_features():
    x, y = MAPS
    total = 0.0
    for channel in range(4):
        a, b = (z[:, channel].numpy().ravel() for z in (x, y))
        a, b = ((v - v.mean()) / v.std() for v in (a, b))
        total += sum((a - b) ** 2) / 2 / len(a)
    assert float(PKDLoss(5)([x], [y])) == pytest.approx(5 * total / 4, rel=1e-12)


def test_cwd():
    x, y = MAPS
    total = 0.0
    for b in range(3):
        for channel in range(4):
            student, teacher = (softmax(z[b, channel].flatten().tolist(), 2.0) for z in (x, y))
            total += divergence(teacher, student)
    assert float(CWDLoss(3, 2.0)([x], [y])) == pytest.approx(3 * 4 * total / (3 * 4), rel=1e-12)


# --- what all of them share --------------------------------------------------------------------------------------

ALL = [
    KDLoss(),
    DKDLoss(),
    DISTLoss(),
    SPLoss(),
    RKDLoss(),
    CCLoss(),
    FitNetLoss(),
    ATLoss(),
    PKDLoss(),
    CWDLoss(),
]
BY_NAME = pytest.mark.parametrize("loss", ALL, ids=lambda loss: type(loss).__name__)


def evaluate(loss, logits=LOGITS, maps=MAPS, target=TARGET):
    if hasattr(loss, "prepare"):
        torch.manual_seed(0)
        loss.prepare([maps[0]], [maps[1]])
        loss.to(maps[0].dtype if maps[0].dtype == F64 else torch.float32)
    return loss(Outputs(logits[0], (maps[0],)), Outputs(logits[1], (maps[1],)), target)


@BY_NAME
def test_the_gradient(loss):
    logits = LOGITS[0][:4].clone().requires_grad_()
    maps = MAPS[0][:, :2, :2, :2].clone().requires_grad_()

    def value(logits, maps):
        return evaluate(loss, (logits, LOGITS[1][:4]), (maps, MAPS[1][:, :2, :2, :2]), TARGET[:4])

    assert torch.autograd.gradcheck(value, (logits, maps), eps=1e-6, atol=1e-5, rtol=1e-4)


@BY_NAME
def test_the_teacher_gets_no_gradient_and_the_value_is_a_sum_of_terms(loss):
    student = (LOGITS[0].clone().requires_grad_(), MAPS[0].clone().requires_grad_())
    teacher = (LOGITS[1].clone().requires_grad_(), MAPS[1].clone().requires_grad_())
    value = evaluate(loss, (student[0], teacher[0]), (student[1], teacher[1]))
    assert value.shape == ()
    value.backward()
    assert all(tensor.grad is None for tensor in teacher)
    assert any(tensor.grad is not None for tensor in student)
    terms = loss.terms(Outputs(LOGITS[0], (MAPS[0],)), Outputs(LOGITS[1], (MAPS[1],)), TARGET)
    assert sum(float(term.detach()) for term in terms.values()) == pytest.approx(float(value.detach()))


@BY_NAME
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(loss, dtype):
    logits, maps = [[z.to(dtype) for z in pair] for pair in (LOGITS, MAPS)]
    exact = evaluate(loss, [z.double() for z in logits], [z.double() for z in maps])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = evaluate(loss, logits, maps)
    assert value.dtype == torch.float32
    assert float(value.detach()) == pytest.approx(float(exact.detach()), rel=1e-4)


@BY_NAME
def test_the_text_names_the_settings(loss):
    assert any(f"{name}=" in repr(loss) for name in ("weight", "alpha", "beta", "distance_weight"))


@pytest.mark.parametrize("loss", [SPLoss(), CCLoss(), ATLoss(), PKDLoss()], ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("scale", [1e-10, 1e10])
def test_the_scale_of_the_student_does_not_matter(loss, scale):
    small = [normal(4, 3, 5, 5, dtype=torch.float32)], [normal(4, 3, 5, 5, seed=1, dtype=torch.float32)]
    expected = loss(*small)
    torch.testing.assert_close(loss([scale * small[0][0]], small[1]), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("loss", [FitNetLoss(), ATLoss(), CWDLoss()], ids=lambda loss: type(loss).__name__)
def test_maps_of_other_size_and_channels(loss):
    x, y = normal(2, 3, 8, 6, dtype=torch.float32), normal(2, 5, 4, 7, dtype=torch.float32)
    value = evaluate(loss, maps=(x, y))
    assert bool(torch.isfinite(value))


def test_maps_are_pooled_to_the_smaller_size():
    x, y = normal(2, 3, 8, 8), normal(2, 3, 4, 4, seed=1)
    blocks = x.reshape(2, 3, 4, 2, 4, 2).mean((3, 5))
    torch.testing.assert_close(PKDLoss()([x], [y]), PKDLoss()([blocks], [y]))


def test_adapters_train_with_the_student():
    torch.manual_seed(0)
    x, y = normal(8, 3, 4, 4, dtype=torch.float32), normal(8, 6, 4, 4, seed=1, dtype=torch.float32)
    y[:, :3] = x
    y[:, 3:] = -x
    loss = FitNetLoss()
    loss.prepare([x], [y])
    optimizer = torch.optim.Adam(loss.parameters(), 0.1)
    values = []
    for _ in range(40):
        optimizer.zero_grad()
        value = loss([x], [y])
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.1 * values[0]


def test_tokens_and_matrices_have_linear_adapters():
    loss = FitNetLoss()
    student = [normal(2, 7, 4, dtype=torch.float32), normal(2, 5, dtype=torch.float32)]
    teacher = [normal(2, 7, 9, dtype=torch.float32), normal(2, 5, dtype=torch.float32)]
    loss.prepare(student, teacher)
    assert [type(layer) for layer in loss.adapters.maps] == [nn.Linear, nn.Linear]
    assert bool(torch.isfinite(loss(student, teacher)))


def test_equal_channels_need_no_adapter_in_cwd():
    loss = CWDLoss()
    loss.prepare([MAPS[0]], [MAPS[1]])
    assert list(loss.parameters()) == []


# --- degenerate and bad input ------------------------------------------------------------------------------------


def test_a_class_that_never_varies_counts_as_uncorrelated():
    x = LOGITS[0].clone().requires_grad_()
    sure = torch.zeros(6, 5, dtype=F64)
    sure[:, 0] = 2000.0  # the softmax is exactly one-hot, the same for all samples
    terms = DISTLoss().terms(x, sure)
    assert float(terms["intra"].detach()) == 1.0
    sum(terms.values()).backward()
    assert bool(torch.isfinite(x.grad).all())


def test_a_dead_channel_counts_as_uncorrelated():
    x, y = (z.clone() for z in MAPS)
    y[:, 1] = 0.5
    x.requires_grad_()
    value = PKDLoss()([x], [y])
    alive = [0, 2, 3]
    expected = (3 * PKDLoss()([x[:, alive]], [y[:, alive]]) + 1) / 4
    torch.testing.assert_close(value, expected)
    value.backward()
    assert bool(torch.isfinite(x.grad).all())


def test_samples_that_coincide_have_finite_gradients():
    x, y = normal(5, 3), normal(5, 4, seed=1)
    x[1] = x[0]
    y[3] = y[2]
    x.requires_grad_()
    RKDLoss()([x], [y]).backward()
    assert bool(torch.isfinite(x.grad).all())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KDLoss(0), "`temperature` must be positive, got 0"),
        (lambda: KDLoss(weight=-1), "`weight` must not be negative, got -1"),
        (lambda: DKDLoss(alpha=-1), "`alpha` must not be negative"),
        (lambda: DISTLoss(gamma=math.nan), "`gamma` must not be negative, got nan"),
        (lambda: RKDLoss(angle_weight=-1), "`angle_weight` must not be negative"),
        (lambda: CCLoss(gamma=0), "`gamma` must be positive"),
        (lambda: CCLoss(order=0), "`order` must be a whole number of at least 1"),
        (lambda: ATLoss(power=0), "`power` must be positive"),
    ],
)
def test_settings_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("loss", "arguments", "error", "message"),
    [
        (DKDLoss(), LOGITS, ValueError, "DKDLoss needs the class labels"),
        (DKDLoss(), (LOGITS[0][:, :2], LOGITS[1][:, :2], TARGET % 2), ValueError, "needs 3 classes, got 2"),
        (SPLoss(), ([], []), ValueError, "SPLoss compares features, but got none"),
        (ATLoss(), ([normal(3, 4)], [normal(3, 4)]), ValueError, "ATLoss compares maps, but the student"),
        (CWDLoss(), ([MAPS[0]], [normal(3, 4)]), ValueError, "CWDLoss compares maps, but the teacher"),
        (PKDLoss(), ([MAPS[0]], [MAPS[1][:, :2]]), ValueError, r"\(3, 4, 5, 6\) in the student"),
        (
            CWDLoss(),
            ([MAPS[0]], [MAPS[1][:, :2]]),
            RuntimeError,
            "no adapter for feature 0: call loss.prep",
        ),
        (FitNetLoss(), ([MAPS[0]], [MAPS[1]]), RuntimeError, "no adapter for feature 0: call loss.prepare"),
    ],
)
def test_input_that_does_not_fit(loss, arguments, error, message):
    with pytest.raises(error, match=message):
        loss(*arguments)


def test_an_adapter_sees_other_channels_than_before():
    loss = FitNetLoss()
    loss.prepare([MAPS[0]], [MAPS[1]])
    with pytest.raises(RuntimeError, match="has 2 channels, but `prepare` saw 4"):
        loss([MAPS[0][:, :2].float()], [MAPS[1].float()])
    with pytest.raises(ValueError, match=r"FitNetLoss compares features entry by entry, but feature 0 has shape"):
        loss([MAPS[0].float()], [MAPS[1][:, :2].float()])
