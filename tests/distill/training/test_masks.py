"""The mask of the real tokens arrives at the loss: in whole batches, microbatches, from the cache, and by forward=."""

import pytest
import torch
from small_runs import run
from torch import nn
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification

LENGTHS = torch.arange(24) % 5 + 2


class Sentences(Dataset):
    """Dict samples, or pairs ((ids, mask), label)."""

    def __init__(self, as_dicts):
        self.ids = torch.randint(1, 30, (24, 6), generator=torch.Generator().manual_seed(0))
        self.mask = (torch.arange(6) < LENGTHS[:, None]).long()
        self.as_dicts = as_dicts

    def __len__(self):
        return 24

    def __getitem__(self, i):
        if self.as_dicts:
            return {"input_ids": self.ids[i], "attention_mask": self.mask[i], "labels": i % 3}
        return (self.ids[i], self.mask[i]), i % 3


class Recorder(nn.Module):
    """Keep the masks of both networks, and check that each belongs to its samples."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def terms(self, student, teacher, target=None):
        assert torch.equal(student.mask.bool(), teacher.mask.bool())
        # The labels are the numbers of the samples modulo 3, and the lengths modulo 5: the pairs are those of the data.
        pairs = set(zip((torch.arange(24) % 3).tolist(), LENGTHS.tolist(), strict=True))
        assert set(zip(target.tolist(), student.mask.sum(1).tolist(), strict=True)) <= pairs
        self.sizes.append(len(student.mask))
        apart = (student.features[0] - teacher.features[0])[student.mask.bool()]
        return {"apart": apart.square().mean()}

    def forward(self, *arguments):
        return self.terms(*arguments)["apart"]


def bert(seed):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return BertForSequenceClassification(BertConfig(vocab_size=30, num_labels=3, **sizes))


def go(as_dicts=True, **options):
    data, loss = Sentences(as_dicts), Recorder()
    options = {"train": data, "test": data, "student_layers": ["bert.encoder.layer.1"], "epochs": 1, **options}
    return run(bert(1), bert(2), loss, **options), loss


@pytest.mark.parametrize("as_dicts", [True, False])
@pytest.mark.parametrize("accumulation", ["exact", "mean"])
def test_masks_belong_to_their_samples(as_dicts, accumulation):
    _, loss = go(as_dicts, accumulation_steps=2, accumulation=accumulation)
    assert loss.sizes[-1] == (8 if accumulation == "exact" else 4)


def test_masks_are_in_the_cache(tmp_path):
    plain, _ = go()
    for _ in range(2):
        cached, _ = go(teacher_cache=tmp_path)
        assert cached.history["apart"].tolist() == pytest.approx(plain.history["apart"].tolist(), rel=1e-5)
