"""Change the state of models and of torch for one block only: devices, buffers, random generators, precision."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .modes import evaluated, frozen, modes_restored
from .networks import check_movable, device_of
from .threads import SharedChange, exclusive

__all__ = [
    "borrowed",
    "buffers_restored",
    "device_of",
    "evaluated",
    "frozen",
    "full_precision",
    "matmul_settings",
    "modes_restored",
    "moved",
    "random_states",
    "random_states_restored",
    "reduces_products",
    "set_random_states",
]


@contextmanager
def borrowed(models: Sequence[nn.Module], device: torch.device | str | None = None) -> Iterator[None]:
    """Inside the block, the models are in eval mode and on ``device``, and no gradients are computed.

    Restored afterwards, also after an exception: the mode of every submodule, the device of each model, grad mode, and
    the random generators of Python, numpy and torch. Compiled modules run eagerly inside the block, because compiled
    code may skip hooks. Other threads that borrow one of the models, or a part of it, wait until the block ends.

    Parameters
    ----------
    models : sequence of torch.nn.Module
        The networks.
    device : device, optional
        Where they run. By default they stay where they are.

    Raises
    ------
    RuntimeError
        If two threads wait for each other's models.
    ValueError
        If ``device`` is given and accelerate's hooks decide where a model runs.
    """
    with (
        exclusive(models),
        _random_states_of_all_threads(),
        moved(models, device),
        evaluated(*models),
        torch.no_grad(),
        _eager(),
    ):
        yield


_stance = SharedChange()


def _eager() -> AbstractContextManager[None]:
    """Run compiled modules eagerly. If the compiler is not loaded, none exist, and it is not loaded (1 s) for this."""

    def force() -> Callable[[], None]:
        stance = torch.compiler.set_stance("force_eager")
        return lambda: stance.__exit__(None, None, None)

    return _stance.made(force) if "torch._dynamo" in sys.modules else nullcontext()


@contextmanager
def buffers_restored(model: nn.Module) -> Iterator[None]:
    """Restore the buffers (running statistics of batch norm) afterwards, also after an exception."""
    before: list[tuple[Tensor, Tensor]] = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                # By `data`, which does not count as a change: a backward that needs the buffer would refuse a change.
                buffer.data.copy_(value)


@contextmanager
def moved(models: Sequence[nn.Module], device: torch.device | str | None) -> Iterator[None]:
    """Move the models to ``device``, and back afterwards, also after an exception. None moves nothing.

    Raises
    ------
    ValueError
        If accelerate's hooks decide where a model runs. Then no model is moved.
    """
    if device is not None:
        for model in models:
            check_movable(model, device)
    homes = [] if device is None else [(model, device_of(model)) for model in models]
    try:
        for model, _ in homes:
            model.to(device)
        yield
    finally:
        for model, home in homes:
            model.to(home)


def random_states(devices: bool = True) -> dict[str, Any]:
    """States of the random generators of torch, numpy and Python, readable by ``torch.load(weights_only=True)``.

    Parameters
    ----------
    devices : bool
        Whether to include the generators of the GPUs. They are left out while CUDA is not initialised.

    Returns
    -------
    dict
        For ``set_random_states``.
    """
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": _numpy_state(),
        "python": random.getstate(),
    }
    if devices and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def _numpy_state() -> Any:
    state: Any = np.random.get_state(legacy=False)  # noqa: NPY002 - augmentations of users draw from it
    if state["bit_generator"] != "MT19937":
        return state  # another generator, set by numpy.random.set_bit_generator
    keys = torch.from_numpy(state["state"]["key"].astype(np.int64))
    return ["MT19937", keys, int(state["state"]["pos"]), int(state["has_gauss"]), float(state["gauss"])]


def set_random_states(states: dict[str, Any]) -> None:
    """Set the random generators to the states that ``random_states`` returned.

    Parameters
    ----------
    states : dict
        From ``random_states``. States of GPUs are ignored on a machine without CUDA.
    """
    torch.set_rng_state(states["torch"])
    numpy = states["numpy"]
    if not isinstance(numpy, dict):
        name, keys, *rest = numpy
        numpy = (name, keys.numpy().astype(np.uint32), *rest)
    np.random.set_state(numpy)  # noqa: NPY002 - as above
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])


@contextmanager
def random_states_restored(devices: bool = True) -> Iterator[None]:
    """Restore the random generators afterwards, also after an exception."""
    with _restoring(random_states(devices), devices):
        yield


@contextmanager
def _restoring(states: dict[str, Any], devices: bool = True) -> Iterator[None]:
    try:
        yield
    finally:
        set_random_states(states)
        if devices and "cuda" not in states and torch.cuda.is_initialized():
            # CUDA was initialised inside. Its generators had no state before, only the seed of the CPU's generator.
            torch.cuda.manual_seed_all(torch.initial_seed())


_borrowers: dict[int, int] = {}  # thread: how many blocks it is in
_first_states: dict[str, Any] = {}
_borrowers_lock = threading.Lock()


@contextmanager
def _random_states_of_all_threads() -> Iterator[None]:
    """As ``random_states_restored``, but a block of one thread that starts inside that of another shares its states.

    A data loader draws from the global generator. The state in the middle of one comparison must not be what a
    comparison in another thread leaves behind.
    """
    me = threading.get_ident()
    with _borrowers_lock:
        alone = not _borrowers or me in _borrowers
        states = random_states() if alone else _first_states
        if not _borrowers:
            _first_states.clear()
            _first_states.update(states)
        states = dict(states)
        _borrowers[me] = _borrowers.get(me, 0) + 1
    try:
        with _restoring(states):
            yield
    finally:
        with _borrowers_lock:
            _borrowers[me] -= 1
            if not _borrowers[me]:
                del _borrowers[me]


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute products of float32 in float32 in the block, even if the caller has turned on autocast, TF32 or bfloat16.

    The caller's precision is for the network. In a Gram matrix it would cause an error of 1e-3 (bfloat16) or 1e-4
    (TF32).
    """
    reduced = reduces_products(device)
    with _full[_backend(device)].made(device) if reduced else nullcontext(), torch.autocast(device.type, enabled=False):
        yield


