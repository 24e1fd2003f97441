"""`distill` for tasks other than the classification of images, each beside a plain loop of torch written here."""

import copy

import pytest
import torch
from tasks_by_hand import N, Tagger, integers, labels, linear, same_weights, seeded, train, trained_by_hand, x
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchmetrics import MeanAbsoluteError, MetricCollection, R2Score

from cka_probe.distill.baselines import KDLoss

mixed = 0.7 * functional.one_hot(labels, 4) + 0.3 * functional.one_hot(integers(2, 4, N), 4)
several = (seeded(3, N, 4) > 0).float()
weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5, 1.0]), label_smoothing=0.1)

TARGETS = {
    "class weights and label smoothing": (weighted, labels, 4),
    "an ignored class": (nn.CrossEntropyLoss(ignore_index=0), labels, 4),
    "soft labels of mixup": ("cross_entropy", mixed, 4),
    "several labels at once": (nn.BCEWithLogitsLoss(), several, 4),
    "a number for each sample": (nn.MSELoss(), seeded(4, N, 1), 1),
    "three numbers for each sample": (functional.l1_loss, seeded(5, N, 3), 3),
    "a loss of one's own": (lambda output, target: (output.squeeze(1) - target).abs().mean(), seeded(6, N), 1),
}


@pytest.mark.parametrize("task", TARGETS)
@pytest.mark.parametrize("parts", [1, 3])
def test_each_kind_of_target_is_trained_as_by_a_plain_loop(task, parts):
    supervision, target, outputs = TARGETS[task]
    loss = functional.cross_entropy if supervision == "cross_entropy" else supervision
    student, hand = linear(outputs=outputs), linear(outputs=outputs)
    data = TensorDataset(x, target)
    result = train(student, data, data, supervision=supervision, accumulation_steps=parts)
    values = trained_by_hand(hand, 3, lambda net: loss(net(x), target))
    same_weights(student, hand)
    assert result.history["train_loss"].tolist() == pytest.approx(values, rel=1e-5)


def test_tokens_that_do_not_count_have_no_gradient():
    ids, tags = integers(7, 20, N, 5), integers(8, 5, N, 5)
    tags[::2, 3:] = -100
    data = TensorDataset(ids, tags)
    for parts in (1, 4):
        student, hand = Tagger(), Tagger()
        result = train(student, data, data, accumulation_steps=parts)
        trained_by_hand(hand, 3, lambda net: functional.cross_entropy(net(ids).flatten(0, 1), tags.flatten()))
        same_weights(student, hand)
    counted = tags != -100
    right = (hand(ids).argmax(-1) == tags)[counted].double().mean()
    assert result.last_accuracy == pytest.approx(float(right))


def test_accuracy_of_soft_labels_counts_the_largest_one():
    data = TensorDataset(x, mixed)
    student = linear()
    start = copy.deepcopy(student)
    result = train(student, data, data, steps=1)
    assert result.history["train_accuracy"][0] == pytest.approx(
        float((start(x).argmax(1) == mixed.argmax(1)).double().mean())
    )
    assert result.last_accuracy == pytest.approx(float((student(x).argmax(1) == mixed.argmax(1)).double().mean()))


@pytest.mark.parametrize(
    ("metric", "column", "by_hand"),
    [
        (None, "test_loss", functional.mse_loss),
        (MeanAbsoluteError(), "test_mean_absolute_error", functional.l1_loss),
        (R2Score(), "test_r2_score", lambda o, t: 1 - ((o - t) ** 2).sum() / ((t - t.mean()) ** 2).sum()),
    ],
)
def test_the_metric_chooses_the_best_epoch_of_a_regression(metric, column, by_hand):
    target = seeded(10, N, 1)
    states, data = [], TensorDataset(x, target)
    # A rate that overshoots: the last epoch is the worst.
    student = linear(outputs=1)

    class Watch:
        def on_epoch(self, moment):
            states.append(float(by_hand(student(x).detach(), target)))

    result = train(
        student, data, data, supervision=nn.MSELoss(), metric=metric, learning_rate=0.4, steps=8,
        schedule=lambda epoch, _: 1.0 if epoch < 4 else 4.0, callbacks=[Watch()],
    )  # fmt: skip
    assert result.history[column].tolist() == pytest.approx(states, rel=1e-4, abs=1e-6)
    best = max(states) if column == "test_r2_score" else min(states)
    assert result.best_score == pytest.approx(best, rel=1e-4)
    assert result.best_epoch == states.index(best) + 1
    assert result.best_epoch < 8
    chosen = linear(outputs=1)
    chosen.load_state_dict(result.best_state)
    assert float(by_hand(chosen(x).detach(), target)) == pytest.approx(best, rel=1e-4)
    with pytest.raises(ValueError, match="no accuracy"):
        _ = result.last_accuracy


