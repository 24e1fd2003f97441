"""Models of Hugging Face, unlabelled data and sentences: the values are those of a loop by hand."""

from functools import partial

import pytest
import torch
from situations import (
    BATCH,
    HUGGING_FACE,
    KD,
    TAGS,
    TEXT,
    N,
    Rows,
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
)
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import (
    BertModel,
)


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
