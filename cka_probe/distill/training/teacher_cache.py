"""Cache on disk for a frozen teacher's outputs of every training sample."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...atomic_write import atomic_write
from ...identity import weights_digest
from ..losses.contract import Outputs
from ..taps.tapped_model import TappedModel
from .batches import Batch, DatasetBatches

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["cached_teacher"]

# Samples that are read twice to check that the data set has no augmentation; the name of the folder depends on them.
PROBES = 16
FINISHED = "cache.json"


def cached_teacher(
    directory: Path | str,
    master: TappedModel,
    teach: Callable[[Batch], Any],
    batches: Any,
    accelerator: Accelerator,
    progress: bool = True,
) -> Callable[[Batch], Outputs]:
    """Function like `teach` that reads the teacher's logits and features from disk. They are written there first.

    The outputs are memory-mapped .npy files in a folder. Its name is a hash of the teacher's weights, the tapped
    layers, the precision, the size of the data set and some of its samples. The folder is either complete or absent.

    Parameters
    ----------
    directory : path
        Where the folder is created.
    master : TappedModel
        The frozen teacher.
    teach : callable
        Returns the outputs of the teacher for a batch.
    batches : DatasetBatches
        Batches of a data set without augmentation.
    accelerator : Accelerator
        Its main process writes; the others wait.
    progress : bool
        Whether a progress bar is shown while writing.

    Returns
    -------
    callable
        From a `Batch` to `Outputs` on the accelerator's device.

    Raises
    ------
    ValueError
        If `batches` come from a ready DataLoader, or the data set gives another sample when it is read again.
    OSError
        If the disk has not enough free space.
    """
    if not isinstance(batches, DatasetBatches):
        raise ValueError(
            "`teacher_cache` needs `train` as a data set: the indices of samples from a DataLoader are unknown."
        )
    probes = _probe_samples(batches)
    key = hashlib.blake2b(
        repr(
            [weights_digest(master.model), master.layers, batches.count, accelerator.mixed_precision, probes]
        ).encode(),
        digest_size=12,
    ).hexdigest()
    folder = Path(directory) / key
    with accelerator.main_process_first():
        if not (folder / FINISHED).exists():
            _write(folder, teach, batches, progress)
    names = json.loads((folder / FINISHED).read_text())["files"]
    arrays = [np.load(folder / name, mmap_mode="r") for name in names]

    def read(batch: Batch) -> Outputs:
        assert batch.indices is not None  # DatasetBatches always have them
        rows = batch.indices.cpu().numpy()
        logits, *features = [torch.from_numpy(array[rows]).to(accelerator.device) for array in arrays]
        return Outputs(logits, tuple(features))

    return read


def _probe_samples(batches: DatasetBatches) -> str:
    """Hash of some samples. Raise ValueError if they are different when they are read again."""
    indices = np.linspace(0, batches.count - 1, PROBES).round().astype(int).tolist()
    hashes = []
    for epoch in (0, 1):
        batch = batches.read(indices, epoch)
        inputs = batch.inputs if isinstance(batch.inputs, Tensor) else torch.cat([v.flatten() for v in _leaves(batch)])
        content = inputs.cpu().contiguous().numpy().tobytes() + batch.target.cpu().numpy().tobytes()
        hashes.append(hashlib.blake2b(content, digest_size=16).hexdigest())
    if hashes[0] != hashes[1]:
        raise ValueError(
            "`teacher_cache` is for data without augmentation, but `train` gives a different sample when it is read "
            "again. Leave out teacher_cache or the augmentation."
        )
    return hashes[0]


def _leaves(batch: Batch) -> list[Tensor]:
    values = batch.inputs.values() if hasattr(batch.inputs, "values") else batch.inputs
    return [value.double() for value in values if isinstance(value, Tensor)]


def _write(folder: Path, teach: Callable[[Batch], Any], batches: DatasetBatches, progress: bool) -> None:
    count = batches.count
    taught = teach(batches.read([0, 1], 0))
    shapes = [tuple(output.shape[1:]) for output in (taught.logits, *taught.features)]
    folder.parent.mkdir(parents=True, exist_ok=True)
    needed = 4 * count * sum(int(np.prod(shape)) for shape in shapes)
    free = shutil.disk_usage(folder.parent).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"the teacher's outputs take {needed / 1e9:.1f} GB and {folder.parent} has {free / 1e9:.1f} GB free. "
            "Leave teacher_cache out, or tap fewer or smaller layers",
        )
    names = ["logits.npy", *(f"feature_{i}.npy" for i in range(len(taught.features)))]
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".", suffix=".tmp"))
    try:
        arrays = [
            np.lib.format.open_memmap(temporary / name, mode="w+", dtype=np.float32, shape=(count, *shape))
            for name, shape in zip(names, shapes, strict=True)
        ]
        size = batches.batch_size
        for start in tqdm(range(0, count, size), desc="teacher outputs", unit="batch", disable=not progress):
            indices = list(range(start, min(start + size, count)))
            outputs = teach(batches.read(indices, 0))
            for array, output in zip(arrays, (outputs.logits, *outputs.features), strict=True):
                array[start : start + len(indices)] = output.cpu().numpy()
        for array in arrays:
            array.flush()
        del arrays
        facts = {"files": names, "samples": count, "shapes": shapes}
        atomic_write(temporary / FINISHED, json.dumps(facts, indent=1))
        if not (folder / FINISHED).exists():  # another run may have written it meanwhile
            temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
