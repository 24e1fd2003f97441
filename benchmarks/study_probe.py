"""Distillation without labels, across label sets: a teacher of clothes, a student that sees characters of fonts.

KD has no place here: the classes of the teacher are not those of the pictures. FCKA compares feature maps alone. The
student is judged by a linear probe: logistic regression on its pooled features, with the labels that it never saw.
"""

from __future__ import annotations

from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader, Dataset

from cka_probe.distill import CosineDecay, FeatureCKALoss, distill

__all__ = ["PROBED", "pooled", "probe", "unlabelled_student"]

PROBED = {"fcka_unlabelled": "FCKA without labels, probe", "untrained": "untrained, probe"}
"""The two rows, by name: after FCKA, and the first weights alone."""


def unlabelled_student(
    method: str, teacher: nn.Module, student: nn.Module, train: Dataset[Any], **options: Any
) -> nn.Module:
    """The student after FCKA with the teacher's maps; as it was for "untrained". No label is read."""
    if method == "fcka_unlabelled":
        distill(
            teacher, student, train, torch.utils.data.Subset(train, range(64)), FeatureCKALoss(), ce_weight=0.0,
            schedule=CosineDecay(), progress=False, **options,
        )  # fmt: skip
    return student


def pooled(network: nn.Module, data: Dataset[Any]) -> tuple[Any, Any]:
    """What the last linear layer of a network reads, (N, width), and the labels, (N,), as numpy arrays."""
    classifier, network.fc = network.fc, nn.Identity()
    network.eval()
    place = next(network.parameters()).device
    try:
        with torch.no_grad():
            found = [(network(images.to(place)).cpu(), labels) for images, labels in DataLoader(data, 250)]
    finally:
        network.fc = classifier
    features, labels = zip(*found, strict=True)
    return torch.cat(features).numpy(), torch.cat(labels).numpy()


def probe(network: nn.Module, train: Dataset[Any], *tests: Dataset[Any]) -> list[float]:
    """Accuracies in percent of logistic regression on the pooled features, trained on ``train``."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    model.fit(*pooled(network, train))
    return [100 * float(model.score(*pooled(network, part))) for part in tests]
