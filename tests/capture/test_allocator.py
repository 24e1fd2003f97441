"""The thresholds of glibc's malloc while models run, in processes of their own."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

import cka_probe as cp
from cka_probe.capture import allocator
from cka_probe.capture.allocator import SWITCH, memory_kept

HEAD = """
import ctypes, os, threading
import torch
from torch import nn
import cka_probe as cp
from cka_probe.capture.allocator import memory_kept

library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]

def maps(mib):
    'Whether an array of this size comes directly from the system: bit 1 of the size that glibc writes before it.'
    array = library.malloc(mib << 20)
    mapped = bool(ctypes.c_size_t.from_address(array - 8).value & 2)
    library.free(array)
    return mapped

def mapped():
    'Whether arrays of 20, 100 and 200 MiB do. Up to 64 MiB may be free at the top of the heap.'
    return [maps(20), maps(100), maps(200)]

net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
found = {}
"""

SITUATIONS = """
seen = []
net.register_forward_hook(lambda *_: seen.append(maps(200)))
data = torch.randn(32, 3, 8, 8)
jobs = {
    "compare": lambda: cp.compare(net, net, data, progress=False),
    "compare dataset": lambda: cp.compare(net, net, data, scope="dataset", progress=False),
    "extract": lambda: cp.extract(net, data, progress=False),
    "signature": lambda: cp.signature(net, data, progress=False),
}
for name, job in jobs.items():
    seen.clear()
    job()
    found[name] = [bool(seen), any(seen), *mapped()]

try:
    with memory_kept([net]):
        with memory_kept([net]):
            found["in two blocks"] = mapped()
        found["in one block"] = mapped()
        raise KeyboardInterrupt
except KeyboardInterrupt:
    found["after Ctrl-C"] = mapped()

inside, end = threading.Event(), threading.Event()
def other():
    with memory_kept([net]):
        inside.set()
        end.wait(30)
thread = threading.Thread(target=other)
with memory_kept([net]):
    thread.start()
    inside.wait(30)
found["another thread is inside"] = mapped()
end.set()
thread.join()
found["no thread is inside"] = mapped()

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 1
    def __getitem__(self, index):
        return mapped()
with memory_kept([net]):
    loader = torch.utils.data.DataLoader(Rows(), num_workers=1, multiprocessing_context="fork", batch_size=None)
    found["worker"] = next(iter(loader))
    found["beside the worker"] = mapped()

def held():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) // 1024
before = held()
with memory_kept([net]):
    arrays = [torch.ones(2**20) for _ in range(200)]
    kept = arrays[-1]  # above them in the heap
    del arrays
    found["memory inside"] = held() - before
found["memory after"] = held() - before

with memory_kept([net]):  # 796 MiB are free in the heap, below what is kept
    found["beside free memory"] = [maps(700), maps(900)]
found["after free memory"] = [maps(700), maps(900)]
"""


def glibc():
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") is not None
    except (AttributeError, ValueError, OSError):
        return False


needs_glibc = pytest.mark.skipif(not glibc(), reason="malloc of glibc")


def found(body, **variables):
    """What a script in a process of its own leaves in its dict ``found``."""
    known = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    environment = known | {"PYTHONPATH": str(Path(cp.__file__).parent.parent)} | variables
    command = [sys.executable, "-c", HEAD + body + "\nimport json; print(json.dumps(found))"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def situations():
    return found(SITUATIONS)


@needs_glibc
def test_large_arrays_stay_in_the_heap_while_models_run_and_the_values_of_glibcs_rule_are_put_back(situations):
    for job in ("compare", "compare dataset", "extract", "signature"):
        assert situations[job] == [True, False, False, True, True], job
    assert situations["in two blocks"] == situations["in one block"] == [False, False, False]
    assert situations["after Ctrl-C"] == [False, True, True]


@needs_glibc
def test_threads_that_overlap_share_the_change_until_the_last_one_ends(situations):
    assert situations["another thread is inside"] == [False, False, False]
    assert situations["no thread is inside"] == [False, True, True]


@needs_glibc
def test_a_forked_worker_of_a_data_loader_has_the_thresholds_of_glibcs_rule(situations):
    assert situations["worker"] == [False, True, True]
    assert situations["beside the worker"] == [False, False, False]


@needs_glibc
def test_free_memory_goes_back_to_the_system_at_the_end(situations):
    assert situations["memory inside"] > 700
    assert situations["memory after"] < 100


@needs_glibc
def test_the_thresholds_are_changed_again_when_much_is_free_in_the_heap(situations):
    """An array may then come from the heap though it is above the threshold."""
    assert situations["beside free memory"] == [False, False]
    assert situations["after free memory"] == [False, True]


@needs_glibc
@pytest.mark.parametrize(
    ("variables", "body"),
    [
        ({"MALLOC_TRIM_THRESHOLD_": "100000"}, ""),  # this alone fixes the other threshold at 128 KiB
        ({"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1048576"}, ""),
        ({}, "library.mallopt(-3, 1 << 20)"),
    ],
)
def test_a_threshold_that_the_user_has_set_stays(variables, body):
    small = "with memory_kept([net]): found['inside'] = mapped()\nfound['after'] = mapped()\n"
    large = """
