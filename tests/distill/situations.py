"""Networks, data and a loop by hand of the situations of people who distill."""

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from cka_probe.distill.baselines import KDLoss
from cka_probe.distill.training.classification import distill

N, BATCH, RATE = 24, 8, 0.1
WORDS, LENGTH = 20, 6
SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


def constant(_epoch, _epochs):
    return 1.0


def made(build, seed):
    torch.manual_seed(seed)
    return build()


def mlp(inputs=4, outputs=3):
    return nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, outputs))


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labels(*shape, classes=3, seed=0):
    return torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(seed))


X = numbers(N, 4)
IDS = labels(N, LENGTH, classes=WORDS - 2) + 2
MASK = (torch.arange(LENGTH) < (torch.arange(N) % 5 + 2)[:, None]).long()
TAGS = labels(N, LENGTH).masked_fill(MASK == 0, -100)


class Rows(Dataset):
    """Samples as dicts."""

    def __init__(self, **columns):
        self.columns = columns

    def __len__(self):
        return N

    def __getitem__(self, i):
        return {name: column[i] for name, column in self.columns.items()}


class Stream(IterableDataset):
    """Samples without length."""

    def __iter__(self):
        return iter(zip(X, labels(N), strict=True))


def mixed(samples, cut=False):
    """Collate with mixup, or with cutmix of the features."""
    x, y = default_collate(samples)
    y = F.one_hot(y, 3).float()
    if cut:
        x = torch.cat([x[:, :1], x.flip(0)[:, 1:]], 1)
        return x, 0.25 * y + 0.75 * y.flip(0)
    return 0.7 * x + 0.3 * x.flip(0), 0.7 * y + 0.3 * y.flip(0)


def loader(*tensors, **options):
    return DataLoader(TensorDataset(*tensors), BATCH, **options)


def go(student, train, teacher=None, loss=None, **options):
    options = {"epochs": 2, "learning_rate": RATE, "schedule": constant, "weight_decay": 0.0, **options}
    test = options.pop("test", train)
    return distill(teacher, student, train, test, loss, optimizer=torch.optim.SGD, progress=False, **options)


def by_hand(student, batches, objective, epochs=2):
    """Train as torch's tutorials do."""
    descent = torch.optim.SGD(student.parameters(), lr=RATE)
    student.train()
    for _ in range(epochs):
        for batch in batches:
            descent.zero_grad()
            objective(student, batch).backward()
            descent.step()
    return student


def assert_same(student, expected):
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(student.state_dict()[name], value, atol=1e-6, rtol=1e-5, msg=name)


# Networks of Hugging Face: the model, the columns of its data, and its own loss, which it computes of the labels.
def language_model():
    return GPT2LMHeadModel(GPT2Config(vocab_size=WORDS, n_positions=8, n_embd=8, n_layer=1, n_head=2,
                                      resid_pdrop=0, embd_pdrop=0, attn_pdrop=0))  # fmt: skip


def bert(kind, **options):
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return kind(BertConfig(vocab_size=WORDS, max_position_embeddings=8, **SIZES, **still, **options))


def vit():
    return ViTForImageClassification(
        ViTConfig(image_size=8, patch_size=4, num_labels=3, hidden_dropout_prob=0.0, **SIZES)
    )


def t5():
    return T5ForConditionalGeneration(
        T5Config(d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, vocab_size=WORDS, dropout_rate=0.0)
    )


TEXT = {"input_ids": IDS, "attention_mask": MASK}
HUGGING_FACE = {
    "sentences": (partial(bert, BertForSequenceClassification, num_labels=3), {**TEXT, "labels": labels(N)}),
    "token classes": (partial(bert, BertForTokenClassification, num_labels=3), {**TEXT, "labels": TAGS}),
    "masked words": (partial(bert, BertForMaskedLM), {**TEXT, "labels": IDS.masked_fill(TAGS != 0, -100)}),
    "next words": (language_model, {**TEXT, "labels": IDS.masked_fill(MASK == 0, -100)}),
    "translation": (t5, {**TEXT, "decoder_input_ids": IDS.flip(1), "labels": IDS.roll(1, 1)}),
    "images": (vit, {"pixel_values": numbers(N, 3, 8, 8), "labels": labels(N)}),
}


def kd(student, teacher):
    """Hinton's loss at temperature 4 with weight 1, as `KDLoss` has it."""
    t = 4.0
    return t * t * F.kl_div((student / t).log_softmax(1), (teacher / t).softmax(1), reduction="batchmean")


KD = KDLoss(weight=1.0, temperature=4.0)


class Squeezed(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp(outputs=1)

    def forward(self, x):
        return self.net(x).squeeze(1)


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = mlp(), mlp()

    def forward(self, a, b):
        return self.left(a) - self.right(b)


POSITIVE = torch.tensor([0.5, 2.0, 1.0])
SMOOTH = nn.CrossEntropyLoss(weight=POSITIVE.clone(), label_smoothing=0.1)
