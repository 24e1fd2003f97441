"""`distill` with networks of transformers: tokens, padding, hidden states, images in dicts."""

import pytest
import torch
from tasks_by_hand import N, Tagger, integers, labels, seeded, train

from cka_probe.distill import LogitCKALoss, Outputs
from cka_probe.distill.losses.hidden_states import HiddenStateCKALoss


def test_a_causal_language_model_predicts_the_next_token():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=11,
        n_positions=8,
        n_embd=8,
        n_layer=1,
        n_head=1,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    student = GPT2LMHeadModel(config)
    ids = integers(9, 11, N, 8)
    own = float(student(input_ids=ids, labels=ids).loss.detach())
    result = train(student, [{"input_ids": i, "labels": i} for i in ids], [{"input_ids": i, "labels": i} for i in ids])
    assert result.history["train_loss"][0] == pytest.approx(own, rel=1e-5)
    assert any("causal language model" in note for note in result.notes)
    predicted = student(input_ids=ids).logits[:, :-1].argmax(-1)
    assert result.last_accuracy == pytest.approx(float((predicted == ids[:, 1:]).double().mean()))


def test_padding_masks_of_text_reach_the_loss():
    ids = integers(13, 20, N, 6)
    mask = (torch.arange(6) < integers(14, 4, N)[:, None] + 3).long()
    data = [{"input_ids": i, "attention_mask": m, "labels": torch.tensor(1)} for i, m in zip(ids, mask, strict=True)]
    seen = []

    def loss(student, teacher, target):
        seen.extend([student.mask, teacher.mask])
        return student.features[0].mean()

    def pooled(net, batch):
        return net(**batch).mean(1)

    for parts in (1, 2):
        train(
            Tagger(), data, data, teacher=Tagger(1), loss=loss, student_layers=["embed"], forward=pooled,
            accumulation_steps=parts, steps=1,
        )  # fmt: skip
    assert all(one is not None and one.shape[1] == 6 for one in seen)
    assert {tuple(row) for row in seen[-1].tolist()} <= {tuple(row) for row in mask.tolist()}


def test_hidden_states_of_a_small_bert_are_distilled_without_labels():
    from transformers import BertConfig, BertModel

    sizes = {"vocab_size": 20, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    teacher = BertModel(BertConfig(hidden_size=16, num_hidden_layers=2, **sizes)).eval()
    student = BertModel(
        BertConfig(
            hidden_size=8, num_hidden_layers=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **sizes
        )
    )
    ids = integers(15, 20, N, 6)
    mask = (torch.arange(6) < integers(16, 3, N)[:, None] + 4).long()
    data = [{"input_ids": i, "attention_mask": m} for i, m in zip(ids, mask, strict=True)]
    loss = HiddenStateCKALoss()
    with torch.no_grad():
        before = [net(input_ids=ids, attention_mask=mask).last_hidden_state for net in (student, teacher)]
    expected = float(loss(Outputs(features=(before[0],), mask=mask), Outputs(features=(before[1],), mask=mask)))
    result = train(
        student, data, teacher=teacher, loss=loss, supervision=None, student_layers=["encoder.layer.0"],
        teacher_layers=["encoder.layer.1"],
    )  # fmt: skip
    assert result.history["train_loss"][0] == pytest.approx(expected, rel=1e-4)
    assert result.history["train_loss"].is_monotonic_decreasing


def test_images_of_hugging_face_models_are_dicts():
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        image_size=8, patch_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        num_labels=4, num_channels=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    teacher, student = ViTForImageClassification(config), ViTForImageClassification(config)
    images = seeded(17, N, 1, 8, 8)
    data = [{"pixel_values": image, "labels": label} for image, label in zip(images, labels, strict=True)]
    own = float(student(pixel_values=images, labels=labels).loss.detach())
    result = train(student, data, data, teacher=teacher, loss=LogitCKALoss())
    assert result.history["cross_entropy"][0] == pytest.approx(own, rel=1e-5)
