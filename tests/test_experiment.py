"""Experiments: what is refused, what the id covers, and the ways there and back."""

import dataclasses
import json
import math

import pytest

from fer_lib.experiment import SEMANTICS, Experiment, ParameterError, differences, parameters_cell

FIELDS = {f.name: f for f in dataclasses.fields(Experiment)}
PLACE = {"study": "other", "name": "arm", "data": "fer2013", "device": "cpu", "threads": 2, "deterministic": True,
         "checkpoint_seconds": 0.0, "compile_step": "on", "image_place": "disk", "live": "off",
         "refresh_seconds": 2.0, "watch_channel": 3}
# for each field another value, and settings with which the run reads the field
USED = {
    "method": ("dropout", {}), "seed": (1, {}), "backbone": ("resnet34", {}), "stem": ("small", {}),
    "width": (0.5, {}), "share_activations": (True, {}), "image_size": (32, {}), "augment": ("flip", {}),
    "labels": ("soft", {}), "balance": ("loss", {}), "train_share": (0.5, {}),
    "epochs": (31, {}), "batch_size": (32, {}),
    "optimizer": ("sgd", {}), "lr": (2e-4, {}), "weight_decay": (0.0, {}), "decay": ("matrices", {}),
    "beta1": (0.8, {}), "beta2": (0.99, {}), "eps": (1e-6, {}), "momentum": (0.8, {"optimizer": "sgd"}),
    "schedule": ("cosine", {}), "schedule_epochs": (3, {"schedule": "restarts"}),
    "schedule_factor": (0.5, {"schedule": "plateau"}), "label_smoothing": (0.1, {}), "precision": ("fp64", {}),
    "dropout_p": (0.4, {"method": "dropout"}), "dropout_site": ("head", {"method": "dropout"}),
    "dropout_unit": ("channel", {"method": "dropout+periodic"}),
    "flip_interval": (4, {"method": "periodic"}), "flip_interval_unit": ("step", {"method": "bn_negation"}),
    "flip_site": ("stem", {"method": "random_flip"}), "flip_position": ("after_relu", {"method": "periodic"}),
    "flip_p": (0.2, {"method": "random_flip"}), "flip_unit": ("batch", {"method": "random_flip"}),
    **{name: (value, {"method": "dynamic"}) for name, value in {
        "w_site": "all", "w0": 0.2, "cliff": 5.0, "w_shape": "scalar", "w_mean": "site", "w_average_moments": True,
        "w_eval": "raw", "divide_by": "signed", "w_gradient": "exact"}.items()},
    "w_noise_scale": (1e-9, {"method": "dynamic", "w_gradient": "modelled"}),
    "noise_sd": (0.2, {"method": "gaussian_noise"}), "noise_site": ("all", {"method": "dropout+gaussian_noise"}),
    "shrink": (0.5, {"method": "shrink_perturb"}), "perturb": (0.1, {"method": "shrink_perturb"}),
    "shake_p": (0.8, {"method": "shakedrop"}),
}
# for each field that not every run reads, settings with which it isn't read
UNUSED = {
    "momentum": {}, "schedule_epochs": {}, "schedule_factor": {"schedule": "cosine"},
    "beta1": {"optimizer": "sgd"}, "beta2": {"optimizer": "sgd"}, "eps": {"optimizer": "sgd"},
    **{name: {"method": "periodic"} for name in FIELDS if name.startswith("dropout_")},
    **{name: {"method": "dropout+dynamic"} for name in FIELDS if name.startswith("flip_")},
    "flip_p": {"method": "periodic"}, "flip_unit": {"method": "bn_negation"},
    **{name: {"method": "dropout+periodic"} for name in FIELDS if FIELDS[name].metadata["part"] == "dynamic"},
    "w_noise_scale": {"method": "dynamic"},
    "noise_sd": {"method": "dropout"}, "noise_site": {"method": "random_flip"}, "shrink": {"method": "bn_reset"},
    "perturb": {"method": "periodic"}, "shake_p": {"method": "gaussian_noise"},
}

# what each setting is where nobody says otherwise, by semantics version
DEFAULTS = {2: {
    "method": "baseline", "seed": 0, "backbone": "resnet18", "stem": "torchvision", "width": 1.0,
    "share_activations": False, "image_size": 0, "augment": "none", "labels": "hard", "balance": "none",
    "train_share": 1.0, "epochs": 30, "batch_size": 64, "optimizer": "adam", "lr": 0.0001, "weight_decay": 0.0001,
    "decay": "all", "beta1": 0.9, "beta2": 0.999, "eps": 1e-08, "momentum": 0.9, "schedule": "constant",
    "schedule_epochs": 10, "schedule_factor": 0.1, "label_smoothing": 0.0, "precision": "auto", "dropout_p": 0.5,
    "dropout_site": "act1", "dropout_unit": "element", "flip_interval": 5, "flip_interval_unit": "epoch",
    "flip_site": "act1", "flip_position": "before_relu", "flip_p": 0.1, "flip_unit": "channel", "w_site": "act1",
    "w0": 0.1, "cliff": 6.0, "w_shape": "channel", "w_mean": "model", "w_average_moments": False, "w_eval":
    "shared", "divide_by": "abs", "w_gradient": "literal", "w_noise_scale": 2e-10, "noise_sd": 0.3, "noise_site":
    "act1", "shrink": 0.6, "perturb": 0.01, "shake_p": 0.5
}}


