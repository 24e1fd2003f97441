"""Other inputs, teachers and loaders: the values are those of a loop by hand."""

from functools import partial

import pytest
import torch
from situations import (
    BATCH,
    HUGGING_FACE,
    IDS,
    KD,
    MASK,
    SMOOTH,
    TAGS,
    TEXT,
    N,
    Pair,
    Rows,
    Squeezed,
    Stream,
    X,
    assert_same,
    bert,
    by_hand,
    go,
    kd,
    labels,
    loader,
    made,
    mlp,
    numbers,
)
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset, WeightedRandomSampler
from torchmetrics.classification import MulticlassF1Score
from transformers import (
    BertForSequenceClassification,
)

from cka_probe.distill.losses import FeatureCKALoss, HiddenStateCKALoss

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
