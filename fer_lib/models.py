"""ResNets in which every activation is a site: a place with a name and an object of its own.

torchvision's BasicBlock calls one `relu` object twice, so ResNet-18 has 9 ReLU objects but 17 calls. A method that
puts a learnable activation there would share its weight between two places. Here each call has its own `Site`.

A site holds three slots, run in order: `before` (between batch normalisation and the activation), `act`, `after`.
Methods fill slots; an unfilled slot costs nothing and adds no parameter, so torchvision's weights load strictly.
A fourth, `forced`, is the reader's own: a sign flip by hand while the network trains.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fer_lib.activations import SignFlip
from fer_lib.late_imports import without_compiler

with without_compiler():
    from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

LAYERS = {"resnet18": (BasicBlock, [2, 2, 2, 2]), "resnet34": (BasicBlock, [3, 4, 6, 3]),
          "resnet50": (Bottleneck, [3, 4, 6, 3])}
STEMS = ("torchvision", "small")
ACTIVATIONS = ("stem", "act1", "act2", "act3")          # kinds of site that hold a ReLU
LINEAR = ("pre_add", "shortcut", "head")                # kinds of site where a feature passes without activation


class Site(nn.Module):
    """A named place in the network, of `channels` channels: forced -> before -> act -> after.

    kind: "stem", "act1", "act2", "act3" (a ReLU), or "pre_add" (the last BN's output before the residual addition),
    "shortcut" (the BN on the downsampled shortcut), "head" (pooled features before the classifier): no ReLU there.
    """

    def __init__(self, kind: str, channels: int):
        super().__init__()
        self.kind, self.channels, self.name = kind, channels, ""
        self.forced: SignFlip | None = None
        self.before: nn.Module | None = None
        self.act: nn.Module | None = nn.ReLU(inplace=True) if kind in ACTIVATIONS else None
        self.after: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        for module in (self.forced, self.before, self.act, self.after):
            if module is not None:
                x = module(x)
        return x

    def fill(self, slot: str, module: nn.Module) -> None:
        """Put `module` into the slot. A slot is filled once; `act` can be replaced once, and only where a ReLU is.

        Raises ValueError where the slot is taken or there is no activation to replace.
        """
        present = getattr(self, slot)
        if slot == "act" and present is None:
            raise ValueError(f"site '{self.name}' has no activation to replace (choose act1, act2, act3, stem or all)")
        if slot == "act" and not isinstance(present, nn.ReLU) or slot != "act" and _holds(present, type(module)):
            raise ValueError(f"site '{self.name}' was changed already: its '{slot}' holds {present}")
        if slot != "act" and present is not None:
            module = nn.Sequential(present, module)
        setattr(self, slot, module)

    def force(self, sign: float, device: torch.device) -> None:
        """Multiply the feature by `sign` (+1 or -1) before all else, whatever the method does there."""
        if self.forced is None:
            self.forced = SignFlip().to(device)
        self.forced.sign.fill_(sign)

    def extra_repr(self) -> str:
        return f"{self.name!r}, channels={self.channels}"


def _holds(slot: nn.Module | None, kind: type) -> bool:
    return slot is not None and any(isinstance(m, kind) for m in slot.modules())


class SiteBasicBlock(BasicBlock):
    """torchvision's BasicBlock with sites act1 (after bn1), pre_add (after bn2), shortcut and act2 (after the sum)."""

    def __init__(self, inplanes: int, planes: int, *args, **kwargs):
        super().__init__(inplanes, planes, *args, **kwargs)
        del self.relu
        self.act1 = Site("act1", planes)
        self.pre_add = Site("pre_add", planes)
        self.shortcut = Site("shortcut", planes) if self.downsample is not None else None
        self.act2 = Site("act2", planes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.act1(self.bn1(self.conv1(x)))
        out = self.pre_add(self.bn2(self.conv2(out)))
        identity = x if self.downsample is None else self.shortcut(self.downsample(x))
        return self.act2(out + identity)


class SiteBottleneck(Bottleneck):
    """torchvision's Bottleneck with sites act1, act2, pre_add, shortcut and act3: the paper's "three BN+ReLU units"."""

    def __init__(self, inplanes: int, planes: int, *args, **kwargs):
        super().__init__(inplanes, planes, *args, **kwargs)
        del self.relu
        width, out = self.bn2.num_features, self.bn3.num_features
        self.act1, self.act2 = Site("act1", width), Site("act2", width)
        self.pre_add = Site("pre_add", out)
        self.shortcut = Site("shortcut", out) if self.downsample is not None else None
        self.act3 = Site("act3", out)

    def forward(self, x: Tensor) -> Tensor:
        out = self.act1(self.bn1(self.conv1(x)))
        out = self.act2(self.bn2(self.conv2(out)))
        out = self.pre_add(self.bn3(self.conv3(out)))
        identity = x if self.downsample is None else self.shortcut(self.downsample(x))
        return self.act3(out + identity)


class BatchNorm2d(nn.BatchNorm2d):
    """torch's, but for the count of batches, a kernel a layer and step that nothing here reads: it stays 0."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training,
                            self.momentum, self.eps)


SITE_BLOCK = {BasicBlock: SiteBasicBlock, Bottleneck: SiteBottleneck}


class SiteResNet(ResNet):
    """torchvision's ResNet with sites, a width multiplier, `in_channels` input planes and a choice of stem.

    Parameter names and their order are torchvision's. Weights are initialised as torchvision does.
    """

    def __init__(self, backbone: str, num_classes: int, in_channels: int, stem: str, width: float):
        nn.Module.__init__(self)                        # not ResNet's own, which fixes 3 channels and 64 planes
        block, layers = LAYERS[backbone]
        self._norm_layer, self.dilation, self.groups, self.base_width = BatchNorm2d, 1, 1, 64
        planes = [max(1, round(64 * 2 ** k * width)) for k in range(4)]
        self.inplanes = planes[0]
        small = stem == "small"                         # 3x3, stride 1, no pooling: for images of 32 to 64 px
        self.conv1 = nn.Conv2d(in_channels, planes[0], 3 if small else 7, 1 if small else 2, 1 if small else 3,
                               bias=False)
        self.bn1 = BatchNorm2d(planes[0])
        self.relu = Site("stem", planes[0])
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        for k in range(4):
            stage = self._make_layer(SITE_BLOCK[block], planes[k], layers[k], stride=1 if k == 0 else 2)
            setattr(self, f"layer{k + 1}", stage)
        features = planes[3] * block.expansion
        self.avgpool = nn.Sequential(nn.AdaptiveAvgPool2d(1), Site("head", features))
        self.fc = nn.Linear(features, num_classes)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")


def build_model(backbone: str = "resnet18", num_classes: int = 7, in_channels: int = 1, stem: str = "torchvision",
                width: float = 1.0, share_activations: bool = False) -> SiteResNet:
    """A network with named sites, initialised from torch's current random state.

    width multiplies every plane count (1 = torchvision's 64, 128, 256, 512). `share_activations` gives all activations
    of a block one object, as torchvision does (ResNet-18: 9 objects for 17 calls). Raises ValueError on a bad choice.
    """
    if backbone not in LAYERS:
        raise ValueError(f"unknown backbone '{backbone}' (choose one of {', '.join(LAYERS)})")
    if stem not in STEMS:
        raise ValueError(f"unknown stem '{stem}' (choose one of {', '.join(STEMS)})")
    if not 0 < width <= 8:
        raise ValueError(f"width is a multiplier in (0, 8], not {width}")
    model = SiteResNet(backbone, num_classes, in_channels, stem, width)
    if share_activations:
        for block in _blocks(model):
            block.act2 = block.act1
            if isinstance(block, SiteBottleneck):
                block.act3 = block.act1
                block.act1.channels = 0                 # three calls, two channel counts: only a scalar w fits
    for path, module in model.named_modules():
        if isinstance(module, Site):
            module.name = {"relu": "stem", "avgpool.1": "head"}.get(path, path)
    return model


def _blocks(model: SiteResNet) -> Iterator[SiteBasicBlock | SiteBottleneck]:
    return (m for m in model.modules() if isinstance(m, SiteBasicBlock | SiteBottleneck))


def sites(model: nn.Module, where: str | None = None) -> dict[str, Site]:
    """The sites of a network by name, in the order of the forward pass; with `where`, those it selects.

    `where` joins terms by "+". A term is a kind ("act1", "act2" = after the addition, "pre_add" = bn2's output before
    it, "shortcut", "stem", "head"), a stage ("layer2": its activations), both ("layer2.act1"), one site's name
    ("layer2.0.act1"), or "all" (every activation: 17 in ResNet-18). Without it, all activations are listed.
    Raises ValueError for a term that selects nothing.
    """
    everything = {m.name: m for m in model.modules() if isinstance(m, Site)}
    chosen = {name for term in (where or "all").split("+") for name in _select(everything, term.strip())}
    return {name: site for name, site in everything.items() if name in chosen}


def _select(everything: dict[str, Site], term: str) -> list[str]:
    def fits(name: str, site: Site) -> bool:
        stage = name.split(".")[0]
        if term in ("all", stage) and name != term:
            return site.kind in ACTIVATIONS
        return term in (name, site.kind, f"{stage}.{site.kind}")

    found = [name for name, site in everything.items() if fits(name, site)]
    if not found:
        kinds = sorted({s.kind for s in everything.values()})
        stages = sorted({n.split('.')[0] for n in everything if "." in n})
        raise ValueError(f"unknown site '{term}': this network has {', '.join(kinds)}, {', '.join(stages)}, all, "
                         f"and single names such as {next(n for n in everything if '.' in n)}")
    return found


def norm_before(model: nn.Module, site: str) -> nn.Module | None:
    """The batch norm whose output, and nothing else, the site sees; None after an addition and before the classifier.
    """
    path, _, kind = site.rpartition(".")
    if not path:
        return model.bn1 if site == "stem" else None
    block = model.get_submodule(path)
    last = block.bn3 if isinstance(block, SiteBottleneck) else block.bn2
    norms = {"act1": block.bn1, "pre_add": last, "shortcut": block.downsample and block.downsample[1]}
    if isinstance(block, SiteBottleneck):
        norms["act2"] = block.bn2
    return norms.get(kind)


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load a state_dict strictly, with the flips that were forced by hand. Raises RuntimeError where it doesn't fit."""
    device = next(model.parameters()).device
    for key in weights:
        if key.endswith(".forced.sign"):
            model.get_submodule(key.removesuffix(".forced.sign")).force(1., device)
    model.load_state_dict(weights)


def site_shapes(model: nn.Module, image: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
    """The feature shape (C, H, W) that each site sees for an image of shape (C, H, W), from one dry forward pass.

    Raises ValueError where one shared site sees two shapes.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def look(site: Site, inputs: tuple[Tensor], output: Tensor) -> None:
        shape = tuple(inputs[0].shape[1:])
        if shapes.setdefault(site.name, shape) != shape:
            raise ValueError(f"the shared site '{site.name}' sees {shapes[site.name]} and {shape}: "
                             "only w_shape 'scalar' fits both")

    hooks = [m.register_forward_hook(look) for m in model.modules() if isinstance(m, Site)]
    was_training = model.training
    p = next(model.parameters())
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, *image, device=p.device, dtype=p.dtype))
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return shapes
