"""How large is what autograd gives as dL/dw, where the true gradient is 0? One batch, one network, w set by hand.

`fer_lib.calibrate` measures the same at the w a run had; here w goes through many sizes and precisions.
"""

import copy
from collections.abc import Sequence

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from fer_lib.activations import AutoReLU
from fer_lib.data import DeviceSplit, PackedDataset
from fer_lib.engine import Precision
from fer_lib.experiment import Experiment


def gradients_of_w(model: nn.Module, e: Experiment, data: PackedDataset, values: Sequence[float],
                   precision: str = "fp32", images: int = 64) -> pd.DataFrame:
    """A row for each value: w, the batch's loss, and the root mean square of dL/dw over all elements of all w.

    model: with AutoReLU and the literal gradient, as `predict.load_trained` gives it; it is not changed. The first
    `images` training images are the batch. Raises ValueError where the model has no such AutoReLU.
    """
    device = next(model.parameters()).device
    chosen = Precision(precision, device)
    model = copy.deepcopy(model).to(chosen.dtype).train()
    units = [m for m in model.modules() if isinstance(m, AutoReLU) and m.gradient == "literal"]
    if not units:
        raise ValueError("this network has no AutoReLU with the literal gradient: train one with method = 'dynamic'")
    split = DeviceSplit(data.splits["train"], data.manifest, e, device, chosen.dtype)
    chosen.apply()
    rows = []
    for value in values:
        with torch.no_grad():
            for unit in units:
                unit.w.fill_(value)
        model.zero_grad()
        with chosen.autocast():
            logits = model(split.batch(slice(0, images)))
        loss = F.cross_entropy(logits.to(chosen.loss_dtype), split.labels[:images])
        loss.backward()
        found = torch.cat([unit.w.grad.flatten() for unit in units]).double()
        rows.append({"w": value, "loss": float(loss.detach()), "gradient": float(found.square().mean().sqrt())})
    return pd.DataFrame(rows)
