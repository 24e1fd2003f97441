"""Check the input of the estimators: real floating arrays of one library, on one device, all finite.

The checks read the data (``isfinite``), so on a GPU each call waits for the device. Hot loops whose input is checked
already (hooks, training losses) call functions without checks instead, such as ``cka_of_features``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from array_api_compat import array_namespace, device, is_array_api_obj

__all__ = [
    "ESTIMATORS",
    "Array",
    "as_numpy",
    "as_real",
    "check_estimator",
    "check_features",
    "check_finite",
    "check_grams",
    "check_layer_features",
    "check_layer_lists",
    "check_pair",
    "check_same_samples",
    "constant",
    "namespace",
]

Array = Any
"""An array of numpy, torch, CuPy or any other library of the array API standard."""

ESTIMATORS = ("unbiased", "biased")


def namespace(*arrays: Array, names: tuple[str, ...]) -> ModuleType:
    """The array API namespace that all ``arrays`` share.

    Raises
    ------
    TypeError
        If one is not an array, or two arrays come from different libraries.
    """
    for array, name in zip(arrays, names, strict=True):
        if not is_array_api_obj(array):
            raise TypeError(
                f"`{name}` must be an array of numpy, torch or CuPy, got {type(array).__name__}. "
                "Convert it first, for example with numpy.asarray."
            )
        _check_library(array, name)
    kinds = {type(a).__module__.split(".")[0]: n for a, n in zip(arrays, names, strict=True)}
    if len(kinds) > 1:
        listed = " and ".join(f"`{name}` is from {library}" for library, name in kinds.items())
        raise TypeError(f"The arrays must come from one library: {listed}. Convert one of them first.")
    try:
        return array_namespace(*arrays)
    except TypeError as error:  # numpy.float32(2): a number that looks like an array
        raise TypeError(f"{' and '.join(f'`{name}`' for name in names)} must be arrays, not single numbers.") from error


def _check_library(array: Array, name: str) -> None:
    """Raise TypeError for arrays whose library cannot compute the estimators: dask, and JAX without float64."""
    library = type(array).__module__.partition(".")[0]
    if library == "dask":
        raise TypeError(
            f"`{name}` is a dask array. The estimators need whole arrays: pass `{name}.compute()`. For data that do "
            "not fit into memory, pass its blocks to MomentCKA().update one after the other."
        )
    if library in ("jax", "jaxlib") and str(sys.modules["jax"].dtypes.canonicalize_dtype("float64")) != "float64":
        raise TypeError(
            f"`{name}` is a JAX array, and JAX has float64 switched off, in which the estimators add up. "
            'Call jax.config.update("jax_enable_x64", True) before the first array is made.'
        )


def as_real(xp: ModuleType, x: Array, name: str) -> Array:
    """``x`` in the dtype of the computation: float64 and float32 stay, half precision becomes float32.

    Raises
    ------
    TypeError
        If the dtype of ``x`` is not real floating.
    """
    if not xp.isdtype(x.dtype, "real floating"):
        raise TypeError(
            f"`{name}` must have a real floating dtype, got {x.dtype}. Cast it first, for example to float32."
        )
    if x.dtype in (xp.float32, xp.float64):
        return x
    return xp.astype(x, xp.float32)


def check_finite(xp: ModuleType, x: Array, name: str) -> None:
    """Raise ValueError if ``x`` holds NaN or infinity."""
    if not bool(xp.all(xp.isfinite(x))):
        raise ValueError(f"`{name}` holds NaN or infinity. Find the sample or layer that it comes from first.")


def _check_shape(x: Array, name: str, minimum: int) -> None:
    if x.ndim < 2:
        raise ValueError(
            f"`{name}` must have shape (..., n, p), got {tuple(x.shape)}. A single feature needs a last axis of 1."
        )
    if 0 in x.shape:
        raise ValueError(f"`{name}` must not be empty, got shape {tuple(x.shape)}.")
    if x.shape[-2] < minimum:
        raise ValueError(
            f"`{name}` has {x.shape[-2]} samples, but this estimator needs at least {minimum}. "
            "Pass more samples" + (', or use estimator="biased".' if minimum == 4 else ".")
        )


def check_features(x: Array, name: str = "x", *, minimum: int = 2) -> tuple[ModuleType, Array]:
    """The namespace of ``x``, and ``x`` as checked features of shape (..., n, p) with n >= ``minimum``.

    Raises
    ------
    TypeError
        If ``x`` is not an array, or not real floating.
    ValueError
        If ``x`` has fewer than two axes, is empty, has too few samples, or holds NaN or infinity.
    """
    xp = namespace(x, names=(name,))
    x = as_real(xp, x, name)
    _check_shape(x, name, minimum)
    check_finite(xp, x, name)
    return xp, x


def check_pair(
    x: Array, y: Array, names: tuple[str, str] = ("x", "y"), *, minimum: int = 2
) -> tuple[ModuleType, Array, Array]:
    """The shared namespace, and both sets of features, checked and in one dtype, (..., n, p) and (..., n, q).

    Raises
    ------
    TypeError
        If one is not an array or not real floating, or if they come from different libraries.
    ValueError
        If they are on different devices, differ in n, or one fails ``check_features``.
    """
    xp = namespace(x, y, names=names)
    if device(x) != device(y):
        raise ValueError(
            f"`{names[0]}` is on {device(x)} and `{names[1]}` on {device(y)}. Move both to one device first."
        )
    _, x = check_features(x, names[0], minimum=minimum)
    _, y = check_features(y, names[1], minimum=minimum)
    if x.shape[-2] != y.shape[-2]:
        raise ValueError(
            f"`{names[0]}` has {x.shape[-2]} samples and `{names[1]}` has {y.shape[-2]}. "
            "Both must hold the same samples in the same order."
        )
    if x.dtype != y.dtype:
        x, y = xp.astype(x, xp.float64), xp.astype(y, xp.float64)
    return xp, x, y


def check_layer_features(features: Sequence[Array], name: str, *, minimum: int = 2) -> list[Array]:
    """Checked features (n, p_i) of several layers for the same samples.

    Raises
    ------
    TypeError, ValueError
        As ``check_features``; the message names the layer by its place. Also if there are no layers, or the numbers of
        samples differ.
    """
    if not len(features):
        raise ValueError(f"`{name}` holds no layers.")
    checked = [check_features(x, f"{name}[{i}]", minimum=minimum)[1] for i, x in enumerate(features)]
    for i, x in enumerate(checked):
        if x.ndim != 2 or x.shape[0] != checked[0].shape[0]:
            raise ValueError(
                f"`{name}[{i}]` has shape {tuple(x.shape)}, but must be (n, p) with the n of `{name}[0]`, "
                f"{checked[0].shape[0]}."
            )
    return checked


def check_grams(
    gram_x: Array, gram_y: Array, names: tuple[str, str] = ("gram_x", "gram_y"), *, minimum: int = 2
) -> tuple[ModuleType, Array, Array]:
    """The shared namespace, and both Gram matrices, checked: square, of one size, finite.

    Raises
    ------
    TypeError, ValueError
        As ``check_pair``, and if a Gram matrix is not square.
    """
    xp, gram_x, gram_y = check_pair(gram_x, gram_y, names, minimum=minimum)
    for gram, name in ((gram_x, names[0]), (gram_y, names[1])):
        if gram.shape[-1] != gram.shape[-2]:
            raise ValueError(
                f"`{name}` must have shape (..., n, n), got {tuple(gram.shape)}. "
                "Pass features to `cka` or `hsic` instead, or apply a kernel first."
            )
    return xp, gram_x, gram_y


def check_estimator(estimator: str) -> int:
    """The smallest number of samples for ``estimator``: 4 for "unbiased", 2 for "biased".

    Raises
    ------
    ValueError
        If ``estimator`` has another name.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f'`estimator` must be "unbiased" or "biased", got {estimator!r}.')
    return 4 if estimator == "unbiased" else 2


