"""Situations of people who distill: other targets, inputs, teachers, data. The values are those of a loop by hand."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler, default_collate
from torchmetrics import MeanSquaredError, R2Score
from torchmetrics.classification import MulticlassF1Score
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from cka_probe.distill.baselines import KDLoss
from cka_probe.distill.losses import FeatureCKALoss, HiddenStateCKALoss
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


# Supervision: a builder of the student, the training batches, and the loss on (output, target) as torch has it.
POSITIVE = torch.tensor([0.5, 2.0, 1.0])
SMOOTH = nn.CrossEntropyLoss(weight=POSITIVE.clone(), label_smoothing=0.1)
MAPS = loader(numbers(N, 1, 5, 5), labels(N, 5, 5).masked_fill(labels(N, 5, 5, seed=1) == 0, 255))


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


class WithAuxiliary(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, x):
        logits = self.net(x)
        return logits, 2 * logits


SUPERVISED = {
    "classes": (mlp, loader(X, labels(N)), "cross_entropy", F.cross_entropy),
    "mixup": (mlp, loader(X, labels(N), collate_fn=mixed), "cross_entropy", F.cross_entropy),
    "cutmix": (mlp, loader(X, labels(N), collate_fn=partial(mixed, cut=True)), "cross_entropy", F.cross_entropy),
    "label smoothing and class weights": (mlp, loader(X, labels(N)), SMOOTH, SMOOTH),
    "several labels at once": (mlp, loader(X, labels(N, 3, classes=2).float()), nn.BCEWithLogitsLoss(),
                               F.binary_cross_entropy_with_logits),
    "one label": (partial(mlp, outputs=1), loader(X, labels(N, 1, classes=2).float()), nn.BCEWithLogitsLoss(),
                  F.binary_cross_entropy_with_logits),
    "regression (B,)": (Squeezed, loader(X, numbers(N)), nn.MSELoss(), F.mse_loss),
    "regression (B, 1)": (partial(mlp, outputs=1), loader(X, numbers(N, 1)), F.l1_loss, F.l1_loss),
    "regression (B, k)": (mlp, loader(X, numbers(N, 3)), nn.SmoothL1Loss(), F.smooth_l1_loss),
    "variance too": (partial(mlp, outputs=2), loader(X, numbers(N, 1)), lambda output, y: F.gaussian_nll_loss(
        output[:, :1], y, output[:, 1:].exp()), lambda output, y: F.gaussian_nll_loss(
        output[:, :1], y, output[:, 1:].exp())),
    "label maps with a hole": (partial(nn.Conv2d, 1, 3, 3, padding=1), MAPS, nn.CrossEntropyLoss(ignore_index=255),
                               partial(F.cross_entropy, ignore_index=255)),
    "counts": (partial(mlp, outputs=1), loader(X, labels(N, 1, classes=5).float()), nn.PoissonNLLLoss(),
               F.poisson_nll_loss),
    "an output with more parts": (WithAuxiliary, loader(X, labels(N)), "cross_entropy",
                                  lambda output, y: F.cross_entropy(output[0], y)),
}  # fmt: skip


@pytest.mark.parametrize("name", SUPERVISED)
def test_a_student_learns_from_its_targets_as_by_hand(name):
    build, batches, supervision, expected = SUPERVISED[name]
    result = go(made(build, 1), batches, supervision=supervision)
    hand = by_hand(made(build, 1), batches, lambda student, batch: expected(student(batch[0]), batch[1]))
    assert_same(result.student, hand)
    if "train_accuracy" in result.history:
        assert result.history["train_accuracy"].between(0, 1).all()


def test_mixup_counts_the_larger_class():
    batches = loader(X, labels(N), collate_fn=mixed)
    result = go(made(mlp, 1), batches, test=loader(X, labels(N)), epochs=1, learning_rate=1e-12)
    student = made(mlp, 1)
    right = sum(int((student(x).argmax(1) == y.argmax(1)).sum()) for x, y in batches)
    assert result.history["train_accuracy"].tolist() == [pytest.approx(right / N)]


def test_regression_chooses_the_epoch_with_the_smallest_error():
    data = loader(X, X.sum(1, keepdim=True))
    students = []

    class Keep:
        def on_epoch(self, moment):
            students.append(F.mse_loss(moment.student(X), X.sum(1, keepdim=True)).item())

    for metric, column in ((None, "test_loss"), (MeanSquaredError(), "test_mean_squared_error")):
        students.clear()
        student = made(partial(mlp, outputs=1), 1)
        result = go(student, data, supervision=nn.MSELoss(), metric=metric, epochs=6, callbacks=[Keep()])
        np.testing.assert_allclose(result.history[column], students, rtol=1e-4)
        assert result.best_epoch == 1 + int(np.argmin(students)) > 1
        assert result.best_score == pytest.approx(min(students), rel=1e-4)
        student.load_state_dict(result.best_state)
        assert F.mse_loss(student(X), X.sum(1, keepdim=True)).item() == pytest.approx(min(students), rel=1e-4)


@pytest.mark.parametrize(
    ("metric", "supervision", "target", "value"),
    [
        (R2Score(), nn.MSELoss(), X.sum(1, keepdim=True), lambda o, y: 1 - F.mse_loss(o, y) / y.var(correction=0)),
        (MulticlassF1Score(2, average="macro"), "cross_entropy", labels(N, classes=2), None),
    ],
)
def test_a_metric_of_torchmetrics_is_the_score(metric, supervision, target, value):
    outputs = 1 if target.is_floating_point() else 2
    result = go(made(partial(mlp, outputs=outputs), 1), loader(X, target), supervision=supervision, metric=metric)
    with torch.no_grad():
        output = result.student(X)
    if value is None:
        from sklearn.metrics import f1_score

        expected = f1_score(target, output.argmax(1), average="macro")
    else:
        expected = float(value(output, target))
    assert result.last_score == pytest.approx(expected, rel=1e-4)
    assert result.higher_is_better


@pytest.mark.parametrize(
    ("output", "target", "supervision", "message"),
    [
        (3, labels(N, classes=5), "cross_entropy", r"`train` has the label 4, but the student has 3 classes"),
        (3, labels(N) - 1, "cross_entropy", r"`train` has the label -1"),
        (1, numbers(N), nn.MSELoss(), r"\(8, 1\) and the target \(8,\) in `train`, so each output would be compared"),
        (3, numbers(N, 3), "cross_entropy", r"no probabilities .*BCEWithLogitsLoss.*MSELoss"),
        (1, numbers(N, 1), "cross_entropy", r"no probabilities .*MSELoss"),
        (3, F.one_hot(labels(N), 3), "cross_entropy", r"one-hot: use target\.argmax\(1\)"),
        (3, labels(N, 1), "cross_entropy", r"squeeze\(1\)"),
        (3, labels(N).int(), "cross_entropy", r"int32"),
        (
            3,
            labels(N, 3, classes=2),
            nn.BCEWithLogitsLoss(),
            r"bce_with_logits_loss.* fails on a batch of `train`.*int64",
        ),
    ],
)
def test_targets_that_do_not_fit_get_a_message(output, target, supervision, message):
    with pytest.raises((ValueError, TypeError), match=message):
        go(made(partial(mlp, outputs=output), 1), loader(X, target), supervision=supervision)


def test_test_labels_beyond_the_classes_get_a_message():
    with pytest.raises(ValueError, match=r"`test` has the label 7, but the student has 3 classes"):
        go(made(mlp, 1), loader(X, labels(N)), test=loader(X, labels(N).clamp(max=1) + 6), epochs=1)


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


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_models_of_hugging_face_learn_as_with_their_own_loss(name):
    build, columns = HUGGING_FACE[name]
    batches = DataLoader(Rows(**columns), BATCH)
    result = go(made(build, 1), batches, epochs=1)
    hand = by_hand(made(build, 1), batches, lambda student, batch: student(**batch).loss, epochs=1)
    assert_same(result.student, hand)


def test_accuracy_of_tokens_leaves_out_the_padding():
    build, columns = HUGGING_FACE["token classes"]
    result = go(made(build, 1), DataLoader(Rows(**columns), BATCH), epochs=1)
    with torch.no_grad():
        found = result.student(**TEXT).logits.argmax(-1)
    assert result.last_accuracy == pytest.approx((found == TAGS)[TAGS != -100].float().mean().item())


def test_next_words_are_scored_by_their_predictions():
    build, columns = HUGGING_FACE["next words"]
    result = go(made(build, 1), DataLoader(Rows(**columns), BATCH), epochs=1)
    with torch.no_grad():
        found, true = result.student(**TEXT).logits[:, :-1].argmax(-1), columns["labels"][:, 1:]
    assert result.last_accuracy == pytest.approx((found == true)[true != -100].float().mean().item())


def kd(student, teacher):
    """Hinton's loss at temperature 4 with weight 1, as `KDLoss` has it."""
    t = 4.0
    return t * t * F.kl_div((student / t).log_softmax(1), (teacher / t).softmax(1), reduction="batchmean")


