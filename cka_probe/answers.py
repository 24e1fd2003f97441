"""How alike two networks answer: agreement of predicted classes, of probabilities, and of what a linear probe reads."""

from __future__ import annotations

import math
from numbers import Integral, Real
from types import ModuleType
from typing import Any

import numpy as np
from array_api_compat import device

from .estimators.validation import Array, as_numpy, check_features, check_pair, namespace

__all__ = [
    "accuracy_difference",
    "disagreement",
    "error_consistency",
    "jensen_shannon_divergence",
    "linear_probe_agreement",
]


def _checked_logits(x: Array, y: Array) -> tuple[ModuleType, Array, Array]:
    """The namespace, and outputs (n, classes) of both networks in float64."""
    xp, x, y = check_pair(x, y, minimum=1)
    for outputs, name in ((x, "x"), (y, "y")):
        if outputs.ndim != 2:
            raise ValueError(f"`{name}` must have shape (samples, classes), got {tuple(outputs.shape)}.")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"`x` has {x.shape[1]} classes and `y` has {y.shape[1]}. Both must answer the same question.")
    if x.shape[1] < 2:
        raise ValueError("`x` and `y` have one class only. Pass a column for each class: of p, 1 - p and p.")
    return xp, xp.astype(x, xp.float64), xp.astype(y, xp.float64)


def _checked_target(xp: ModuleType, target: Array, x: Array) -> Array:
    """Classes (n,) as int64."""
    namespace(x, target, names=("x", "target"))
    if device(target) != device(x):
        raise ValueError(f"`target` is on {device(target)} and `x` on {device(x)}. Move both to one device first.")
    if not xp.isdtype(target.dtype, "integral"):
        raise TypeError(f"`target` must hold the classes as integers, got {target.dtype}.")
    if tuple(target.shape) != (x.shape[0],):
        raise ValueError(f"`target` must have shape ({x.shape[0]},), one class a sample, got {tuple(target.shape)}.")
    classes = xp.astype(target, xp.int64)
    low, high = int(xp.min(classes)), int(xp.max(classes))
    if low < 0 or high >= x.shape[1]:
        raise ValueError(f"`target` holds classes from {low} to {high}, but the outputs have {x.shape[1]} classes.")
    return classes


def _share(xp: ModuleType, which: Array) -> Array:
    return xp.mean(xp.astype(which, xp.float64))


def disagreement(x: Array, y: Array) -> Array:
    """The share of samples for which two networks predict different classes.

    Parameters
    ----------
    x, y : array (n, classes)
        Outputs of both networks for the same samples: logits, or probabilities. The largest is the prediction; of equal
        ones the first.

    Returns
    -------
    array () of float64
        From 0 to 1. At least the difference of the accuracies, and at most the sum of the error rates.

    Raises
    ------
    TypeError
        Unless both are real floating arrays of one library.
    ValueError
        If the shapes do not fit, there are fewer than two classes, or a value is NaN or infinite.

    References
    ----------
    Madani, Pennock, Flake, Co-Validation: Using Model Disagreement on Unlabeled Data to Validate Classification
    Algorithms, NeurIPS 2004. Klabunde et al., ReSi, ICLR 2025.

    Examples
    --------
    >>> import numpy as np
    >>> float(disagreement(np.array([[2.0, 1.0], [0.0, 1.0]]), np.array([[5.0, 1.0], [3.0, 1.0]])))
    0.5
    """
    xp, x, y = _checked_logits(x, y)
    return _share(xp, xp.argmax(x, axis=-1) != xp.argmax(y, axis=-1))


