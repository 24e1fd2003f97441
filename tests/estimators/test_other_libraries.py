"""JAX arrays through the estimators; dask arrays, and JAX without float64, are refused by name."""

import json
import subprocess
import sys

import dask.array
import numpy as np
import pytest
from numpy.testing import assert_allclose

import cka_probe.estimators as estimators
from cka_probe.estimators import MEASURES, RBF, MomentCKA, cka, cka_matrix, mmd_squared

# In a process of its own: JAX starts threads, and warns of every later fork.
IN_JAX = """
import json, sys, warnings
warnings.simplefilter("error")
import jax
import numpy as np
jax.config.update("jax_enable_x64", sys.argv[1] == "on")
import jax.numpy as jnp
sys.path.insert(0, sys.argv[2])
from test_other_libraries import calls, features
found = {}
for name, call in calls().items():
    try:
        value = call(*map(jnp.asarray, features()))
        assert isinstance(value, jax.Array), type(value)
        found[name] = float(value)
    except Exception as error:
        found[name] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""


def features():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(24, 4))
    return x, x @ rng.normal(size=(4, 3)) + rng.normal(size=(24, 3))


NAMES = ("procrustes", "cca", "svcca", "linear_regression_r2", "gulp", "rsa", "mutual_knn", "cknna", "mmd", "jaccard")
NAMES += ("distance_correlation", "rank_similarity", "lcs_knn", "soft_correlation", "hard_correlation", "soft_matching")
NAMES += ("permutation_procrustes", "partial_whitening", "aligned_cosine", "held_out_regression_r2", "held_out_cca")


def calls():
    found = {
        "unbiased": cka,
        "biased": lambda x, y: cka(x, y, estimator="biased"),
        "rbf": lambda x, y: cka(x, y, kernel=RBF()),
        "hsic": estimators.hsic,
        "matrix": lambda x, y: cka_matrix([x, y])[0, 1],
        "error": lambda x, y: estimators.cka_with_error(x, y).standard_error,
        "mmd between samples": lambda x, y: mmd_squared(x[:, :3], y),
        "energy distance": lambda x, y: estimators.energy_distance(x[:, :3], y),
    }
    for name in NAMES:
        options = {"k": 3} if "k" in MEASURES[name].options else {}
        found[name] = lambda x, y, name=name, options=options: MEASURES[name].function(x, y, **options)
    return found


def in_jax(float64):
    from pathlib import Path

    command = [sys.executable, "-c", IN_JAX, float64, str(Path(__file__).parent)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_jax_gives_the_values_of_numpy():
    found = in_jax("on")
    expected = {name: float(call(*features())) for name, call in calls().items()}
    wrong = {name: value for name, value in found.items() if isinstance(value, str)}
    assert wrong == {}
    for name, value in expected.items():
        assert_allclose(found[name], value, rtol=1e-9, atol=1e-12, err_msg=name)


def test_jax_without_float64_is_refused():
    for name, message in in_jax("off").items():
        assert "TypeError" in str(message), name
        assert "JAX has float64 switched off" in message


def test_dask_arrays_are_refused():
    x, y = (dask.array.from_array(z, chunks=(8, z.shape[1])) for z in features())
    for name, call in calls().items():
        with pytest.raises(TypeError, match=r"is a dask array\. The estimators need whole arrays"):
            call(x, y)
        assert name


def test_blocks_of_dask_arrays_add_up_to_the_value_of_all_samples():
    x, y = (dask.array.from_array(z, chunks=(8, z.shape[1])) for z in features())
    statistics = MomentCKA()
    for one, other in zip(x.blocks, y.blocks, strict=True):
        statistics.update([one.compute()], [other.compute()])
    assert_allclose(statistics.compute()[0, 0], cka(*features()), rtol=1e-10)
