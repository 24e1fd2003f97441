"""atomic_write: the whole file or the old one, clear errors, nothing left behind."""

import errno
import os
import stat
import sys
import threading

import numpy as np
import pytest
from quick_processes import CONTEXT

from cka_probe import atomic_write as module
from cka_probe.atomic_write import atomic_write, remove_leftovers


def _names(folder):
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"\x00\xff", b"\x00\xff"), ("Grüße", "Grüße".encode()), (lambda file: file.write(b"by hand"), b"by hand")],
    ids=["bytes", "text", "function"],
)
def test_writes_and_overwrites(tmp_path, content, expected):
    path = tmp_path / "file"
    path.write_bytes(b"the old one, which is longer")
    atomic_write(path, content)
    assert path.read_bytes() == expected
    atomic_write(str(tmp_path / "new"), content)
    assert (tmp_path / "new").read_bytes() == expected
    assert _names(tmp_path) == ["file", "new"]


def test_the_temporary_name_holds_the_process_number_and_stays_in_the_folder(tmp_path):
    seen = []
    atomic_write(tmp_path / "x.npz", lambda file: seen.append(os.listdir(tmp_path)) or file.write(b"1"))  # noqa: PTH208
    ((name,),) = seen
    assert name.startswith(".x.npz.")
    assert str(os.getpid()) in name.split(".")


def test_a_name_of_255_bytes(tmp_path):
    atomic_write(tmp_path / ("a" * 255), b"1")
    assert _names(tmp_path) == ["a" * 255]


def test_file_and_folder_are_flushed_before_and_after_the_rename(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor):
        events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    monkeypatch.setattr(module.os, "fsync", record_fsync)
    monkeypatch.setattr(module.os, "replace", lambda *args: events.append("rename") or replace(*args))
    atomic_write(tmp_path / "x", b"1")
    assert events == ["file", "rename", "folder"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX permissions")
def test_modes_are_those_of_an_ordinary_file(tmp_path):
    before = os.umask(0o027)
    try:
        atomic_write(tmp_path / "new", b"1")
    finally:
        os.umask(before)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640
    (tmp_path / "new").chmod(0o600)
    atomic_write(tmp_path / "new", b"2")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600


def test_a_link_is_followed_and_a_device_is_written_directly(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    atomic_write(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"
    atomic_write(os.devnull, b"gone")


class HalfwayError(RuntimeError):
    pass


@pytest.mark.parametrize("error", [HalfwayError("halfway"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_a_failure_halfway_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "x"
    path.write_bytes(b"old")

    def halfway(file):
        file.write(b"new")
        raise error

    with pytest.raises(type(error)):
        atomic_write(path, halfway)
    assert path.read_bytes() == b"old"
    assert _names(tmp_path) == ["x"]


@pytest.mark.parametrize("name", ["open", "fsync", "replace"])
@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.ENOSPC, OSError, "the disk is full"),
        (errno.EACCES, PermissionError, "is read-only for you"),
        (errno.EROFS, OSError, "is read-only for you"),
        (errno.EIO, OSError, "A file that was there before is intact"),
    ],
)
def test_errors_of_the_system_name_the_file_and_the_remedy(tmp_path, monkeypatch, name, number, kind, words):
    path = tmp_path / "x"
    path.write_bytes(b"old")

    def fail(*_args, **_kwargs):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(module.os, name, fail)
        with pytest.raises(kind, match=words) as caught:
            atomic_write(path, b"new")
    assert caught.value.errno == number
    assert str(path) in str(caught.value)
    assert path.read_bytes() == b"old"
    assert _names(tmp_path) == ["x"]


def test_missing_and_wrong_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        atomic_write(tmp_path / "nowhere" / "x", b"1")
    (tmp_path / "file").write_bytes(b"1")
    with pytest.raises(NotADirectoryError, match="file is a file, not a folder"):
        atomic_write(tmp_path / "file" / "x", b"1")
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        atomic_write(tmp_path, b"1")
    assert _names(tmp_path) == ["file"]


def _write_often(path, byte):
    for _ in range(30):
        atomic_write(path, lambda file: np.save(file, np.full(20_000, byte, dtype=np.uint8)))


def test_two_writers_of_one_path_never_mix(tmp_path):
    path = tmp_path / "x.npy"
    writers = [CONTEXT.Process(target=_write_often, args=(path, 1))]
    writers += [threading.Thread(target=_write_often, args=(path, byte)) for byte in (2, 3)]
    for writer in writers:
        writer.start()
    reads = 0
    while any(writer.is_alive() for writer in writers) or not reads:
        if path.exists():
            values = np.load(path)
            assert values.shape == (20_000,)
            assert values.min() == values.max()
            reads += 1
    for writer in writers:
        writer.join()
    assert _names(tmp_path) == ["x.npy"]


@pytest.mark.parametrize("moment", [1, 2, 3, 4])
def test_a_file_that_another_writer_has_just_renamed(tmp_path, monkeypatch, moment):
    """It is there at one look and gone at the next: the new one is written as if it had never been."""
    path, looks, replaced = tmp_path / "file", [], []
    path.write_text("old")
    look, replace = os.stat, os.replace

    def gone(asked, *args, **options):
        if str(asked) == str(path):
            looks.append(1)
            if len(looks) == moment:
                path.unlink()
        return look(asked, *args, **options)

    monkeypatch.setattr(os, "stat", gone)
    monkeypatch.setattr(os, "replace", lambda *names: replaced.append(1) or replace(*names))
    atomic_write(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "new"
    assert replaced
    assert _names(tmp_path) == ["file"]


def test_leftovers_of_killed_writers_are_told_from_other_files(tmp_path):
    path = tmp_path / "run.ckpt"
    kept = [
        ".run.ckpt.17.tmp",
        ".run.ckpt.17.0123abcd.tmp.gz",
        ".run.ckpts.17.0123abcd.tmp",
        "run.ckpt.17.0123abcd.tmp",
    ]
    gone = [".run.ckpt.17.0123abcd.tmp", ".run.ckpt.4.ffffffff.tmp"]
    for name in (path.name, *kept, *gone):
        (tmp_path / name).touch()
    remove_leftovers(path)
    assert _names(tmp_path) == sorted([path.name, *kept])
    remove_leftovers(tmp_path / "nowhere" / "x")
