"""One run on several processes: what each of them owns, and the few things that they tell each other.

Each rank holds the whole model and data, and takes a contiguous part of every batch. All random choices are drawn for
the whole batch from the run's own seeds and then cut, batch normalisation sees the whole batch, gradients are averaged
before the optimiser: so every rank makes the same step, that of one process up to rounding. `python -m
fer_lib.distributed` makes such processes.
"""

import json
import warnings
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class World:
    """The processes of one run: this is number `rank` of `size`. Alone, nothing below does anything.

    With more than one, torch's default process group must be open, with gloo for tensors on the CPU.
    """

    rank: int = 0
    size: int = 1

    def part(self, n: int) -> slice:
        """The rows of n that are this rank's."""
        return slice(self.rank * n // self.size, (self.rank + 1) * n // self.size)

    def sum(self, *tensors: Tensor) -> None:
        """Add up over the ranks, in place; every rank gets the same bits."""
        for tensor in tensors if self.size > 1 else ():
            dist.all_reduce(tensor)

    def any(self, here: bool) -> bool:
        """Whether it is so on any rank. All must ask."""
        if self.size == 1:
            return here
        found = torch.tensor([here], dtype=torch.uint8)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return bool(found)

    def share(self, value: object) -> object:
        """Rank 0's value on every rank: plain numbers, texts, lists and dicts, sent as JSON."""
        if self.size == 1:
            return value
        text = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)
        length = torch.tensor(len(text))
        dist.broadcast(length, 0)
        text = text if self.rank == 0 else torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(text, 0)
        return json.loads(bytes(text.tolist()))

    def connect_norms(self, model: nn.Module, device: torch.device) -> None:
        """Make the model's batch normalisations see the whole batch. Parameters and names stay; before the optimiser.
        """
        if self.size > 1 and device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(model)
        elif self.size > 1:
            for path, norm in list(model.named_modules()):
                if isinstance(norm, nn.BatchNorm2d):
                    model.set_submodule(path, GlobalBatchNorm.of(norm))

    def connect_gradients(self, model: nn.Module) -> nn.Module:
        """The model as training calls it: its gradients are averaged over the ranks while they are computed.

        Buffers aren't sent round: each rank computes the same ones.
        """
        if self.size == 1:
            return model
        with warnings.catch_warnings(action="ignore", category=FutureWarning):      # torch 2.14's name for it is new
            return DistributedDataParallel(model, broadcast_buffers=False)


ALONE = World()


class _Gather(torch.autograd.Function):
    """x of every rank, stacked. Each rank's loss depends on every rank's x, so its gradient is the sum over the ranks.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        every = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(every, x.contiguous())
        return torch.stack(every)

    @staticmethod
    def backward(ctx, upstream: Tensor) -> Tensor:
        total = upstream.contiguous().clone()
        dist.all_reduce(total)
        return total[dist.get_rank()]


class GlobalBatchNorm(nn.BatchNorm2d):
    """Batch normalisation over the batches of all ranks, on the CPU, where torch.nn.SyncBatchNorm doesn't run.

    y = gamma (x - mu) / sqrt(var + eps) + beta, with mu and var of each channel over N x H x W of the whole batch
    (Ioffe & Szegedy 2015, Algorithm 1). The ranks r have equally large parts, so mu is the mean of their mu_r and var
    that of var_r + (mu_r - mu)^2. The running var is the unbiased one.
    """

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> "GlobalBatchNorm":
        """In place of `norm`, with its parameters and buffers themselves."""
        own = cls(norm.num_features, norm.eps, norm.momentum)
        own._parameters, own._buffers = norm._parameters, norm._buffers
        return own

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        wide = x.to(self.weight.dtype)                  # bf16 under autocast
        means, variances = _Gather.apply(torch.stack(torch.var_mean(wide, (0, 2, 3), correction=0)[::-1])).unbind(1)
        mean = means.mean(0)
        var = (variances + (means - mean).square()).mean(0)
        with torch.no_grad():
            n = len(means) * x.numel() / x.shape[1]
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * n / (n - 1), self.momentum)
        scale = (var + self.eps).rsqrt() * self.weight
        y = (wide - mean[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]
        return y.to(x.dtype)