KD = KDLoss(weight=1.0, temperature=4.0)


@pytest.mark.parametrize(
    "data",
    [
        DataLoader(X, BATCH),  # type: ignore[arg-type]
        loader(X),
        loader(X, labels(N)),
    ],
    ids=["bare inputs", "tuples of one", "labels that are not needed"],
)
def test_without_labels(data):
    teacher = made(mlp, 2)
    result = go(made(mlp, 1), data, teacher, KD, supervision=None)
    hand = by_hand(made(mlp, 1), X.split(BATCH), lambda student, x: kd(student(x), teacher(x).detach()))
    assert_same(result.student, hand)
    assert "cross_entropy" not in result.history
    assert result.teacher_score is None


def test_embeddings_of_sentences_without_labels():
    def mean(model, batch):
        states = model(**batch).last_hidden_state
        real = batch["attention_mask"][..., None].float()
        return (states * real).sum(1) / real.sum(1)

    def apart(student, teacher, _target=None):
        return F.mse_loss(student.logits, teacher.logits)

    teacher, data = made(partial(bert, BertModel), 2).eval(), DataLoader(Rows(**TEXT), BATCH)
    result = go(made(partial(bert, BertModel), 1), data, teacher, apart, supervision=None, forward=mean)
    hand = by_hand(
        made(partial(bert, BertModel), 1), data,
        lambda student, batch: F.mse_loss(mean(student, batch), mean(teacher, batch).detach()),
    )  # fmt: skip
    assert_same(result.student, hand)