def check_same_samples(samples_x: int, samples_y: int) -> None:
    """Raise ValueError if the layers ``xs`` and ``ys`` have different numbers of samples."""
    if samples_x != samples_y:
        raise ValueError(
            f"`xs` hold {samples_x} samples and `ys` {samples_y}. Both must hold the same samples in the same order."
        )


def constant(x: Array) -> Array:
    """``x`` without gradient, where its library has gradients.

    The array API has no function for this. ``detach`` is found by its name, so that torch need not be imported.
    """
    return x.detach() if hasattr(x, "detach") else x


def as_numpy(x: Array) -> Any:
    """A copy of ``x`` as a numpy array, from any library and device."""
    import numpy as np

    x = constant(x)
    if hasattr(x, "get"):  # CuPy
        return x.get()
    if hasattr(x, "cpu"):
        return np.array(x.cpu().numpy())
    home = None if isinstance(x, np.ndarray) else array_namespace(x).__array_namespace_info__().default_device()
    return np.array(x if home is None else x.to_device(home))


def check_layer_lists(xs: Sequence[Array], ys: Sequence[Array] | None) -> None:
    """Check that ``xs`` and ``ys`` are sequences of arrays of one library on one device.

    Raises
    ------
    TypeError
        If one is a single array, an entry is not an array, or the libraries differ.
    ValueError
        If one is empty, or the devices differ.
    """
    named: dict[str, Array] = {}
    for side, name in ((xs, "xs"), (ys, "ys")):
        if side is None:
            continue
        if getattr(side, "ndim", 3) < 3:
            raise TypeError(f"`{name}` must be a sequence of arrays, one for each layer, got one array. Write [x].")
        if not len(side):
            raise ValueError(f"`{name}` holds no layers.")
        named.update({f"{name}[{i}]": x for i, x in enumerate(side)})
    namespace(*named.values(), names=tuple(named))
    first, home = next(iter(named)), device(next(iter(named.values())))
    for name, x in named.items():
        if device(x) != home:
            raise ValueError(f"`{first}` is on {home} and `{name}` on {device(x)}. Move both to one device first.")
