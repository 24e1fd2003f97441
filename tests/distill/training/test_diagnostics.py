"""Diagnostics have the right numbers and do not change the run."""

import numpy as np
import pandas as pd
import pytest
import torch
from small_runs import Mimic, Noisy, images, network, run, weights
from torch.nn import functional

import cka_probe
from cka_probe.distill.baselines import KDLoss
from cka_probe.distill.training.diagnostics import Diagnostics


def go(**kwargs):
    options = {"teacher": network(2), "loss": Mimic(), "student_layers": ["norm", "fc"], "epochs": 3, **kwargs}
    return run(network(1, dropout=0.3), train=Noisy(images()), **options)


def test_they_do_not_change_the_run(tmp_path):
    look = Diagnostics(every=1, samples=20, heatmap_every=2, heatmap_layers="leaves")
    plain, watched = go(), go(diagnostics=look, output_dir=tmp_path, log_with="tensorboard")
    assert torch.equal(weights(plain.student), weights(watched.student))
    assert sorted(path.name for path in (tmp_path / "heatmaps").iterdir()) == ["epoch_002.npz", "epoch_002.png"]
    matrix = cka_probe.SimilarityMatrix.load(tmp_path / "heatmaps" / "epoch_002.npz")
    assert matrix.rows == ("stem", "norm", "act", "drop", "fc")
    frame = pd.read_csv(tmp_path / "diagnostics.csv", keep_default_na=False)
    assert len(frame) == len(watched.diagnostics) == 3 * (2 + 3 + 3)
    assert frame["epoch"].tolist() == sorted(frame["epoch"])
    assert list((tmp_path / "tensorboard").iterdir())


def test_cka_of_the_pairs_is_that_of_compare():
    teacher = network(2)
    result = go(teacher=teacher, diagnostics=Diagnostics(every=2, samples=24))
    found = result.diagnostics.query("quantity == 'cka' and epoch == 3")
    x = images(24, seed=1).tensors[0]
    with torch.no_grad():
        for model in (teacher, result.student):
            model.eval()
        features = []
        for model in (teacher, result.student):
            norm = model.norm(model.stem(x))
            features.append((norm.flatten(1).clone(), model.fc(norm.relu().mean((2, 3)))))
    batches = range(0, 24, 8)
    for line, x_all, y_all in zip(found.itertuples(), *features, strict=True):
        sums = np.zeros(3)
        for start in batches:
            pair = [z[start : start + 8].double() for z in (x_all, y_all)]
            for i, (a, b) in enumerate([(0, 1), (0, 0), (1, 1)]):
                sums[i] += float(cka_probe.hsic(pair[a], pair[b]))
        assert line.value == pytest.approx(sums[0] / np.sqrt(sums[1] * sums[2]), abs=1e-6)
        assert line.chance == 0.0
        assert line.standard_error > 0
    assert found["first"].tolist() == ["norm", "fc"]


def test_a_loss_on_logits_alone_compares_the_outputs():
    """Losses of logits tap no layer, but a table of several methods has diagnostics for all of them."""
    teacher = network(2)
    kept = go(teacher=teacher, loss=KDLoss(), student_layers=(), diagnostics=Diagnostics(every=3, samples=24))
    (line,) = kept.diagnostics.query("quantity == 'cka'").itertuples()
    assert (line.first, line.second) == ("model", "model")
    expected = cka_probe.compare(teacher, kept.student, images(24, seed=1).tensors[0].split(8), layers="fc")
    assert line.value == pytest.approx(expected.values[0, 0], abs=1e-6)


def test_gradient_cosines_by_hand():
    teacher, student = network(2), network(1)
    result = run(
        student, teacher, Mimic(), student_layers=["norm"], epochs=1, diagnostics=Diagnostics(every=5), train=images(8)
    )
    found = result.diagnostics.set_index(["quantity", "first", "second"])["value"]
    x, y = images(8).tensors
    student.train(), teacher.eval()

    def features(model):
        norm = model.norm(model.stem(x))
        return model.fc(norm.relu().mean((2, 3))), norm

    gradients = {}
    for name in ("cross_entropy", "logits", "features"):
        logits, norm = features(student)
        with torch.no_grad():
            teacher_logits, teacher_norm = features(teacher)
        term = {
            "cross_entropy": functional.cross_entropy(logits, y),
            "logits": 0.5 * functional.mse_loss(logits, teacher_logits),
            "features": 2.0 * functional.mse_loss(norm.mean((2, 3)), teacher_norm.mean((2, 3))),
        }[name]
        student.zero_grad()
        term.backward()
        gradients[name] = torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in student.parameters()]
        ).double()
        assert found["gradient norm", name, ""] == pytest.approx(float(gradients[name].norm()), rel=1e-5)
    for first, second in (("cross_entropy", "logits"), ("cross_entropy", "features"), ("logits", "features")):
        expected = functional.cosine_similarity(gradients[first], gradients[second], dim=0)
        assert found["gradient cosine", first, second] == pytest.approx(float(expected), abs=1e-5)


def test_bad_settings():
    with pytest.raises(ValueError, match="`every` must be at least 1"):
        Diagnostics(every=0)
    with pytest.raises(ValueError, match="`samples` must be at least 4"):
        Diagnostics(samples=2)
    with pytest.raises(ValueError, match="teacher is None"):
        run(diagnostics=Diagnostics())
    with pytest.raises(ValueError, match="heatmap_every needs an `output_dir`"):
        go(diagnostics=Diagnostics(heatmap_every=1))
    with pytest.raises(ValueError, match="`log_with`='tensorboard' needs an `output_dir`"):
        run(log_with="tensorboard")
