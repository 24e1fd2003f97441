"""SimilarityHistory: results by training step, by hand and from the callbacks of Lightning and Hugging Face."""

import copy
import importlib.util
import sys

import numpy as np
import pytest
import torch
from small_networks import image_batches, small_network

import cka_probe as cp


def test_a_history_holds_the_result_of_compare_at_each_step():
    net, data = small_network(0), image_batches()
    history = cp.SimilarityHistory(copy.deepcopy(net), data)
    history.measure(net, step=0)
    with torch.no_grad():
        net[0].weight.normal_()
    net.train()
    history.measure(net, step=10)
    assert net.training
    np.testing.assert_allclose(np.diag(history.matrices[0].values), 1, atol=1e-6)
    expected = cp.compare(small_network(0), net, data, progress=False)
    np.testing.assert_array_equal(history.matrices[10].values, expected.values)
    frame = history.to_frame()
    assert list(frame.columns) == ["step", "row", "column", "value", "standard_error"]
    chosen = frame[(frame.step == 10) & (frame.row == "0") & (frame.column == "4")]
    assert chosen.value.item() == expected.values[0, 4]


def test_an_empty_history_gives_an_empty_frame():
    assert cp.SimilarityHistory(small_network(0), image_batches()).to_frame().empty


def test_the_hugging_face_trainer_measures_after_each_evaluation(tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, num_labels=2
    )
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config)
    generator = torch.Generator().manual_seed(0)
    rows = [
        {
            "input_ids": torch.randint(0, 30, (6,), generator=generator),
            "attention_mask": torch.ones(6, dtype=torch.long),
            "labels": torch.tensor(i % 2),
        }
        for i in range(16)
    ]
    data = [{key: torch.stack([row[key] for row in rows]) for key in ("input_ids", "attention_mask")}]
    history = cp.SimilarityHistory(copy.deepcopy(model), data, layers="blocks")
    trainer = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=str(tmp_path),
            num_train_epochs=2,
            per_device_train_batch_size=8,
            eval_strategy="epoch",
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=rows,
        eval_dataset=rows,
        callbacks=[cp.trainer_callback(history)],
    )
    trainer.train()
    assert list(history.matrices) == [2, 4]
    assert history.matrices[4].shape == (2, 2)


@pytest.mark.filterwarnings("ignore::FutureWarning:lightning")  # its own use of torch's trees
@pytest.mark.filterwarnings("ignore::UserWarning:lightning")  # advice on workers
def test_lightning_measures_after_each_validation(tmp_path):
    if importlib.util.find_spec("lightning") is None:
        pytest.skip("needs lightning")
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = small_network(0)

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, _index):
            return self(batch).square().mean()

        def validation_step(self, batch, _index):
            self(batch)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    module, data = Module(), image_batches(2)
    history = cp.SimilarityHistory(copy.deepcopy(module), data)
    trainer = lightning.Trainer(
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        default_root_dir=tmp_path,
        callbacks=[cp.lightning_callback(history)],
    )
    loader = torch.utils.data.DataLoader(data, batch_size=None)
    trainer.fit(module, loader, loader)
    assert list(history.matrices) == [2, 4]


def test_without_lightning_the_install_line_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning", None)
    history = cp.SimilarityHistory(small_network(0), image_batches())
    with pytest.raises(ModuleNotFoundError, match=r"^lightning_callback\(\) needs lightning.*: pip install lightning$"):
        cp.lightning_callback(history)


def test_a_history_says_what_it_holds():
    net = small_network(0)
    history = cp.SimilarityHistory(net, image_batches(), layers=["0", "2"])
    assert repr(history) == "<SimilarityHistory: nothing measured yet>"
    first = history.measure(net, step=3)
    mean = f"{first.values.mean():.3f}"
    assert repr(history) == f"<SimilarityHistory: cka, 2 x 2 layers at step 3; mean {mean}>"
    last = history.measure(small_network(1), step=9)
    assert repr(history).endswith(f"at 2 steps, 3 to 9; mean {mean} to {last.values.mean():.3f}>")
