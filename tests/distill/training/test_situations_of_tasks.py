"""Students that learn from other targets than class numbers: the values are those of a loop by hand."""

from functools import partial

import numpy as np
import pytest
import torch
from situations import (
    SMOOTH,
    N,
    Squeezed,
    X,
    assert_same,
    by_hand,
    go,
    labels,
    loader,
    made,
    mixed,
    mlp,
    numbers,
)
from torch import nn
from torch.nn import functional as F
from torchmetrics import MeanSquaredError, R2Score
from torchmetrics.classification import MulticlassF1Score

# Supervision: a builder of the student, the training batches, and the loss on (output, target) as torch has it.
MAPS = loader(numbers(N, 1, 5, 5), labels(N, 5, 5).masked_fill(labels(N, 5, 5, seed=1) == 0, 255))


class WithAuxiliary(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, x):
        logits = self.net(x)
        return logits, 2 * logits


SUPERVISED = {
    "classes": (mlp, loader(X, labels(N)), "cross_entropy", F.cross_entropy),
    "mixup": (mlp, loader(X, labels(N), collate_fn=mixed), "cross_entropy", F.cross_entropy),
    "cutmix": (mlp, loader(X, labels(N), collate_fn=partial(mixed, cut=True)), "cross_entropy", F.cross_entropy),
    "label smoothing and class weights": (mlp, loader(X, labels(N)), SMOOTH, SMOOTH),
    "several labels at once": (mlp, loader(X, labels(N, 3, classes=2).float()), nn.BCEWithLogitsLoss(),
                               F.binary_cross_entropy_with_logits),
    "one label": (partial(mlp, outputs=1), loader(X, labels(N, 1, classes=2).float()), nn.BCEWithLogitsLoss(),
                  F.binary_cross_entropy_with_logits),
    "regression (B,)": (Squeezed, loader(X, numbers(N)), nn.MSELoss(), F.mse_loss),
    "regression (B, 1)": (partial(mlp, outputs=1), loader(X, numbers(N, 1)), F.l1_loss, F.l1_loss),
    "regression (B, k)": (mlp, loader(X, numbers(N, 3)), nn.SmoothL1Loss(), F.smooth_l1_loss),
    "variance too": (partial(mlp, outputs=2), loader(X, numbers(N, 1)), lambda output, y: F.gaussian_nll_loss(
        output[:, :1], y, output[:, 1:].exp()), lambda output, y: F.gaussian_nll_loss(
        output[:, :1], y, output[:, 1:].exp())),
    "label maps with a hole": (partial(nn.Conv2d, 1, 3, 3, padding=1), MAPS, nn.CrossEntropyLoss(ignore_index=255),
                               partial(F.cross_entropy, ignore_index=255)),
    "counts": (partial(mlp, outputs=1), loader(X, labels(N, 1, classes=5).float()), nn.PoissonNLLLoss(),
               F.poisson_nll_loss),
    "an output with more parts": (WithAuxiliary, loader(X, labels(N)), "cross_entropy",
                                  lambda output, y: F.cross_entropy(output[0], y)),
}  # fmt: skip


@pytest.mark.parametrize("name", SUPERVISED)
def test_a_student_learns_from_its_targets_as_by_hand(name):
    build, batches, supervision, expected = SUPERVISED[name]
    result = go(made(build, 1), batches, supervision=supervision)
    hand = by_hand(made(build, 1), batches, lambda student, batch: expected(student(batch[0]), batch[1]))
    assert_same(result.student, hand)
    if "train_accuracy" in result.history:
        assert result.history["train_accuracy"].between(0, 1).all()


def test_mixup_counts_the_larger_class():
    batches = loader(X, labels(N), collate_fn=mixed)
    result = go(made(mlp, 1), batches, test=loader(X, labels(N)), epochs=1, learning_rate=1e-12)
    student = made(mlp, 1)
    right = sum(int((student(x).argmax(1) == y.argmax(1)).sum()) for x, y in batches)
    assert result.history["train_accuracy"].tolist() == [pytest.approx(right / N)]


def test_regression_chooses_the_epoch_with_the_smallest_error():
    data = loader(X, X.sum(1, keepdim=True))
    students = []

    class Keep:
        def on_epoch(self, moment):
            students.append(F.mse_loss(moment.student(X), X.sum(1, keepdim=True)).item())

    for metric, column in ((None, "test_loss"), (MeanSquaredError(), "test_mean_squared_error")):
        students.clear()
        student = made(partial(mlp, outputs=1), 1)
        result = go(student, data, supervision=nn.MSELoss(), metric=metric, epochs=6, callbacks=[Keep()])
        np.testing.assert_allclose(result.history[column], students, rtol=1e-4)
        assert result.best_epoch == 1 + int(np.argmin(students)) > 1
        assert result.best_score == pytest.approx(min(students), rel=1e-4)
        student.load_state_dict(result.best_state)
        assert F.mse_loss(student(X), X.sum(1, keepdim=True)).item() == pytest.approx(min(students), rel=1e-4)


@pytest.mark.parametrize(
    ("metric", "supervision", "target", "value"),
    [
        (R2Score(), nn.MSELoss(), X.sum(1, keepdim=True), lambda o, y: 1 - F.mse_loss(o, y) / y.var(correction=0)),
        (MulticlassF1Score(2, average="macro"), "cross_entropy", labels(N, classes=2), None),
    ],
)
def test_a_metric_of_torchmetrics_is_the_score(metric, supervision, target, value):
    outputs = 1 if target.is_floating_point() else 2
    result = go(made(partial(mlp, outputs=outputs), 1), loader(X, target), supervision=supervision, metric=metric)
    with torch.no_grad():
        output = result.student(X)
    if value is None:
        from sklearn.metrics import f1_score

        expected = f1_score(target, output.argmax(1), average="macro")
    else:
        expected = float(value(output, target))
    assert result.last_score == pytest.approx(expected, rel=1e-4)
    assert result.higher_is_better


@pytest.mark.parametrize(
    ("output", "target", "supervision", "message"),
    [
        (3, labels(N, classes=5), "cross_entropy", r"`train` has the label 4, but the student has 3 classes"),
        (3, labels(N) - 1, "cross_entropy", r"`train` has the label -1"),
        (1, numbers(N), nn.MSELoss(), r"\(8, 1\) and the target \(8,\) in `train`, so each output would be compared"),
        (3, numbers(N, 3), "cross_entropy", r"no probabilities .*BCEWithLogitsLoss.*MSELoss"),
        (1, numbers(N, 1), "cross_entropy", r"no probabilities .*MSELoss"),
        (3, F.one_hot(labels(N), 3), "cross_entropy", r"one-hot: use target\.argmax\(1\)"),
        (3, labels(N, 1), "cross_entropy", r"squeeze\(1\)"),
        (3, labels(N).int(), "cross_entropy", r"int32"),
        (
            3,
            labels(N, 3, classes=2),
            nn.BCEWithLogitsLoss(),
            r"bce_with_logits_loss.* fails on a batch of `train`.*int64",
        ),
    ],
)
def test_targets_that_do_not_fit_get_a_message(output, target, supervision, message):
    with pytest.raises((ValueError, TypeError), match=message):
        go(made(partial(mlp, outputs=output), 1), loader(X, target), supervision=supervision)


def test_test_labels_beyond_the_classes_get_a_message():
    with pytest.raises(ValueError, match=r"`test` has the label 7, but the student has 3 classes"):
        go(made(mlp, 1), loader(X, labels(N)), test=loader(X, labels(N).clamp(max=1) + 6), epochs=1)