SMALL = X[:, :2]


@pytest.mark.parametrize(
    ("inputs", "forward"),
    [
        ((SMALL, X), {"student": lambda model, pair: model(pair[0]), "teacher": lambda model, pair: model(pair[1])}),
        ({"student": SMALL, "teacher": X}, None),
    ],
    ids=["pairs", "dicts"],
)
def test_inputs_of_their_own_for_teacher_and_student(inputs, forward):
    class Both(Dataset):
        def __len__(self):
            return N

        def __getitem__(self, i):
            one = [x[i] for x in inputs] if isinstance(inputs, tuple) else {k: x[i] for k, x in inputs.items()}
            return one, labels(N)[i]

    teacher, build = made(mlp, 2), partial(mlp, inputs=2)
    result = go(made(build, 1), DataLoader(Both(), BATCH), teacher, KD, forward=forward)
    hand = by_hand(
        made(build, 1), loader(SMALL, X, labels(N)),
        lambda student, batch: F.cross_entropy(student(batch[0]), batch[2])
        + kd(student(batch[0]), teacher(batch[1]).detach()),
    )  # fmt: skip
    assert_same(result.student, hand)


def test_a_network_of_two_inputs():
    class Two(Dataset):
        def __len__(self):
            return N

        def __getitem__(self, i):
            return (X[i], X.flip(0)[i]), labels(N)[i]

    result = go(made(Pair, 1), DataLoader(Two(), BATCH))
    hand = by_hand(
        made(Pair, 1), loader(X, X.flip(0), labels(N)), lambda student, b: F.cross_entropy(student(b[0], b[1]), b[2])
    )
    assert_same(result.student, hand)


