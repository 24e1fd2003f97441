"""The distillation methods that RCKA is compared with, with the contract of `cka_probe.distill.losses`.

Default weights are those of the authors, or those of the usual comparison on CIFAR-100 (the CRD benchmark of Tian,
Krishnan and Isola, ICLR 2020).
"""

from .features import ATLoss, CWDLoss, FitNetLoss, PKDLoss
from .logits import DISTLoss, DKDLoss, KDLoss
from .relations import CCLoss, RKDLoss, SPLoss

__all__ = [
    "ATLoss",
    "CCLoss",
    "CWDLoss",
    "DISTLoss",
    "DKDLoss",
    "FitNetLoss",
    "KDLoss",
    "PKDLoss",
    "RKDLoss",
    "SPLoss",
]
