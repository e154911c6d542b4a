"""What is reported of a classifier, all from its confusion matrix and its mean loss."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """loss: mean cross-entropy (nats); f1: by class, NaN for a class neither present nor predicted; confusion: counts
    (K, K), rows the label, columns the prediction; n: images.
    """

    loss: float
    macro_f1: float
    accuracy: float
    f1: np.ndarray
    confusion: np.ndarray
    n: int


def confusion_matrix(prediction: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """Counts (K, K), rows the label, columns the prediction, on the tensors' device."""
    classes = torch.arange(num_classes, device=label.device)
    rows, columns = ((of[:, None] == classes).double() for of in (label, prediction))   # exact counts, no host wait
    return (rows.T @ columns).long()


def scores(confusion: np.ndarray, loss: float) -> Scores:
    """F1 of class c is 2 TP / (2 TP + FP + FN); macro-F1 is its mean over the classes that are present or predicted."""
    hit = np.diag(confusion).astype(float)
    total = confusion.sum(0) + confusion.sum(1)
    with np.errstate(invalid="ignore"):
        f1 = np.where(total > 0, 2 * hit / total, np.nan)
    n = int(confusion.sum())
    return Scores(loss, float(np.nanmean(f1)), float(hit.sum() / n), f1, confusion, n)
