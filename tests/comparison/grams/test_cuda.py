"""The CUDA kernels of grams/cuda.py on the CPU: their source is compiled as C++ and called as CuPy would.

Each thread of a block is a thread of the CPU, blocks run one after the other, and ``__syncthreads`` is a barrier.
"""

import contextlib
import ctypes
import re
import shutil
import subprocess
import sys
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

import cka_probe as cp
from cka_probe.comparison import minibatch
from cka_probe.comparison.grams import cuda
from cka_probe.comparison.grams.keeper import GramKeeper
from cka_probe.estimators.hsic import flat_centred

THREADS = 8
TYPES = {"float*": ctypes.c_void_p, "double*": ctypes.c_void_p, "int": ctypes.c_int, "double": ctypes.c_double}

PRELUDE = """
#include <barrier>
#include <cmath>
#include <thread>
#include <vector>
#define __global__
#define __shared__ static
struct Place { unsigned x; };
static thread_local Place threadIdx, blockIdx;
static Place blockDim;
static std::barrier<>* gate;
static void __syncthreads() { gate->arrive_and_wait(); }
template <class Kernel> static void launch(Kernel kernel, unsigned blocks, unsigned threads) {
    std::barrier<> all(threads);
    gate = &all;
    blockDim.x = threads;
    std::vector<std::thread> pool;
    for (unsigned thread = 0; thread < threads; ++thread) {
        pool.emplace_back([=] {
            threadIdx.x = thread;
            for (unsigned block = 0; block < blocks; ++block) {
                blockIdx.x = block;
                kernel();
                __syncthreads();
            }
        });
    }
    for (auto& thread : pool) thread.join();
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++ to compile the kernels for the CPU")
    source, launchers = PRELUDE + cuda.KERNELS, ""
    for kernel, parameters in re.findall(r"void (\w+)\(([^)]*)\) \{", cuda.KERNELS):
        names = ", ".join(parameter.split()[-1] for parameter in parameters.split(","))
        launchers += (
            f'extern "C" void launch_{kernel}(unsigned blocks, unsigned threads, {parameters}) '
            f"{{ launch([=] {{ {kernel}({names}); }}, blocks, threads); }}\n"
        )
    folder = tmp_path_factory.mktemp("kernels")
    (folder / "kernels.cpp").write_text(source + launchers)
    command = [compiler, "-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", "kernels.cpp", "-o", "kernels.so"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(folder / "kernels.so"))


class RawKernel:
    """Stands in for CuPy's class, and checks that the arguments have the types of the kernel, as CuPy does not."""

    used: ClassVar[set[str]] = set()

    def __init__(self, library, source, name):
        self.name = name
        self.function = getattr(library, f"launch_{name}")
        parameters = re.search(rf"void {name}\(([^)]*)\)", source)[1].split(",")
        self.types = [parameter.replace("const ", "").split()[0] for parameter in parameters]

    def __call__(self, grid, block, arguments):
        assert (len(grid), block) == (1, (cuda.THREADS,))
        self.used.add(self.name)
        given = []
        for kind, argument in zip(self.types, arguments, strict=True):
            if kind.endswith("*"):
                assert argument.dtype == np.dtype(kind[:-1].replace("float", "float32")), kind
                assert argument.flags.c_contiguous
                given.append(argument.ctypes.data)
            else:
                assert isinstance(argument, np.int32 if kind == "int" else float), kind
                given.append(argument)
        self.function.argtypes = [ctypes.c_uint, ctypes.c_uint, *(TYPES[kind] for kind in self.types)]
        self.function(grid[0], THREADS, *given)


def syrk(trans, a, out, lower):
    """Write one triangle only, as cublas does."""
    assert (trans, lower) == ("N", True)
    assert a.flags.c_contiguous
    out[:] = np.nan
    places = np.tril_indices(len(a))
    out[places] = (a @ a.T)[places]


