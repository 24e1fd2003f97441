"""One of two gloo processes of a training run: RANK, WORLD_SIZE and the others are set as torchrun does."""

import sys
from pathlib import Path

import torch
from small_runs import images, network, run
from torch import nn

from cka_probe.distill.losses.gather import gather_batch
from cka_probe.distill.training.diagnostics import Diagnostics


class GlobalDistances(nn.Module):
    """Relates all samples of the batch to one another, over all processes; with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))

    def terms(self, student, teacher, target=None):
        def distances(x):
            x = gather_batch(x).flatten(1)
            return (x[:, None] - x[None]).square().sum(-1).log1p()

        return {
            "features": (self.scale * distances(student.features[0]) - distances(teacher.features[0])).square().mean(),
            "logits": (distances(student.logits) - distances(teacher.logits)).square().mean(),
        }


def go(directory=None, **kwargs):
    return run(
        network(1, norm=False, dropout=0.0),
        network(2),
        GlobalDistances(),
        student_layers=["stem"],
        learning_rate=0.05,
        train=images(42),  # the last two samples join the batch before them
        batch_size=8,
        test=images(27, seed=1),
        output_dir=directory,
        diagnostics=Diagnostics(every=2, samples=27),
        **kwargs,
    )


def main():
    folder = Path(sys.argv[1])
    plain = go(folder / "plain")
    exact = go(folder / "exact", accumulation_steps=2)
    resumed = go(folder / "plain")  # finished: only loaded
    assert torch.equal(*(torch.cat([p.flatten() for p in r.student.parameters()]) for r in (plain, resumed)))
    assert exact.notes == ()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