WRONG = [
    (labels.clone().fill_(4), {}, "`train` has the label 4, but the student has 4 classes"),
    (labels[:, None], {}, r"squeeze\(1\)"),
    (functional.one_hot(labels, 4), {}, "look one-hot"),
    (seeded(0, N), {}, r"MSELoss"),
    (several, {}, "BCEWithLogitsLoss"),
    (seeded(0, N), {"supervision": nn.MSELoss()}, r"target.unsqueeze\(1\)"),
    (seeded(0, N), {"supervision": functional.l1_loss}, r"target.unsqueeze\(1\)"),
    (seeded(0, N, 3), {"supervision": nn.MSELoss()}, "fails on a batch of `train`"),
    (labels, {"supervision": nn.CrossEntropyLoss(reduction="none")}, "must return a scalar"),
]


@pytest.mark.parametrize("case", range(len(WRONG)))
def test_targets_that_do_not_fit_are_refused(case):
    target, options, message = WRONG[case]
    student = linear(outputs=1 if options and case < 7 else 4)
    with pytest.raises(ValueError, match=message):
        train(student, TensorDataset(x, target), TensorDataset(x, labels), **options)


def test_labels_of_the_test_data_are_checked_too():
    with pytest.raises(ValueError, match="`test` has the label 9"):
        train(linear(), TensorDataset(x, labels), TensorDataset(x, labels + 6))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"supervision": nn.MSELoss}, TypeError, "make an object of it"),
        ({"supervision": "mse"}, TypeError, "`supervision` must be"),
        ({"metric": MetricCollection([MeanAbsoluteError()])}, TypeError, "not a collection"),
        ({"metric": MeanAbsoluteError}, TypeError, "make an object of it"),
        ({"metric": 3}, TypeError, "torchmetrics.Metric"),
        ({"supervision": None}, ValueError, "nothing to minimise"),
        ({"forward": {"pupil": len}}, ValueError, '"student" and "teacher"'),
        ({"forward": 3}, TypeError, "`forward` must be"),
        ({"max_steps": 0}, ValueError, "`max_steps`"),
    ],
)
def test_arguments_of_the_wrong_kind_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        train(linear(), TensorDataset(x, labels), TensorDataset(x, labels), **options)


def test_data_without_targets():
    teacher, student, hand = linear(5), linear(), linear()
    kd = KDLoss()
    for data in (TensorDataset(x), [row for row in x]):
        net = copy.deepcopy(student)
        result = train(net, data, teacher=teacher, loss=kd, supervision=None)
        assert result.score_column is None
        assert "no score" in repr(result)
        assert result.best_epoch == 3
    trained_by_hand(hand, 3, lambda own: kd(own(x), teacher(x).detach()))
    same_weights(net, hand)
    with pytest.raises(TypeError, match="supervision=None"):
        train(copy.deepcopy(student), TensorDataset(x), teacher=teacher, loss=kd)


def test_teacher_and_student_take_different_parts_of_the_input():
    other = seeded(11, N, 3)
    teacher, student, hand = linear(5, inputs=3), linear(), linear()
    data = [((a, b), y) for a, b, y in zip(x, other, labels, strict=True)]
    forward = {"student": lambda net, both: net(both[0]), "teacher": lambda net, both: net(both[1])}
    kd = KDLoss()
    result = train(student, data, data, teacher=teacher, loss=kd, forward=forward)
    trained_by_hand(hand, 3, lambda own: functional.cross_entropy(own(x), labels) + kd(own(x), teacher(other).detach()))
    same_weights(student, hand)
    assert result.teacher_score == pytest.approx(float((teacher(other).argmax(1) == labels).double().mean()))


def test_several_teachers_give_the_mean_of_their_logits_and_all_their_features():
    teachers, student, hand = [linear(5), linear(6)], linear(), linear()
    data, kd = TensorDataset(x, labels), KDLoss()
    train(student, data, data, teacher=teachers, loss=kd)
    mean = (teachers[0](x) + teachers[1](x)).detach() / 2
    trained_by_hand(hand, 3, lambda own: functional.cross_entropy(own(x), labels) + kd(own(x), mean))
    same_weights(student, hand)

    nets = [nn.Sequential(linear(seed, outputs=8), nn.Tanh(), linear(seed, 8, 4)) for seed in range(3)]
    seen = []

    def loss(student, teacher, target):
        seen.append([tuple(f.shape) for f in (*student.features, *teacher.features)])
        apart = [(a - b).square().mean() for a, b in zip(student.features, teacher.features, strict=True)]
        return sum(apart)

    hand = copy.deepcopy(nets[0])
    train(nets[0], data, data, teacher=nets[1:], loss=loss, student_layers=["0"], teacher_layers=[["0"], ["1"]])
    with torch.no_grad():
        first, second = nets[1][0](x), nets[2][:2](x)
    trained_by_hand(
        hand,
        3,
        lambda own: (
            functional.cross_entropy(own(x), labels)
            + (own[0](x) - first).square().mean()
            + (own[0](x) - second).square().mean()
        ),
    )
    same_weights(nets[0], hand)
    with pytest.raises(ValueError, match="2 lists for 1 teachers"):
        train(nets[0], data, data, teacher=nets[1], loss=loss, teacher_layers=[["0"], ["1"]], student_layers=["0"])