def jensen_shannon_divergence(x: Array, y: Array, *, temperature: float = 1.0) -> Array:
    """The mean Jensen-Shannon divergence between the predicted class probabilities of two networks, in bits.

    Parameters
    ----------
    x, y : array (n, classes)
        Logits of both networks for the same samples.
    temperature : float
        The logits are divided by it before the softmax.

    Returns
    -------
    array () of float64
        Mean of KL(p, m) / 2 + KL(q, m) / 2 with m = (p + q) / 2, from 0 to 1.

    Raises
    ------
    TypeError, ValueError
        As ``disagreement``, and if the temperature is not a positive number.

    References
    ----------
    Lin, Divergence Measures Based on the Shannon Entropy, IEEE Transactions on Information Theory 1991. Klabunde et
    al., ReSi, ICLR 2025.

    Examples
    --------
    >>> import numpy as np
    >>> sure = np.array([[1000.0, 0.0]])
    >>> float(jensen_shannon_divergence(sure, sure[:, ::-1].copy()))
    1.0
    """
    if isinstance(temperature, bool) or not isinstance(temperature, Real):
        raise TypeError(f"`temperature` must be a number, got {type(temperature).__name__}.")
    if not 0 < temperature < math.inf:
        raise ValueError(f"`temperature` must be positive and finite, got {temperature!r}.")
    xp, x, y = _checked_logits(x, y)
    logs = []
    for z in (x, y):
        z = (z - xp.max(z, axis=-1, keepdims=True)) / temperature
        logs.append(z - xp.log(xp.sum(xp.exp(z), axis=-1, keepdims=True)))
    # log((p + q) / 2) from the larger of both logarithms, so that small probabilities keep their digits.
    apart = xp.abs(logs[0] - logs[1])
    middle = xp.where(logs[0] > logs[1], logs[0], logs[1]) + xp.log1p(xp.exp(-apart)) - math.log(2)
    total = sum(xp.sum(xp.exp(log) * (log - middle), axis=-1) for log in logs)
    return xp.mean(total) / (2 * math.log(2))


def accuracy_difference(x: Array, y: Array, target: Array) -> Array:
    """The accuracy of the first network minus that of the second.

    Parameters
    ----------
    x, y : array (n, classes)
        Outputs of both networks for the same samples.
    target : array (n,) of integers
        Class of each sample.

    Returns
    -------
    array () of float64
        From -1 to 1. ReSi takes its magnitude.

    Raises
    ------
    TypeError, ValueError
        As ``disagreement``, and if ``target`` does not hold one class for each sample.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[1.0, 0.0], [1.0, 0.0]])
    >>> float(accuracy_difference(x, x[:, ::-1].copy(), np.array([0, 0])))
    1.0
    """
    xp, x, y = _checked_logits(x, y)
    target = _checked_target(xp, target, x)
    right = [xp.astype(xp.argmax(z, axis=-1) == target, xp.float64) for z in (x, y)]
    return xp.mean(right[0] - right[1])


def error_consistency(x: Array, y: Array, target: Array) -> Array:
    """The error consistency of two networks: Cohen's kappa of which samples they classify correctly.

    Parameters
    ----------
    x, y : array (n, classes)
        Outputs of both networks for the same samples.
    target : array (n,) of integers
        Class of each sample.

    Returns
    -------
    array () of float64
        (c - e) / (1 - e), where c is the share of samples that both classify correctly or both wrongly, and e the share
        that two independent networks of these accuracies would: e = a b + (1 - a)(1 - b). From -1 to 1; 0 by chance.
        NaN if e is 1: both are always right, or both always wrong.

    Raises
    ------
    TypeError, ValueError
        As ``accuracy_difference``.

    References
    ----------
    Geirhos, Meding, Wichmann, Beyond Accuracy: Quantifying Trial-by-Trial Behaviour of CNNs and Humans by Measuring
    Error Consistency, NeurIPS 2020.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> float(error_consistency(x, x, np.array([0, 0])))
    1.0
    """
    xp, x, y = _checked_logits(x, y)
    target = _checked_target(xp, target, x)
    right = [xp.argmax(z, axis=-1) == target for z in (x, y)]
    a, b = (_share(xp, one) for one in right)
    same = _share(xp, right[0] == right[1])
    chance = a * b + (1 - a) * (1 - b)
    return xp.where(chance < 1, (same - chance) / xp.where(chance < 1, 1 - chance, xp.ones_like(a)), xp.nan * a)


