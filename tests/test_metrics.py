"""Scores against torchmetrics."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_confusion_matrix, multiclass_f1_score

from fer_lib.metrics import confusion_matrix, scores


def drawn(seed: int, classes: int, absent: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    label, prediction = torch.randint(classes, (2, 200), generator=generator)
    if absent is not None:
        label[label == absent] = (absent + 1) % classes
        prediction[prediction == absent] = (absent + 1) % classes
    return prediction, label


@pytest.mark.parametrize("absent", [None, 0, 3])
@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_torchmetrics(seed, absent):
    prediction, label = drawn(seed, 7, absent)
    confusion = confusion_matrix(prediction, label, 7)
    assert torch.equal(confusion, multiclass_confusion_matrix(prediction, label, 7))
    found = scores(confusion.numpy(), 1.5)
    assert found.macro_f1 == pytest.approx(float(multiclass_f1_score(prediction, label, 7, average="macro")), abs=1e-6)
    by_class = multiclass_f1_score(prediction, label, 7, average="none").numpy().copy()
    if absent is not None:
        assert np.isnan(found.f1[absent])
        by_class[absent] = np.nan
    np.testing.assert_allclose(found.f1, by_class, atol=1e-6)
    assert found.accuracy == pytest.approx((prediction == label).float().mean().item())
    assert (found.n, found.loss) == (200, 1.5)


def test_a_class_that_is_present_and_never_predicted_counts_as_0():
    found = scores(np.array([[4, 0], [4, 0]]), 0.0)
    assert found.f1.tolist() == [8 / 12, 0] and found.macro_f1 == pytest.approx(1 / 3)


def test_rows_are_labels():
    assert confusion_matrix(torch.tensor([1]), torch.tensor([0]), 2).tolist() == [[0, 1], [0, 0]]