def test_several_teachers_teach_the_mean_of_their_logits():
    teachers = [made(mlp, 2), made(mlp, 3)]
    result = go(made(mlp, 1), loader(X, labels(N)), teachers, KD)
    hand = by_hand(
        made(mlp, 1), loader(X, labels(N)),
        lambda student, b: F.cross_entropy(student(b[0]), b[1])
        + kd(student(b[0]), torch.stack([one(b[0]) for one in teachers]).mean(0).detach()),
    )  # fmt: skip
    assert_same(result.student, hand)
    with torch.no_grad():
        right = torch.stack([one(X) for one in teachers]).mean(0).argmax(1) == labels(N)
    assert result.teacher_score == pytest.approx(right.float().mean().item())


def test_several_teachers_have_taps_of_their_own():
    shapes = []

    def compare(student, teacher, _target=None):
        shapes.append([tuple(one.shape) for one in (*student.features, *teacher.features)])
        return sum((x.mean() - y.mean()).square() for x, y in zip(student.features, teacher.features, strict=True))

    teachers = [made(mlp, 2), nn.Sequential(nn.Linear(4, 3))]
    go(
        made(mlp, 1), loader(X, labels(N)), teachers, compare, epochs=1,
        student_layers=["0"], teacher_layers=[["1"], ["0"]],
    )  # fmt: skip
    assert shapes[-1] == [(8, 8), (8, 8), (8, 8), (8, 3)]


@pytest.mark.parametrize("sampled", [False, True])
def test_samples_with_an_index(sampled):
    index = torch.arange(N)
    sampler = WeightedRandomSampler([1.0] * N, N, generator=torch.Generator().manual_seed(0)) if sampled else None
    data = DataLoader(TensorDataset(X, labels(N), index), BATCH, sampler=sampler)
    odd = DataLoader(TensorDataset(X, labels(N), index), 23)  # the last batch has one sample
    result = go(made(mlp, 1), data, test=odd)
    with torch.no_grad():
        assert result.last_accuracy == pytest.approx((result.student(X).argmax(1) == labels(N)).float().mean().item())


def test_data_without_length():
    data = DataLoader(Stream(), BATCH)
    result = go(made(mlp, 1), data, max_steps=4)
    batches = [*loader(X, labels(N)), next(iter(data))]
    hand = by_hand(made(mlp, 1), batches, lambda student, b: F.cross_entropy(student(b[0]), b[1]), epochs=1)
    assert_same(result.student, hand)
    with pytest.raises(TypeError, match=r"no length.*max_steps"):
        go(made(mlp, 1), data)


def test_data_without_length_resume_to_the_same_bits(tmp_path):
    class Stop:
        def on_step(self, moment):
            if moment.step == 3:
                raise KeyboardInterrupt

    options = {"max_steps": 5, "checkpoint_steps": 1}
    whole = go(made(mlp, 1), DataLoader(Stream(), BATCH), **options)
    student = made(mlp, 1)
    with pytest.raises(KeyboardInterrupt):
        go(student, DataLoader(Stream(), BATCH), output_dir=tmp_path, callbacks=[Stop()], **options)
    resumed = go(made(mlp, 1), DataLoader(Stream(), BATCH), output_dir=tmp_path, callbacks=[], **options)
    assert all(torch.equal(value, whole.student.state_dict()[k]) for k, value in resumed.student.state_dict().items())


def test_without_test_data():
    result = go(made(mlp, 1), loader(X, labels(N)), test=None)
    assert not any(column.startswith("test") for column in result.history)
    assert all(torch.equal(value, result.best_state[k]) for k, value in result.student.state_dict().items())


