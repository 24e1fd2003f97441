"""The methods that RCKA is compared with, each a short module with the contract of all losses.

Default weights are those of the method's authors, or of the comparison in which it is commonly run on CIFAR-100 (the
CRD benchmark of Tian, Krishnan and Isola, ICLR 2020).
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