def linear_probe_agreement(
    x: Array,
    y: Array,
    target: Array,
    *,
    held_out: float = 0.5,
    regularization: float = 1e-3,
    seed: int = 0,
) -> dict[str, Any]:
    """How alike linear probes on two layers classify: a ridge classifier on each, compared on samples that neither saw.

    Parameters
    ----------
    x : array (n, p)
        Features of one layer.
    y : array (n, q)
        Features of the other, for the same samples.
    target : array (n,) of integers
        Class of each sample.
    held_out : float
        Share of the samples of each class that the probes do not see, between 0 and 1.
    regularization : float
        lambda of the ridge regression onto the classes, relative to the mean squared norm of the centred features;
        above 0.
    seed : int
        Seed of the split.

    Returns
    -------
    dict of str to float
        "agreement" (share of equal predictions), "accuracy_x", "accuracy_y" and "error_consistency" on the held-out
        samples.

    Raises
    ------
    TypeError
        As ``disagreement``, and if an option is of the wrong kind.
    ValueError
        If the shapes do not fit, a class has fewer than two samples, there is one class only, or an option is out of
        range.

    References
    ----------
    Alain and Bengio, Understanding Intermediate Layers Using Linear Classifier Probes, 2016.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(200, 5))
    >>> found = linear_probe_agreement(x, 3 * x + 1, (x[:, 0] > 0).astype(int))
    >>> found["agreement"], found["accuracy_x"] > 0.9
    (1.0, True)
    """
    for value, name in ((held_out, "held_out"), (regularization, "regularization")):
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"`{name}` must be a number, got {type(value).__name__}.")
    if not 0 < held_out < 1:
        raise ValueError(f"`held_out` must be between 0 and 1, got {held_out!r}.")
    if not 0 < regularization < math.inf:
        raise ValueError(f"`regularization` must be positive and finite, got {regularization!r}.")
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise TypeError(f"`seed` must be an int, got {type(seed).__name__}.")
    xp, x, y = check_pair(x, y)
    for features, name in ((x, "x"), (y, "y")):
        check_features(features, name)
        if features.ndim != 2:
            raise ValueError(f"`{name}` must have shape (samples, features), got {tuple(features.shape)}.")
    namespace(x, target, names=("x", "target"))
    if not xp.isdtype(target.dtype, "integral"):
        raise TypeError(f"`target` must hold the classes as integers, got {target.dtype}.")
    if tuple(target.shape) != (x.shape[0],):
        raise ValueError(f"`target` must have shape ({x.shape[0]},), one class a sample, got {tuple(target.shape)}.")
    names, classes = np.unique(as_numpy(target), return_inverse=True)
    if len(names) < 2:
        raise ValueError("`target` holds one class only.")
    rng = np.random.default_rng(seed)
    outside = np.zeros(len(classes), dtype=bool)
    for one in range(len(names)):
        members = rng.permutation(np.flatnonzero(classes == one))
        if len(members) < 2:
            raise ValueError(f"`target` holds class {names[one]} once. Each class needs at least two samples.")
        outside[members[: min(max(1, round(held_out * len(members))), len(members) - 1)]] = True
    codes = np.eye(len(names))[classes]
    right, predicted = [], []
    for features in (x, y):
        z = as_numpy(features).astype(np.float64)
        z = z - z[~outside].mean(axis=0)
        wanted = codes[~outside] - codes[~outside].mean(axis=0)
        left, values, directions = np.linalg.svd(z[~outside], full_matrices=False)
        penalty = regularization * max(float(np.sum(values * values)), np.finfo(np.float64).tiny)
        weights = (values / (values * values + penalty))[:, None] * (left.T @ wanted)
        scores = z[outside] @ directions.T @ weights + codes[~outside].mean(axis=0)
        predicted.append(scores.argmax(axis=1))
        right.append(predicted[-1] == classes[outside])
    a, b = (float(one.mean()) for one in right)
    chance = a * b + (1 - a) * (1 - b)
    same = float((right[0] == right[1]).mean())
    return {
        "agreement": float((predicted[0] == predicted[1]).mean()),
        "accuracy_x": a,
        "accuracy_y": b,
        "error_consistency": (same - chance) / (1 - chance) if chance < 1 else math.nan,
    }