library.mallopt(-3, 150 << 20), library.mallopt(-1, 1 << 30)
with memory_kept([net]): found['large inside'] = mapped()
found['large after'] = mapped()
below, above = library.malloc(140 << 20), library.malloc(64)
library.free(below)
with memory_kept([net]): found['beside free memory'] = [maps(140), maps(900)]
found['after free memory'] = [maps(140), maps(900)]
"""
    words = found(f"{body}\n{small}\n{large}", **variables)
    assert words["inside"] == words["after"] == [True, True, True]
    assert words["large inside"] == words["large after"] == [False, False, True]
    assert words["beside free memory"] == words["after free memory"] == [False, True]


def test_other_systems_models_on_another_device_and_the_switch_change_nothing(monkeypatch):
    calls = []
    monkeypatch.setattr(allocator, "_keep", lambda: calls.append(1) or (lambda: None))
    with memory_kept([nn.Linear(2, 2, device="meta")]), memory_kept([]):
        pass
    with monkeypatch.context() as patch, memory_kept([]):
        patch.setenv(SWITCH, "0")
        with memory_kept([nn.Linear(2, 2)]):
            pass
    monkeypatch.setattr(sys, "platform", "darwin")
    allocator._glibc.cache_clear()
    try:
        with memory_kept([nn.Linear(2, 2)]):
            pass
    finally:
        allocator._glibc.cache_clear()
    assert not calls


@pytest.mark.parametrize("missing", ["mallopt", "mallinfo", "malloc_trim", "malloc"])
def test_a_c_library_without_a_function_changes_nothing(missing, monkeypatch):
    """musl has no mallopt, for example."""

    class Library:
        def __getattr__(self, name):
            if name == missing:
                raise AttributeError(name)
            return lambda *_: None

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(allocator.ctypes, "PyDLL", lambda _name: Library())
    allocator._glibc.cache_clear()
    try:
        with memory_kept([nn.Linear(2, 2)]):
            assert not allocator._is_changed
    finally:
        allocator._glibc.cache_clear()


@pytest.mark.parametrize("heap", [0, 2**40])
def test_another_allocator_is_known_by_arrays_that_glibc_does_not_count(heap, monkeypatch):
    """Under jemalloc or tcmalloc, the numbers of glibc stay what they are."""

    class Numbers:
        hblks, uordblks, fordblks = 3, heap, 0

    class Library:
        def __init__(self):
            self.set = []

        def mallinfo(self):
            return Numbers()

        def malloc(self, _size):
            return 4096

        def free(self, _array):
            pass

        def mallopt(self, *pair):
            self.set.append(pair)
            return 1

    library = Library()
    monkeypatch.setattr(allocator, "_glibc", lambda: library)
    with memory_kept([nn.Linear(2, 2)]):
        pass
    assert not library.set


def test_comparisons_in_threads_beside_each_other_agree_with_one_alone():
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)) for _ in range(4)]
    data = torch.randn(64, 3, 8, 8)
    alone = [cp.compare(net, net, data, progress=False).values for net in nets]
    found = {}
    threads = [
        threading.Thread(
            target=lambda i=i: found.update({i: cp.compare(nets[i], nets[i], data, progress=False).values})
        )
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place, values in enumerate(alone):
        assert abs(found[place] - values).max() < 1e-7
    assert not allocator._is_changed