def test_these_tables_name_every_field():
    assert PLACE.keys() == {name for name, f in FIELDS.items() if f.metadata["part"] == "place"}
    assert USED.keys() | PLACE.keys() == FIELDS.keys()


@pytest.mark.parametrize("name", USED)
def test_a_field_that_the_run_reads_changes_the_id(name):
    value, settings = USED[name]
    base = Experiment(**settings)
    assert getattr(base, name) != value
    assert dataclasses.replace(base, **{name: value}).id("data") != base.id("data")


@pytest.mark.parametrize("name", UNUSED)
def test_a_field_that_the_run_does_not_read_leaves_the_id(name):
    base = Experiment(**UNUSED[name])
    assert dataclasses.replace(base, **{name: USED[name][0]}).id("data") == base.id("data")


@pytest.mark.parametrize("name", PLACE)
def test_the_place_leaves_the_id(name):
    assert Experiment(**{name: PLACE[name]}).id("data") == Experiment().id("data")


def test_the_id_covers_the_data_and_the_semantics(monkeypatch):
    before = Experiment().id("data")
    assert len(before) == 10 and Experiment().id("other data") != before
    monkeypatch.setattr("fer_lib.experiment.SEMANTICS", SEMANTICS + 1)
    assert Experiment().id("data") != before


def test_a_default_that_changes_needs_a_new_semantics_version():
    """The id leaves out what is at its default: a record made with another default would pass for a new one."""
    here = {name: f.default for name, f in FIELDS.items() if name not in PLACE}
    assert here == DEFAULTS[SEMANTICS]


def test_a_setting_added_later_leaves_the_ids_of_older_records():
    assert Experiment().id("data") == "24cf00737d"
    assert Experiment(method="dynamic", w0=.5, seed=3).id("data") == "4e8f18eb86"


def test_saying_a_default_aloud_leaves_the_id():
    assert Experiment().id("data") == Experiment(method="baseline", lr=1e-4).id("data")
    assert Experiment(method="dynamic", cliff=6, lr=1e-4).id("data") == Experiment(method="dynamic").id("data")


def test_spellings_of_one_experiment_share_an_id():
    ids = {Experiment(method=m, augment=a).id("x") for m in ("dropout+periodic", " periodic +dropout")
           for a in ("flip+crop", "crop + flip")}
    assert len(ids) == 1


@pytest.mark.parametrize(("name", "hint"), [("lr_rate", "parameters are"), ("flip_intervall", "flip_interval"),
                                            ("Seed", "seed"), ("dropout", "dropout_p")])
def test_an_unknown_name_is_refused_with_the_nearest(name, hint):
    with pytest.raises(ParameterError, match=f"unknown parameter '{name}'.*{hint}"):
        Experiment.from_mapping({name: 1})


@pytest.mark.parametrize(("name", "value"), [
    ("epochs", 2.0), ("epochs", "2"), ("epochs", True), ("lr", "0.1"), ("lr", None), ("lr", True), ("seed", 1.5),
    ("method", 3), ("share_activations", 1), ("share_activations", "yes"), ("cliff", "6"), ("augment", ["flip"])])
def test_a_wrong_type_is_refused(name, value):
    with pytest.raises(ParameterError, match=f"{name} is a|{name} is True"):
        Experiment(**{name: value})


@pytest.mark.parametrize(("name", "value"), [
    ("epochs", 0), ("batch_size", 0), ("lr", -1e-9), ("lr", math.inf), ("lr", math.nan), ("dropout_p", 1.0),
    ("flip_interval", 0), ("flip_p", 1.1), ("cliff", 0.0), ("cliff", -6.0), ("seed", -1), ("width", 0.0),
    ("threads", 0), ("beta1", 1.0), ("w0", math.nan), ("w_noise_scale", -1.0), ("label_smoothing", 1.5),
    ("image_size", 1025), ("checkpoint_seconds", -1.0), ("train_share", 0.0), ("train_share", 1.1),
    ("noise_sd", -0.1), ("shrink", 1.1), ("perturb", -0.1), ("shake_p", 2.0)])