def test_the_teacher_is_scored_first_and_a_teacher_at_chance_is_noted():
    data = loader(X, (X[:, 0] > 0).long())
    teacher = made(partial(mlp, outputs=2), 2)
    by_hand(teacher, data, lambda student, b: F.cross_entropy(student(b[0]), b[1]), epochs=200)
    with torch.no_grad():
        expected = (teacher(X).argmax(1) == (X[:, 0] > 0)).float().mean().item()
    result = go(made(partial(mlp, outputs=2), 1), data, teacher, KD)
    assert result.teacher_score == pytest.approx(expected)
    assert not result.notes
    untrained = go(made(partial(mlp, outputs=2), 1), data, made(partial(mlp, outputs=2), 5), KD)
    assert "no better than chance (2 classes)" in untrained.notes[0]


def test_a_teacher_of_other_classes_teaches_features():
    teacher = made(partial(mlp, outputs=7), 2)
    layers = {"student_layers": ["1"], "teacher_layers": ["1"]}
    result = go(made(mlp, 1), loader(X, labels(N)), teacher, FeatureCKALoss(), **layers)
    assert result.history["features"].between(0, 1).all()


def test_padding_does_not_change_the_loss_of_hidden_states():
    build = partial(bert, BertForSequenceClassification, num_labels=3)
    layers = [f"bert.encoder.layer.{i}" for i in range(2)]
    other = {"input_ids": IDS.masked_fill(MASK == 0, 1), "attention_mask": MASK, "labels": labels(N)}
    found = []
    for columns in ({**TEXT, "labels": labels(N)}, other):
        result = go(
            made(build, 1), DataLoader(Rows(**columns), BATCH), made(build, 2).eval(), HiddenStateCKALoss(), epochs=1,
            student_layers=layers,
        )  # fmt: skip
        found.append(result.history["hidden_states"].item())
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    auto = go(
        made(build, 1), DataLoader(Rows(**other), BATCH), made(build, 2).eval(), HiddenStateCKALoss(), epochs=1
    )  # fmt: skip
    assert auto.history["hidden_states"].item() == pytest.approx(found[1], abs=1e-5)


@pytest.mark.parametrize("name", ["token classes", "next words"])
def test_microbatches_with_unequal_numbers_of_tokens_are_the_whole_batch(name):
    build, columns = HUGGING_FACE[name]
    data = DataLoader(Rows(**columns), BATCH)
    whole = go(made(build, 1), data, epochs=1)
    parts = go(made(build, 1), data, epochs=1, accumulation_steps=4)
    assert_same(parts.student, whole.student)
    assert parts.history["train_loss"].item() == pytest.approx(whole.history["train_loss"].item(), rel=1e-5)


def test_microbatches_with_class_weights_are_the_whole_batch():
    whole = go(made(mlp, 1), loader(X, labels(N)), supervision=SMOOTH)
    parts = go(made(mlp, 1), loader(X, labels(N)), supervision=SMOOTH, accumulation_steps=4)
    assert_same(parts.student, whole.student)


def test_the_loss_of_tokens_on_the_test_data_is_the_mean_over_tokens():
    from cka_probe.distill.training.evaluation import Evaluation

    build, columns = HUGGING_FACE["token classes"]
    data = DataLoader(Rows(**columns), BATCH)
    result = go(made(build, 1), data, epochs=1, evaluation=Evaluation(columns=("loss",)))
    with torch.no_grad():
        expected = F.cross_entropy(result.student.eval()(**TEXT).logits.transpose(1, 2), TAGS)
    assert result.history["test_loss"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("target", ["regression", "tokens"])
def test_the_teachers_cache_does_not_change_the_run(target, tmp_path):
    if target == "regression":
        data, build, options = TensorDataset(X, numbers(N, 1)), partial(mlp, outputs=1), {"supervision": nn.MSELoss()}
    else:
        build, columns = HUGGING_FACE["token classes"]
        data, options = Rows(**columns), {}

    def apart(student, teacher, _target=None):
        return F.mse_loss(student.logits, teacher.logits)

    teacher = made(build, 2).eval()
    plain, cached = (
        go(made(build, 1), data, teacher, apart, batch_size=BATCH, teacher_cache=place, **options)
        for place in (None, tmp_path)
    )
    assert_same(cached.student, plain.student)


def test_a_supervision_with_parameters_is_refused():
    class Learned(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, output, target):
            return F.cross_entropy(self.scale * output, target)

    with pytest.raises(ValueError, match=r"`supervision` \(learned\) has parameters"):
        go(made(mlp, 1), loader(X, labels(N)), supervision=Learned())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"supervision": nn.CrossEntropyLoss(label_smoothing=0.2)}, "supervision"),
        ({"metric": MulticlassF1Score(3)}, "metric"),
        ({"forward": lambda model, x: 2 * model(x)}, "forward"),
    ],
)
def test_a_run_with_another_task_is_refused_by_name(change, named, tmp_path):
    go(made(mlp, 1), loader(X, labels(N)), output_dir=tmp_path, epochs=1)
    with pytest.raises(ValueError, match=rf"other settings: .*{named}"):
        go(made(mlp, 1), loader(X, labels(N)), output_dir=tmp_path, epochs=1, **change)


