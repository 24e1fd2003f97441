"""The Hugging Face Trainer with a callback that compares at each evaluation; the training itself must not change."""

import copy

import torch
from situation import check, needs
from texts import SIZES, over_tokens, sentences

import cka_probe as cp


def trained(folder, history=None):
    transformers = needs("transformers", "hf")
    torch.manual_seed(0)
    net = transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES))
    start = copy.deepcopy(net)
    data = [
        {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor(i % 2)}
        for batch in sentences(8, (9, 9))
        for i, (ids, mask) in enumerate(zip(batch["input_ids"], batch["attention_mask"], strict=True))
    ]
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=4, per_device_train_batch_size=4, eval_strategy="steps", eval_steps=2,
        learning_rate=1e-2, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    callbacks = []
    if history:
        measured = cp.SimilarityHistory(start, sentences(), layers="blocks")
        history.append(measured)
        callbacks = [cp.trainer_callback(measured)]
    transformers.Trainer(net, arguments, train_dataset=data, eval_dataset=data[:8], callbacks=callbacks).train()
    return start, net


def test_a_comparison_at_each_evaluation(tmp_path):
    seen = [None]
    start, net = trained(tmp_path / "a", seen)
    history = seen[-1]
    assert list(history.matrices) == [2, 4]
    check(history.matrices[4], start, sentences(), net, features=over_tokens())
    assert not history.matrices[4].notes
    _, alone = trained(tmp_path / "b")
    for a, b in zip(net.parameters(), alone.parameters(), strict=True):
        assert torch.equal(a, b)
