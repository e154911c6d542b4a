"""Networks with sites: they are torchvision's networks, and every activation is a place of its own."""

import pytest
import torch
import torchvision
from torch import nn

from fer_lib.activations import AutoReLU, SignFlip
from fer_lib.models import Site, build_model, site_shapes, sites

CALLS = {"resnet18": 17, "resnet34": 33, "resnet50": 49}


def calls_of(model: nn.Module, image: tuple[int, int, int] = (1, 32, 32)) -> list[Site]:
    """The sites with an activation, in the order in which one forward pass calls them."""
    called = []
    for module in model.modules():
        if isinstance(module, Site) and module.act is not None:
            module.register_forward_hook(lambda site, inputs, output: called.append(site))
    model.eval()(torch.zeros(1, *image))
    return called


@pytest.mark.parametrize("backbone", CALLS)
def test_each_activation_is_called_once_and_is_an_object_of_its_own(backbone):
    model = build_model(backbone, width=0.05)
    called = calls_of(model)
    assert len(called) == CALLS[backbone]
    assert len({id(site) for site in called}) == len({id(site.act) for site in called}) == CALLS[backbone]
    assert list(sites(model)) == [site.name for site in called]


def test_there_is_no_relu_outside_the_sites():
    model = build_model("resnet50", width=0.05)
    assert sum(isinstance(m, nn.ReLU) for m in model.modules()) == len(sites(model))


@pytest.mark.parametrize("backbone", CALLS)
def test_torchvision_weights_load_strictly_and_give_the_same_output(backbone):
    theirs = getattr(torchvision.models, backbone)(num_classes=7).eval()
    for norm in (m for m in theirs.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    ours = build_model(backbone, 7, 3)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        assert torch.equal(ours.eval()(x), theirs(x))


def test_initial_weights_are_drawn_as_torchvision_draws_them():
    torch.manual_seed(3)
    theirs = torchvision.models.resnet18(num_classes=7).state_dict()
    torch.manual_seed(3)
    ours = build_model("resnet18", 7, 3).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_resnet50_has_three_activations_a_block():
    names = list(sites(build_model("resnet50", width=0.05), "layer1"))
    assert names[:3] == ["layer1.0.act1", "layer1.0.act2", "layer1.0.act3"]
    assert len(names) == 9


def test_shared_activations_are_torchvisions_nine_objects():
    theirs = torchvision.models.resnet18()
    model = build_model(width=0.05, share_activations=True)
    called = calls_of(model)
    assert len(called) == 17
    assert len({id(site.act) for site in called}) == sum(isinstance(m, nn.ReLU) for m in theirs.modules()) == 9
    assert len(sites(model)) == 9


def test_a_shared_site_of_a_bottleneck_takes_no_weight_per_channel():
    model = build_model("resnet50", width=0.05, share_activations=True)
    with pytest.raises(ValueError, match="scalar"):
        site_shapes(model, (1, 32, 32))


def test_sharing_changes_no_output():
    own, shared = build_model(width=0.05), build_model(width=0.05, share_activations=True)
    shared.load_state_dict(own.state_dict(), strict=True)
    x = torch.randn(2, 1, 32, 32)
    assert torch.equal(own.eval()(x), shared.eval()(x))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("stem", ["torchvision", "small"])
@pytest.mark.parametrize("classes", [2, 11])
def test_input_stem_and_classes_are_free(channels, stem, classes):
    model = build_model("resnet18", classes, channels, stem, 0.05)
    assert model.eval()(torch.zeros(2, channels, 32, 32)).shape == (2, classes)
    first = site_shapes(model, (channels, 32, 32))["stem"]
    assert first == ((3, 32, 32) if stem == "small" else (3, 16, 16))


def test_width_multiplies_every_channel_count():
    half, full = build_model("resnet50", width=0.5), build_model("resnet50")
    for (name, a), b in zip(half.named_parameters(), full.parameters()):
        if name.endswith("bn1.weight"):
            assert 2 * len(a) == len(b)
    assert half.fc.in_features == 1024
    assert [s.channels for s in sites(build_model(width=0.05), "act1").values()] == [3, 3, 6, 6, 13, 13, 26, 26]


@pytest.mark.parametrize("arguments", [{"backbone": "resnet19"}, {"stem": "tiny"}, {"width": 0.0}, {"width": 9.0}])
def test_bad_choices_are_named(arguments):
    value = str(next(iter(arguments.values())))
    with pytest.raises(ValueError, match=value.replace(".", r"\.")):
        build_model(**arguments)


@pytest.mark.parametrize(("where", "names"), [
    ("layer2.0.act1", ["layer2.0.act1"]),
    ("layer2.act1", ["layer2.0.act1", "layer2.1.act1"]),
    ("layer2", ["layer2.0.act1", "layer2.0.act2", "layer2.1.act1", "layer2.1.act2"]),
    ("stem", ["stem"]),
    ("head", ["head"]),
    ("shortcut", ["layer2.0.shortcut", "layer3.0.shortcut", "layer4.0.shortcut"]),
    ("layer4.pre_add+stem", ["stem", "layer4.0.pre_add", "layer4.1.pre_add"]),
])
def test_sites_are_chosen_by_kind_stage_and_name(where, names):
    assert list(sites(build_model(width=0.05), where)) == names


@pytest.mark.parametrize(("where", "count"), [("act1", 8), ("act2", 8), ("pre_add", 8), ("all", 17), ("all+head", 18)])
def test_a_kind_selects_one_site_a_block(where, count):
    assert len(sites(build_model(width=0.05), where)) == count


@pytest.mark.parametrize("where", ["act3", "layer5", "layer1.2.act1", "relu", "act1+nothing"])
def test_choosing_nothing_raises(where):
    with pytest.raises(ValueError, match="unknown site"):
        sites(build_model(width=0.05), where)


def test_act2_lies_after_the_addition_and_pre_add_before_it():
    model = build_model(width=0.05).eval()
    seen = {}

    def look(site, inputs):
        seen[site.name] = inputs[0].clone()

    for site in sites(model, "layer2.0.pre_add+layer2.0.shortcut+layer2.0.act2").values():
        site.register_forward_pre_hook(look)
    model(torch.randn(2, 1, 32, 32))
    assert torch.equal(seen["layer2.0.act2"], seen["layer2.0.pre_add"] + seen["layer2.0.shortcut"])
    assert (seen["layer2.0.pre_add"] < 0).any()


@pytest.mark.parametrize(("slot", "make"), [("before", SignFlip), ("after", SignFlip), ("act", lambda: AutoReLU(()))])
def test_changing_a_site_twice_raises(slot, make):
    site = sites(build_model(width=0.05), "stem")["stem"]
    site.fill(slot, make())
    with pytest.raises(ValueError, match="'stem' was changed already"):
        site.fill(slot, make())


def test_slots_run_in_order():
    site = sites(build_model(width=0.05), "stem")["stem"]
    site.fill("before", SignFlip())
    site.before.sign.fill_(-1)
    x = torch.tensor([-2.0, 3.0]).reshape(1, 2, 1, 1)
    assert site(x).flatten().tolist() == [2, 0]                     # ReLU(-x)
    site.before.sign.fill_(1)
    site.fill("after", SignFlip())
    site.after.sign.fill_(-1)
    assert site(x.clone()).flatten().tolist() == [0, -3]            # -ReLU(x)


def test_a_site_without_activation_has_none_to_replace():
    site = sites(build_model(width=0.05), "layer1.0.pre_add")["layer1.0.pre_add"]
    with pytest.raises(ValueError, match="no activation to replace"):
        site.fill("act", AutoReLU(()))