def reduces_products(device: torch.device) -> bool:
    """Whether torch computes products of float32 in TF32 or bfloat16 on this device.

    The setting belongs to the process. If only the ``full_precision`` block of another thread has raised it, the answer
    is that for the caller's setting, because that block may end at any time.
    """
    matmul = matmul_settings(device)
    if matmul is None:
        return False
    return _full[_backend(device)].setting(matmul) not in ("none", "ieee")


class _FullPrecision:
    """Full precision of one backend, from the first thread that asks for it until the last one is done."""

    def __init__(self) -> None:
        self._change = SharedChange()
        self._before: str | None = None
        self._own = threading.local()

    def setting(self, matmul: Any) -> str:
        """The setting for this thread: what another thread made of it is not its own."""
        before = self._before
        return matmul.fp32_precision if before is None or getattr(self._own, "inside", False) else before

    @contextmanager
    def made(self, device: torch.device) -> Iterator[None]:
        matmul = matmul_settings(device)

        def change() -> Callable[[], None]:
            before = self._before = matmul.fp32_precision
            matmul.fp32_precision = "ieee"

            def undo() -> None:
                matmul.fp32_precision = before
                self._before = None

            return undo

        # A block inside a block of the same thread finds full precision, and asks for nothing.
        with self._change.made(change):
            self._own.inside = True
            try:
                yield
            finally:
                self._own.inside = False


_full = {"cuda": _FullPrecision(), "mkldnn": _FullPrecision()}


def _backend(device: torch.device) -> str:
    return "cuda" if device.type == "cuda" else "mkldnn"


def matmul_settings(device: torch.device) -> Any:
    """Object whose ``fp32_precision`` sets how torch computes products on this device; None before torch 2.9."""
    backend = getattr(torch.backends, _backend(device))
    matmul = getattr(backend, "matmul", None)
    return matmul if hasattr(matmul, "fp32_precision") else None