@pytest.mark.parametrize("parts", [1, 4])
def test_a_batch_without_labels_among_others(parts):
    some = labels(N).masked_fill(torch.arange(N) < BATCH + 5, -100)
    teacher = made(mlp, 2)
    result = go(made(mlp, 1), loader(X, some), teacher, KD, accumulation_steps=parts)

    def objective(student, batch):
        supervised = 0.0 if (batch[1] == -100).all() else F.cross_entropy(student(batch[0]), batch[1])
        return supervised + kd(student(batch[0]), teacher(batch[0]).detach())

    assert_same(result.student, by_hand(made(mlp, 1), loader(X, some), objective))
    assert result.history["train_loss"].notna().all()


def test_microbatches_of_which_some_have_no_labels_are_the_whole_batch():
    some = labels(N).masked_fill(torch.arange(N) % BATCH < 3, -100)
    whole = go(made(mlp, 1), loader(X, some))
    parts = go(made(mlp, 1), loader(X, some), accumulation_steps=4)
    assert_same(parts.student, whole.student)


def test_the_average_of_the_weights_is_run_by_forward_too():
    class Twice(Squeezed):
        def forward(self, x, y):
            return self.net(x + y)

    def forward(model, x):
        return model(x, x)

    data = loader(X, numbers(N, 1))
    result = go(made(Twice, 1), data, supervision=nn.MSELoss(), forward=forward, ema=0.5)
    with torch.no_grad():
        expected = F.mse_loss(result.student(X, X), numbers(N, 1)).item()
    assert result.last_score == pytest.approx(expected, rel=1e-5)


def test_layers_are_matched_with_inputs_of_their_own():
    ways = {"student": lambda model, x: model(x[:, :2]), "teacher": lambda model, x: model(x)}
    build = partial(mlp, inputs=2)
    result = go(made(build, 1), loader(X, labels(N)), made(mlp, 2), FeatureCKALoss(), forward=ways)
    named = go(made(build, 1), loader(X, labels(N)), made(mlp, 2), FeatureCKALoss(), forward=ways, student_layers=["0"])
    assert_same(result.student, named.student)


@pytest.mark.parametrize("options", [{"epochs": 2}, {"max_steps": 7}])
def test_a_shuffled_loader_without_a_generator_resumes_to_the_same_bits(options, tmp_path):
    class Stop:
        def __init__(self, step):
            self.step = step

        def on_step(self, moment):
            if moment.step == self.step:
                raise KeyboardInterrupt

    def build():
        return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 3))

    options = {**options, "checkpoint_steps": 1, "test": loader(X, labels(N))}
    whole = go(made(build, 1), loader(X, labels(N), shuffle=True), **options)
    for step in (2, 3, 5):
        place = tmp_path / str(step)
        with pytest.raises(KeyboardInterrupt):
            go(made(build, 1), loader(X, labels(N), shuffle=True), output_dir=place, callbacks=[Stop(step)], **options)
        end = go(made(build, 1), loader(X, labels(N), shuffle=True), output_dir=place, **options).student
        assert all(torch.equal(value, whole.student.state_dict()[name]) for name, value in end.state_dict().items())