def test_a_third_part_that_numbers_the_samples_is_not_an_input():
    student, hand = linear(), linear()
    data = [(a, b, i) for i, (a, b) in enumerate(zip(x, labels, strict=True))]
    train(student, data, data)
    trained_by_hand(hand, 3, lambda own: functional.cross_entropy(own(x), labels))
    same_weights(student, hand)
    # Inputs, mask and label in a row are no such data: the mask would be taken for the label.
    ids, mask = integers(12, 20, N, 5), torch.ones(N, 5, dtype=torch.long)
    with pytest.raises(TypeError, match=r"\(\(a, b\), target\)"):
        train(Tagger(), TensorDataset(ids, mask, labels), TensorDataset(ids, mask, labels))


class Stream(IterableDataset):
    """Sixteen samples without a length."""

    def __iter__(self):
        yield from zip(x, labels, strict=True)


def test_a_loader_without_length_is_read_as_often_as_the_steps_need(tmp_path):
    loader = DataLoader(Stream(), batch_size=8)
    with pytest.raises(TypeError, match="`max_steps=`"):
        train(linear(), loader, TensorDataset(x, labels))
    student, hand = linear(), linear()
    result = train(
        student, loader, TensorDataset(x, labels), max_steps=5, schedule=lambda step, steps: 1 - step / steps
    )
    descent = torch.optim.SGD(hand.parameters(), lr=0.1)
    for step in range(5):
        part = slice(0, 8) if step % 2 == 0 else slice(8, 16)
        descent.param_groups[0]["lr"] = 0.1 * (1 - step / 5)
        descent.zero_grad()
        functional.cross_entropy(hand(x[part]), labels[part]).backward()
        descent.step()
    same_weights(student, hand)
    assert len(result.history) == 1


def test_a_stopped_run_of_steps_is_resumed_to_the_same_bits(tmp_path):
    class Stop:
        def on_step(self, moment):
            if moment.step == 3 and self.armed:
                raise KeyboardInterrupt

    options = {"max_steps": 7, "batch_size": 8, "checkpoint_steps": 1, "supervision": nn.CrossEntropyLoss()}
    data, whole, stop = TensorDataset(x, labels), linear(), Stop()
    stop.armed = False
    train(whole, data, data, callbacks=[stop], **options)
    stop.armed = True
    with pytest.raises(KeyboardInterrupt):
        train(linear(), data, data, callbacks=[stop], output_dir=tmp_path, **options)
    stop.armed = False
    again = linear()
    result = train(again, data, data, callbacks=[stop], output_dir=tmp_path, **options)
    assert any("resumed" in note for note in result.notes)
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="supervision"):
        train(linear(), data, data, output_dir=tmp_path, **{**options, "supervision": nn.MultiMarginLoss()})
    with pytest.raises(ValueError, match="metric"):
        train(linear(), data, data, output_dir=tmp_path, **options, metric=MeanAbsoluteError())


def test_the_teachers_own_score_is_the_ceiling():
    data = TensorDataset(x, labels)
    perfect = linear()
    trained_by_hand(perfect, 3000, lambda own: functional.cross_entropy(own(x), labels), rate=1.0)
    result = train(linear(), data, data, teacher=perfect, loss=KDLoss())
    assert result.teacher_score == float((perfect(x).argmax(1) == labels).double().mean()) > 0.9
    assert "teacher" in repr(result)
    assert not any("chance" in note for note in result.notes)
    wrong = linear()
    wrong.weight.data.zero_()  # the answer is the same for all samples
    result = train(linear(), data, data, teacher=wrong, loss=KDLoss())
    assert any("no better than chance (4 classes)" in note for note in result.notes)
    # A teacher of features may have other classes: it has no score.
    net, other = (nn.Sequential(linear(s, outputs=8), nn.ReLU(), linear(s, 8, k)) for s, k in ((0, 4), (1, 7)))
    result = train(net, data, data, teacher=other, loss=features_apart, student_layers=["0"])
    assert result.teacher_score is None


def features_apart(student, teacher, target):
    return (student.features[0] - teacher.features[0]).square().mean()
