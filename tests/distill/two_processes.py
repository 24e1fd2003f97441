"""Two gloo processes of a training run: ``start`` starts them with the environment that torchrun gives."""

import os
import signal
import time
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from quick_processes import CONTEXT, free_port
from small_runs import images, network, run
from torch import nn
from torch.utils.data import TensorDataset

from cka_probe.distill.dense import PatchCKALoss, SmallResNet, distill_segmenter, segmenter
from cka_probe.distill.losses.gather import gather_batch
from cka_probe.distill.training import student_loop, teacher_cache
from cka_probe.distill.training.diagnostics import Diagnostics
from cka_probe.distill.training.evaluation import Evaluation
from cka_probe.distill.training.schedules import CosineDecay, PerStep

OPTIONS = {
    "schedule": PerStep(CosineDecay(warmup=3)),
    "clip_norm": 0.5,
    "ema": 0.8,
    "evaluation": Evaluation(every=4, columns=("loss", "top2")),
}


class GlobalDistances(nn.Module):
    """Compare all distances between samples of the batch, over all processes. Has a parameter of its own."""

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
        train=images(42),  # the last two samples are joined to the batch before them
        batch_size=8,
        test=images(27, seed=1),
        output_dir=directory,
        diagnostics=Diagnostics(every=2, samples=27),
        **kwargs,
    )


def segment(directory):
    """Both processes end with the same student and the same adapters of the loss."""
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(10, 3, 32, 32), torch.randint(0, 3, (10, 32, 32)))
    teacher, student = (segmenter("lraspp", SmallResNet(width), 3) for width in (16, 8))
    loss = PatchCKALoss(patch=2)
    options = {"features": "backbone.layer2", "steps": 4, "batch_size": 2, "clip_norm": 1.0, "progress": False}
    result = distill_segmenter(teacher, student, data, None, loss, output_dir=directory, **options)
    assert list(loss.parameters())
    ours = torch.cat([p.detach().flatten() for p in [*student.parameters(), *loss.parameters()]])
    everyone = [torch.empty_like(ours) for _ in range(2)]
    torch.distributed.all_gather(everyone, ours)
    assert torch.equal(*everyone)
    assert result.history["step"].tolist() == [4]


class Tagger(nn.Module):
    """Class of each of five words."""

    def __init__(self):
        super().__init__()
        self.words, self.tags = nn.Embedding(9, 6), nn.Linear(6, 3)

    def forward(self, ids):
        return self.tags(self.words(ids).tanh())


def tag(directory=None):
    """Tokens, of which every sample has another number."""
    made = torch.Generator().manual_seed(0)
    ids, tags = torch.randint(0, 9, (24, 5), generator=made), torch.randint(0, 3, (24, 5), generator=made)
    tags[torch.arange(5) > (torch.arange(24) // 2 % 5)[:, None]] = -100
    data = TensorDataset(ids, tags)
    torch.manual_seed(1)
    options = {"train": data, "test": data, "evaluation": Evaluation(columns=("loss",)), "output_dir": directory}
    return run(Tagger(), **options)


def regress(directory=None):
    """A number for each picture, and the mean of two teachers."""
    data, more = images(24), images(18, seed=1)
    made = [TensorDataset(one.tensors[0], one.tensors[0].mean((2, 3)) ** 2) for one in (data, more)]
    networks = [network(seed, norm=False, classes=1) for seed in (1, 2, 3)]
    return run(
        networks[0], networks[1:], nearer, train=made[0], test=made[1], supervision=nn.MSELoss(), output_dir=directory
    )


def nearer(student, teacher, target=None):
    return (student.logits - teacher.logits).abs().mean()


def in_process(rank, port, folder, what):
    """What process ``rank`` does; what it says is in the file ``said`` of the folder."""
    said = os.open(folder / f"said{rank}", os.O_CREAT | os.O_WRONLY)
    os.dup2(said, 1)
    os.dup2(said, 2)
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true"}
    os.environ.update(shared, MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    all_kinds(folder) if what == "equal" else lose(what, folder)


def start(folder, what="equal"):
    port = free_port()
    processes = [CONTEXT.Process(target=in_process, args=(rank, port, folder, what)) for rank in range(2)]
    for process in processes:
        process.start()
    return processes


def lose(what, folder):
    """Process 1 is killed, or sleeps, in the fifth step."""
    average = student_loop.average_gradients
    steps = iter(range(100))

    def fail(*arguments):
        if next(steps) == 4 and os.environ["RANK"] == "1":
            (folder / "lost").touch()
            if what == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600)
        average(*arguments)

    student_loop.average_gradients = fail
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=5))])
    go(accelerator=accelerator if what == "silent" else None)


def all_kinds(folder):
    plain = go(folder / "plain")
    exact = go(folder / "exact", accumulation_steps=2)
    teacher_cache.SIGN_EVERY = 0.0
    go(folder / "cached", teacher_cache=folder / "cache")
    resumed = go(folder / "plain")  # a finished run is only loaded
    assert torch.equal(*(torch.cat([p.flatten() for p in r.student.parameters()]) for r in (plain, resumed)))
    assert not any("left out" in note for note in exact.notes)
    go(folder / "options", accumulation_steps=2, **OPTIONS)
    tag(folder / "tokens")
    regress(folder / "regression")
    segment(folder / "segmenter")
    torch.distributed.destroy_process_group()
