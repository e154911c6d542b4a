"""The training loss: cross-entropy, as torch has it, of work that a CUDA graph can hold."""

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, targets: Tensor, weight: Tensor | None, smoothing: float,
                  reduction: str = "mean") -> Tensor:
    """`F.cross_entropy`, to the bit: L = (1 - s) nll + s / K smooth, with nll = -w_y log p_y and smooth = - sum of
    w_k log p_k over the K classes, both over the batch's sum of w_y (Szegedy et al. 2016, section 7).

    logits (B, K); targets (B,) or, as probabilities, (B, K); weight (K,) or None; reduction "mean" or "sum". With
    weighted classes and smoothed targets torch itself picks the images that count on the host, and that work can't be
    recorded; here all count.
    """
    if reduction != "mean" or weight is None or not smoothing or targets.is_floating_point():
        return F.cross_entropy(logits, targets, weight, label_smoothing=smoothing, reduction=reduction)
    log_p = F.log_softmax(logits, 1)
    nll = F.nll_loss(log_p, targets, weight)
    smooth = -(log_p * weight).sum(1).sum() / weight.gather(0, targets).sum()
    return (1 - smoothing) * nll + smooth * (smoothing / logits.shape[1])
