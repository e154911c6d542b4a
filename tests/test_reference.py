"""The engine against a training loop on torchvision's own ResNet-18."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import CPU, make_data, make_experiment

from fer_lib.data import epoch_order, stream
from fer_lib.engine import train
from fer_lib.models import build_model


def test_baseline_is_the_plain_torchvision_loop():
    """Losses equal those of a loop on torchvision's own ResNet-18, written as people write it."""
    data = make_data()
    e = make_experiment(method="baseline", width=1., epochs=1, lr=1e-4, precision="fp64")
    blocks = list(train([(e, data)], CPU))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(e.seed, "weights"))
        weights = build_model(e.backbone, len(data.classes), data.image[0]).state_dict()
    model = torchvision.models.resnet18(num_classes=len(data.classes))
    model.conv1 = torch.nn.Conv2d(data.image[0], 64, 7, 2, 3, bias=False)
    model.load_state_dict(weights)
    model.double()
    optimizer = torch.optim.Adam(model.parameters(), lr=e.lr, weight_decay=e.weight_decay)
    facts = data.manifest["normalization"]
    mean, std = (torch.tensor(facts[k], dtype=torch.float64)[:, None, None] for k in ("mean", "std"))

    def batch(split, rows):
        images = torch.from_numpy(np.array(split.images[rows])).double() / 255
        return (images - mean) / std, torch.from_numpy(split.samples["label"].to_numpy().copy()[rows])

    losses = []
    order = epoch_order(e, torch.from_numpy(data.splits["train"].samples["label"].to_numpy().copy()), 1)
    for rows in order:
        x, y = batch(data.splits["train"], rows.numpy())
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    np.testing.assert_allclose(np.concatenate([b.loss for b in blocks]), losses, rtol=1e-7)
    with torch.no_grad():
        x, y = batch(data.splits["val"], np.arange(len(data.splits["val"])))
        loss = F.cross_entropy(model.eval()(x), y).item()
    found = next(v.scores for v in blocks[-1].evaluations if (v.split, v.mode) == ("val", "trained"))
    assert found.loss == pytest.approx(loss, rel=1e-7)