def test_out_of_range_is_refused(name, value):
    with pytest.raises(ParameterError, match=f"{name} = .* is out of range"):
        Experiment(**{name: value})


def test_an_unknown_choice_is_refused_with_the_nearest():
    with pytest.raises(ParameterError, match=r"unknown optimizer 'adamW' .*did you mean 'adamw'"):
        Experiment(optimizer="adamW")
    for name, f in FIELDS.items():
        if f.metadata["choices"]:
            with pytest.raises(ParameterError, match=f"unknown {name} 'nonsense'"):
                Experiment(**{name: "nonsense"})


@pytest.mark.parametrize(("settings", "reason"), [
    (dict(study=""), "study is empty"), (dict(study="../up"), "folder's name"), (dict(name="a/b"), "folder's name"),
    (dict(device="gpu"), "unknown device"), (dict(augment="flip+rotate"), "unknown augment 'rotate'"),
    (dict(method="dynamic", w0=math.inf), "w0"), (dict(method="dynamic", w0=0.0), "w0"),
    (dict(method="dynamic", w_noise_scale=math.inf), "w_noise_scale")])
def test_other_values_that_cant_be_used(settings, reason):
    with pytest.raises(ParameterError, match=reason):
        Experiment(**settings)


def test_an_error_shows_one_sentence_in_a_notebook():
    with pytest.raises(ParameterError) as caught:
        Experiment(epochs=0)
    assert len(caught.value._render_traceback_()) == 1


def changed() -> Experiment:
    """Every field at another value than its default."""
    values = {name: value for name, (value, _) in USED.items()} | PLACE | {"method": "dropout+dynamic"}
    return Experiment(**values)


@pytest.mark.parametrize("e", [Experiment(), changed(), Experiment(method="dynamic", cliff=math.inf)],
                         ids=["defaults", "changed", "inf"])
def test_json_round_trip(e):
    again = Experiment.from_json(e.to_json())
    assert again == e and again.id("x") == e.id("x")
    assert list(json.loads(e.to_json())) == list(FIELDS)


def run_cell(cell: str, *more: str) -> dict:
    """A notebook in which the cell ran, then further ones."""
    namespace = {"In": ["", "import math", cell, *more]}
    for text in namespace["In"]:
        exec(text, namespace)
    return namespace


@pytest.mark.parametrize("e", [Experiment(), changed(), Experiment(method="dynamic", cliff=math.inf)],
                         ids=["defaults", "changed", "inf"])
def test_parameters_cell_round_trip(e):
    assert Experiment.from_notebook(run_cell(parameters_cell(e))) == e


def test_the_injected_cell_wins_and_other_cells_dont_count():
    namespace = run_cell(parameters_cell(), "# Parameters\nepochs = 3\nmethod = 'periodic'\n", "helper = 4\nlr_ = 2")
    assert Experiment.from_notebook(namespace) == Experiment(epochs=3, method="periodic")


def test_a_misspelt_parameter_of_the_injected_cell_is_refused():
    with pytest.raises(ParameterError, match="did you mean 'epochs'"):
        Experiment.from_notebook(run_cell(parameters_cell(), "# Parameters\nepoch = 3\n"))


def test_a_kernel_that_keeps_no_history_is_as_strict():
    namespace = run_cell(parameters_cell(changed()))
    assert Experiment.from_notebook({**namespace, "In": [""], "_dh": ["x"], "exit": object()}) == changed()
    with pytest.raises(ParameterError, match="did you mean 'epochs'"):
        Experiment.from_notebook({**namespace, "In": [""], "epoch": 3})


def test_a_notebook_without_parameters_is_refused():
    with pytest.raises(ParameterError, match="run the notebook from its top"):
        Experiment.from_notebook({"In": ["x = 1"]})
    with pytest.raises(ParameterError):
        Experiment.from_notebook({})


def test_the_parameters_cell_has_a_typed_commented_line_for_each_field():
    lines = [line for line in parameters_cell().splitlines()[1:] if line]
    assert [line.split(":")[0] for line in lines] == list(FIELDS)
    assert all("  # " in line for line in lines)


@pytest.mark.parametrize("spelling", ["inf", "Infinity", math.inf])
def test_inf_can_be_said_in_text(spelling):
    assert Experiment(method="dynamic", cliff=spelling).cliff == math.inf


def test_whole_numbers_are_taken_for_numbers():
    assert Experiment(cliff=6, lr=1).id("x") == Experiment(cliff=6.0, lr=1.0).id("x")


def test_differences_name_what_is_not_the_papers_setting():
    assert differences(Experiment()) == {}
    assert differences(Experiment(method="dynamic", lr=0.1, flip_p=0.5, cliff=2.0)) == {
        "lr": (0.1, 1e-4), "cliff": (2.0, 6.0)}