@pytest.fixture
def cupy(library, monkeypatch):
    """A stand-in for CuPy whose arrays are numpy arrays."""
    module = ModuleType("cupy")
    module.RawKernel = lambda source, name: RawKernel(library, source, name)
    module.cublas = SimpleNamespace(syrk=syrk)
    module.ndarray = type("ndarray", (), {})  # array-api-compat asks whether arrays are of this class; none is
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(cuda, "require_cupy", lambda: module)
    monkeypatch.setattr(cuda, "on_torchs_stream", lambda _device: contextlib.nullcontext(module))
    monkeypatch.setattr(cuda, "as_cupy", lambda tensor: tensor.detach().numpy())
    RawKernel.used.clear()
    cuda.compiled.cache_clear()
    yield module
    cuda.compiled.cache_clear()


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs the CUDA compiler")
def test_the_cuda_compiler_accepts_the_source(tmp_path):
    (tmp_path / "kernels.cu").write_text(cuda.KERNELS)
    command = ["nvcc", "-ptx", "-Werror", "all-warnings", "-allow-unsupported-compiler", "kernels.cu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def rbf(x, width):
    """The Gram matrix of the RBF kernel by its definition."""
    squared = ((x[:, None, :] - x[None, :, :]) ** 2).sum(-1)
    return np.exp(-squared / (2 * width**2))


class TestRBF:
    @pytest.mark.parametrize(("n", "p"), [(1, 3), (2, 1), (9, 5), (33, 40)])
    @pytest.mark.parametrize("mean", [0.0, 1000.0])
    @pytest.mark.parametrize("width", [0.3, 2.0, 50.0])
    def test_equals_its_definition(self, cupy, rng, n, p, mean, width):
        x = (rng.normal(size=(n, p)) + mean).astype(np.float32)
        found = cuda.fused_rbf(torch.tensor(x), width).numpy()
        assert_allclose(found, rbf(x.astype(np.float64), width), atol=2e-6)
        assert_array_equal(np.diagonal(found), 1.0)
        assert_array_equal(found, found.T)

    def test_equal_samples_give_values_up_to_one(self, cupy, rng):
        x = np.repeat(rng.normal(size=(7, 30)).astype(np.float32) * 100, 2, axis=0)
        found = cuda.fused_rbf(torch.tensor(x), 1e4).numpy()
        assert found.max() == 1.0
        assert_allclose(found, rbf(x.astype(np.float64), 1e4), atol=1e-6)

    def test_constant_features_give_ones(self, cupy):
        assert_array_equal(cuda.fused_rbf(torch.full((5, 3), 0.1), 0.5).numpy(), np.ones((5, 5)))

    def test_a_negative_squared_distance_counts_as_zero_and_nan_stays(self, cupy):
        gram, out = np.ones((4, 4), dtype=np.float32), np.empty((4, 4), dtype=np.float32)
        gram[1, 0], gram[2, 0], gram[3, 3] = 1.1, np.nan, np.inf
        gram[np.triu_indices(4, 1)] = 7.0  # is not read
        kernel = cupy.RawKernel(cuda.KERNELS, "rbf_of_gram")
        kernel((4,), (cuda.THREADS,), (gram, out, 2.0, np.int32(4)))
        nan = np.nan
        assert_array_equal(out, [[1, 1, nan, 0], [1, 1, 1, 0], [nan, 1, 1, 0], [0, 0, 0, nan]])

    @pytest.mark.parametrize("width", [1e-30, 1e30])
    def test_widths_whose_squares_overflow_or_underflow_float32(self, cupy, width):
        x = torch.tensor([[0.0], [1.0]])
        expected = np.eye(2) if width < 1 else np.ones((2, 2))
        assert_array_equal(cuda.fused_rbf(x, width).numpy(), expected)

    def test_takes_float32_only(self, cupy):
        with pytest.raises(TypeError, match=r"takes float32, got torch\.float64"):
            cuda.fused_rbf(torch.ones((2, 2), dtype=torch.float64), 1.0)

    @pytest.mark.parametrize("fixed", [True, False])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_is_used_for_fixed_bandwidths_and_float32_only(self, cupy, rng, monkeypatch, fixed, dtype):
        calls = []
        fused = cuda.fused_rbf
        monkeypatch.setattr(cuda, "fused_rbf", lambda *args: calls.append(1) or fused(*args))
        x = torch.tensor(rng.normal(size=(9, 4)), dtype=dtype)
        kernel = cp.RBF(bandwidth=3 if fixed else "median", fraction=0.5)
        assert_allclose(cuda.by_cupy(kernel, x).numpy(), kernel(x).numpy(), atol=1e-6)
        assert bool(calls) == (fixed and dtype == torch.float32)


@pytest.mark.parametrize("shape", [(1, 4), (5, 1), (16, 3), (33, 17)])
def test_syrk_is_mirrored(cupy, rng, shape):
    x = torch.tensor(rng.normal(size=shape))
    assert_allclose(cuda.syrk_gram(x).numpy(), (x @ x.T).numpy(), rtol=1e-12)
    assert_allclose(cuda.syrk_gram(x.T.contiguous().T).numpy(), (x @ x.T).numpy(), rtol=1e-12)


class TestUCentring:
    @pytest.mark.parametrize("n", [4, 5, 9, 33])
    def test_equals_centring_by_torch(self, cupy, rng, n):
        grams = torch.tensor(rng.normal(size=(3, n, n)), dtype=torch.float32)
        grams = grams + grams.mT + 3
        grams[1], grams[2] = 0, 1 / 3
        found = cuda.fused_u_centre(grams)
        assert_allclose(found.numpy(), flat_centred(grams.double(), "unbiased").numpy(), atol=2e-6)
        assert (found[1:] == 0).all()

    def test_keeps_nan(self, cupy):
        grams = torch.eye(8).repeat(2, 1, 1)
        grams[1, 2, 3] = torch.nan
        found = cuda.fused_u_centre(grams)
        assert not found[0].isnan().any()
        assert found[1].isnan().any()

    def test_takes_float32_only(self, cupy):
        with pytest.raises(TypeError, match=r"centres float32, got torch\.float64"):
            cuda.fused_u_centre(torch.ones((1, 4, 4), dtype=torch.float64))


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize("kernel", [cp.Linear(), cp.RBF(), cp.RBF(bandwidth=3.0), cp.Cosine()], ids=repr)
def test_compare_by_cupy_equals_compare_by_torch(cupy, monkeypatch, kernel, estimator):
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)) for _ in range(2)]
    with torch.no_grad():
        nets[0][2].bias += 5.0
    data = list(torch.randn(4, 20, 6))
    expected = cp.compare(*nets, data, kernel=kernel, estimator=estimator, progress=False)

    def keeper(*args, **kw):
        return GramKeeper(*args, **{**kw, "backend": "cupy"}, deferred=True)

    monkeypatch.setattr(minibatch, "GramKeeper", keeper)
    found = cp.compare(*nets, data, kernel=kernel, estimator=estimator, progress=False)
    assert_allclose(found.values, expected.values, atol=1e-5)
    by_hand = {"row_sums", "u_centre"} if estimator == "unbiased" else set()
    assert RawKernel.used == by_hand | ({"rbf_of_gram"} if kernel == cp.RBF(bandwidth=3.0) else set())
