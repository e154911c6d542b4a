"""Arms beside each other: what is compared, computed and drawn is what the records hold."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from fer_lib import placement_figures, sweep_figures, sweeps
from fer_lib.models import build_model
from fer_lib.palette import GREY, SIGNS, arm_look
from fer_lib.records import Records
from fer_lib.statistics import detectable_difference, equivalence_power, t_interval
from fer_lib.study_records import find_study, judged, lacking, studies_in
from fer_lib.workspace import find_workspace

USUAL = {"w0": .1, "cliff": 6., "divide_by": "abs", "w_mean": "model", "w_shape": "channel", "w_average_moments": False,
         "w_gradient": "literal", "w_noise_scale": 0., "precision": "auto", "optimizer": "adam", "lr": 1e-4,
         "weight_decay": 1e-4, "decay": "all", "schedule": "constant", "schedule_epochs": 10, "schedule_factor": .1,
         "flip_interval": 5, "flip_interval_unit": "epoch", "w_site": "act1", "flip_site": "act1",
         "flip_position": "before_relu"}
SITES, STEPS, F1 = ("layer1.0.act1", "layer1.1.act1"), 100, "chosen_test_macro_f1"


def w_of(arm: str, step: np.ndarray) -> np.ndarray:
    """A stone for "adamw", else a fall to ±1e-4 that turns every 20 steps."""
    if arm == "adamw":
        return np.full(len(step), .1)
    return np.where(step < 20, .1 - .005 * step, np.where(step // 20 % 2, -1e-4, 1e-4))


def study(name: str, arms: dict[str, tuple[str, dict, dict[int, float]]]) -> Records:
    """arms: name -> method, changed settings, score by seed. Dynamic arms have w, and flips where w turns."""
    runs, flips, histories = [], [], []
    for arm, (method, changes, scores) in arms.items():
        for seed, score in scores.items():
            key = {"study": name, "name": arm, "method": method, "seed": seed, "id": f"{arm}{seed}"}
            step = np.arange(1, STEPS + 1)
            w = w_of(arm, step)
            turns = step[1:][np.sign(w[1:]) != np.sign(w[:-1])] if method == "dynamic" else []
            runs.append({**key, "data": "fer2013", "drawn": False, "env_device": "a GPU", "steps": STEPS,
                         "env_precision": changes.get("precision", "tf32"), "flips_steps": len(turns), F1: score,
                         **{f"setting_{k}": v for k, v in (USUAL | changes).items()}})
            flips += [{**key, "step": t, "epoch": 1, "site": site, "sign": int(np.sign(w[t - 1])), "share": 1.}
                      for t in turns for site in SITES]
            if method == "dynamic":
                histories.append(pd.DataFrame({**{k: v for k, v in key.items()}, "step": step, **{
                    f"w_{part}/{site}": w + shift for site in SITES
                    for part, shift in (("mean", 0), ("min", -1e-3), ("max", 1e-3))}}))
    history = pd.concat(histories, ignore_index=True) if histories else pd.DataFrame()
    return Records(pd.DataFrame(runs), pd.DataFrame(), pd.DataFrame(flips), history, [])


@pytest.fixture
def found() -> dict[str, Records]:
    return {"table1": study("table1", {"baseline": ("baseline", {}, {0: .40, 1: .42, 2: .44}),
                                       "periodic": ("periodic", {}, {0: .41, 1: .42, 2: .43}),
                                       "dynamic": ("dynamic", {}, {0: .42, 1: .43, 2: .44})}),
            "dynamics": study("dynamics", {"step": ("dynamic", {"schedule": "step", "schedule_epochs": 3}, {1: .40}),
                                           "adamw": ("dynamic", {"optimizer": "adamw"}, {1: .45, 2: .47}),
                                           "w0_.5": ("dynamic", {"w0": .5}, {0: .43})}),
            "sensitivity": study("sensitivity", {
                "dynamic_wd": ("dynamic", {"weight_decay": 1e-3}, {0: .46, 1: .48}),
                "dynamic_bf16": ("dynamic", {"precision": "bf16"}, {0: .41}),
                "periodic_wd": ("periodic", {"weight_decay": 1e-3, "w0": .3}, {0: .39})})}


def test_arms_come_in_the_order_of_what_they_change_and_say_it(found):
    arms = sweeps.arms_of(found, "dynamic")
    assert [(a.label, a.words) for a in arms] == [
        ("table1/dynamic", ""), ("dynamics/w0_.5", "w0 = 0.5"), ("sensitivity/dynamic_bf16", "precision = bf16"),
        ("dynamics/adamw", "optimizer = adamw"), ("sensitivity/dynamic_wd", "weight_decay = 0.001"),
        ("dynamics/step", "schedule = step")]
    assert [a.changes for a in sweeps.arms_of(found, "periodic")] == [{}, {"weight_decay": 1e-3}], "w0 is not theirs"
    assert all(set(a.records.runs["name"]) == {a.name} == set(a.records.history["name"]) for a in arms)
    assert sweeps.arms_of(found, "dropout") == [] == sweeps.arms_of({}, "dynamic")


def test_without_table1_an_arm_is_compared_with_what_most_have(found):
    del found["table1"]
    assert {a.label: a.words for a in sweeps.arms_of(found, "dynamic")} == {
        "dynamics/w0_.5": "w0 = 0.5", "dynamics/adamw": "optimizer = adamw", "dynamics/step": "schedule = step",
        "sensitivity/dynamic_bf16": "precision = bf16", "sensitivity/dynamic_wd": "weight_decay = 0.001"}


def test_runs_that_two_studies_share_are_one_arm(found):
    shared = found["dynamics"]
    own = [a.label for a in sweeps.arms_of(found, "dynamic")]
    found["again"] = replace(shared, runs=shared.runs.replace({"name": {"adamw": "adamw_too", "step": "step_too"}}))
    found["again"].runs.loc[found["again"].runs["name"] == "step_too", "id"] += "x"
    assert {a.label for a in sweeps.arms_of(found, "dynamic")} == {*own, "again/step_too"}


def test_what_the_signs_do_is_told_arm_by_arm(found):
    table = sweeps.sign_table(sweeps.arms_of(found, "dynamic")).set_index("arm")
    own = table.loc["table1/dynamic"]
    assert own["flips"] == "5" and own["first flip"] == "20" and own["n"] == 3
    assert own["last third"] == "2" and own["turn together"] == "100.0%" and own["sign turns"] == "5"
    assert own["|w| at end / w0"] == "0.001"
    still = table.loc["dynamics/adamw"]
    assert still["flips"] == "0" == still["sign turns"] and still["first flip"] == "–" == still["turn together"]
    assert still["|w| at end / w0"] == "1"


def test_differences_are_of_common_seeds_on_one_device(found):
    rows = [("a", "adamw", "dynamics/adamw", "table1/dynamic"), ("b", "step", "dynamics/step", "table1/dynamic"),
            ("c", "none", "placement/none", "table1/dynamic")]
    table = sweeps.differences(found, rows, F1)
    assert table.round(9).values.tolist() == [["a", "adamw", 1, .02], ["a", "adamw", 2, .03], ["b", "step", 1, -.03]]
    found["dynamics"].runs["env_device"] = "another GPU"
    assert sweeps.differences(found, rows, F1).empty


def test_a_setting_is_compared_where_nothing_else_changes(found):
    decay = sweeps.by_setting(found, "dynamic", "weight_decay", F1)
    assert decay.groupby("label", sort=False)["value"].mean().round(9).to_dict() == {"0.0001": .43, "0.001": .47}
    assert set(decay["arm"]) == {"table1/dynamic", "sensitivity/dynamic_wd"}
    means = sweeps.setting_means(decay)                 # seeds 0 and 1 gain .04 and .05, whatever the third scores
    assert [round(m.mean, 9) for m in means.values()] == [.43, .475] and [m.n for m in means.values()] == [3, 2]
    change = t_interval([.04, .05])
    assert means[1e-3].high - means[1e-3].mean == pytest.approx(change.high - change.mean)
    found["sensitivity"].runs["env_device"] = "another GPU"
    decay = sweeps.by_setting(found, "dynamic", "weight_decay", F1)     # then no seed is in common
    assert sweeps.setting_means(decay)[1e-3].mean == pytest.approx(.47) and sweeps.setting_means(decay[:0]) == {}
    found["sensitivity"].runs["env_device"] = "a GPU"
    found["sensitivity"].runs.loc[2, F1] = .42          # bf16, exactly as Table 1's seed 0: then the mean is Table 1's
    precision = sweeps.by_setting(found, "dynamic", "precision", F1)
    assert sweeps.setting_means(precision)["bf16"].mean == pytest.approx(.43)
    assert precision["x"].tolist() == ["bf16", "tf32", "tf32", "tf32"], "what the run had, not 'auto'"
    assert sweeps.by_setting(found, "periodic", "w0", F1).empty and sweeps.by_setting({}, "dynamic", "w0", F1).empty


def test_places_come_in_the_networks_order(found):
    found["placement"] = study("placement", {
        "periodic_all": ("periodic", {"flip_site": "all"}, {0: .30}),
        "periodic_late": ("periodic", {"flip_position": "after_relu"}, {0: .44}),
        "periodic_both": ("periodic", {"flip_site": "act2", "lr": 1.}, {0: .9}),
        "dynamic_stem": ("dynamic", {"w_site": "stem"}, {0: .41, 1: .41})})
    table = sweeps.by_place(found, F1)
    means = table.groupby(["row", "arm"], sort=False)["value"].mean().round(9)
    assert means.to_dict() == {("stem", "dynamic"): 0., ("act1", "periodic"): 0., ("act1", "dynamic"): .01,
                               ("act1, after ReLU", "periodic"): .04, ("all", "periodic"): -.1}


def test_what_equality_takes(found):
    pair = sweeps.differences(found, [("p - b", "periodic", "table1/periodic", "table1/baseline"),
                                      ("same", "x", "table1/periodic", "table1/periodic"),
                                      ("one", "x", "dynamics/step", "table1/dynamic")], F1)
    row, = sweeps.power_table(pair, .02).itertuples(index=False)    # of no scatter, and of one seed, nothing is said
    assert row.n == 3 and row.sd == pytest.approx(.01) and row.mean == pytest.approx(0)
    assert row.detectable == detectable_difference(row.sd, 3) and row.chance == equivalence_power(row.sd, 3, .02)
    needed = row[-1]
    assert equivalence_power(.01, needed, .02) >= .8 > equivalence_power(.01, needed - 1, .02)
    assert sweeps.power_table(pair[:0], .02).empty


def test_a_path_is_blue_while_positive_and_its_flips_are_ticks(found):
    arms = sweeps.arms_of(found, "dynamic")
    figure = sweep_figures.paths(arms)
    first, axes = figure.axes[0], [ax for ax in figure.axes if ax.get_title(loc="left")]
    assert len(axes) == len(arms)
    assert [ax.get_title(loc="left").split(" (")[0] for ax in axes] == [a.words or "as in Table 1" for a in arms]
    assert "n = 3" in first.get_title(loc="left") and "5 flips" in first.get_title(loc="left")
    by_color = {}
    for line in first.lines:
        by_color.setdefault(to_hex(line.get_color()).upper(), []).append(line)
    w = w_of("dynamic", np.arange(1, STEPS + 1))
    for sign, look in SIGNS.items():
        drawn, = by_color[look.color]
        assert np.nanmax(drawn.get_ydata() * sign) > 0 and np.isfinite(drawn.get_ydata()).sum() == (w * sign > 0).sum()
        assert drawn.get_linestyle() == look.line
    assert len(by_color[GREY.upper()]) == 2 == sweep_figures.MOST_SEEDS - 1, "other seeds"
    ticks = [line for line in first.lines if line.get_marker() == "|"]
    assert ticks[0].get_xdata().tolist() == [20, 40, 60, 80, 100]
    stone = axes[[a.name for a in arms].index("adamw")]
    assert not any(len(line.get_xdata()) for line in stone.lines if line.get_marker() == "|")
    assert first.get_yscale() == "symlog"


def test_more_flips_than_can_be_told_apart_get_no_tick(found, monkeypatch):
    monkeypatch.setattr(sweep_figures, "MARKS", 4)
    figure = sweep_figures.paths(sweeps.arms_of(found, "dynamic")[:1])
    assert not [line for line in figure.axes[0].lines if line.get_marker() == "|"]


def test_differences_show_each_seed_the_mean_and_its_interval(found):
    rows = [(a.name, a.name, a.label, "table1/dynamic") for a in sweeps.arms_of(found, "dynamic")[1:]]
    table = sweeps.differences(found, rows, F1)
    figure = sweep_figures.differences(table, "difference", .01, "of data")
    ax, = figure.axes
    assert [t.get_text() for t in ax.get_yticklabels()][2] == "adamw (n = 2)"
    interval = t_interval([.02, .03])
    line, = (x for x in ax.lines if list(x.get_ydata()) == [2, 2])
    assert line.get_xdata() == pytest.approx([interval.low, interval.high])
    assert to_hex(line.get_color()).upper() == arm_look("adamw").color.upper()
    assert figure.get_suptitle() == "of data"


def test_rows_that_methods_share_get_a_panel_a_method_and_tints():
    table = pd.DataFrame({"row": ["stem", "stem", "act2"], "arm": ["periodic", "dynamic", "dynamic"], "seed": 0,
                          "value": [.1, .2, .3]})
    figure = sweep_figures.differences(table, "d", tints={"act2": "#f9d9c5"})
    assert [ax.get_title() for ax in figure.axes] == ["periodic", "dynamic"]
    marks = [[float(x) for line in ax.lines if len(line.get_xdata()) == 1 and line.get_markersize() == 6
              for x in line.get_xdata()] for ax in figure.axes]
    assert marks == [[.1], [.3, .2]]
    plain, tinted = figure.axes[0].get_yticklabels()
    assert to_hex(tinted.get_bbox_patch().get_facecolor()) == "#f9d9c5" and plain.get_bbox_patch() is None


def test_settings_are_panels_with_the_baseline_as_a_band(found):
    panels = {"weight decay": {m: sweeps.by_setting(found, m, "weight_decay", F1) for m in ("periodic", "dynamic")}}
    figure = sweep_figures.against_settings(panels, "F1", [.40, .42, .44])
    ax, = figure.axes
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0.0001\nn = 3, 3", "0.001\nn = 1, 2"]
    curves = {to_hex(line.get_color()).upper(): line for line in ax.lines if line.get_label()[:1] in "pd"}
    assert curves[arm_look("dynamic").color].get_ydata() == pytest.approx([.43, .475])
    assert curves[arm_look("periodic").color].get_ydata() == pytest.approx([.42, .40])
    band, = (line for line in ax.lines if line.get_label().startswith("baseline"))
    assert list(band.get_ydata()) == pytest.approx([.42, .42]) and "n = 3" in band.get_label()
    assert band.get_xdata() == pytest.approx([-.5, 1.5])


def test_the_baseline_stands_only_where_it_was_trained(found):
    """It reads weight decay as well, and has Table 1's; of w0 it knows nothing."""
    assert "weight_decay" in sweeps.read_by("baseline") and "w0" not in sweeps.read_by("baseline")
    panels = {name: {"dynamic": sweeps.by_setting(found, "dynamic", name, F1)} for name in ("weight_decay", "w0")}
    left, right = sweep_figures.against_settings(panels, "F1", [.40, .44], shared=["weight_decay"]).axes
    ends = [line.get_xdata() for ax in (left, right) for line in ax.lines if line.get_label().startswith("baseline")]
    assert ends == [pytest.approx((-.3, .3)), pytest.approx((-.5, 1.5))]


def test_the_power_of_a_test_of_equality_is_drawn_with_the_seeds_that_are_here():
    figure = sweep_figures.power_of_equality({"a pair": (.014, 10)}, .01)
    curve, mark, _ = figure.axes[0].lines
    assert "sd 0.0140" in curve.get_label() and (np.diff(curve.get_ydata()) > 0).all()
    assert (mark.get_xdata()[0], mark.get_ydata()[0]) == (10, equivalence_power(.014, 10, .01))


def test_a_places_tint_is_that_of_its_sites_in_the_diagram():
    model, twin = build_model("resnet18", width=.125), placement_figures.TWIN
    for place in ("stem", "layer3.act1", "act1", "pre_add", "shortcut"):
        assert placement_figures.place_tint(model, place) == twin
    for place in ("act2", "act1, after ReLU"):
        assert placement_figures.place_tint(model, place) == placement_figures.NO_TWIN
    assert placement_figures.place_tint(model, "all") == placement_figures.PLAIN


# --- the records that came with the kit ---


def test_each_of_a_studys_arms_that_is_missing_is_named():
    workspace = find_workspace()
    found = {"dynamics": find_study(workspace, "dynamics")}
    found["dynamics"].runs["name"] = "adamw"
    said = lacking(workspace, found, ["dynamics/*"])
    assert "w0_.02" in said and "plateau" in said and "adamw" not in said
    assert lacking(workspace, found, ["dynamics/*"], "quick").count("mean_site") == 2      # as missing, in the command


def test_some_claims_are_judged_as_all_of_them_are(kit):
    """Holm counts a claim's whole family, whoever asks for it."""
    every = {v.claim.name: v for v in kit}
    for v in judged(find_workspace(), ("C8", "C14")):
        assert v.verdict == every[v.claim.name].verdict
        for a, b in zip(v.contrasts, every[v.claim.name].contrasts):
            assert a.judgement.p_adjusted == b.judgement.p_adjusted or math.isnan(b.judgement.p_adjusted)


def test_the_dynamics_that_came_with_the_kit():
    """Written for any arms: those that are here hold what their settings mean."""
    table = sweeps.sign_table(sweeps.arms_of(studies_in(find_workspace(), ("table1", "dynamics")), "dynamic"))
    table = table.set_index("arm")
    for arm in table.index.intersection(["dynamics/adamw", "dynamics/no_decay", "dynamics/decay_matrices"]):
        assert table.loc[arm, "flips"] == "0" and table.loc[arm, "|w| at end / w0"] == "1"
    assert table.loc["table1/dynamic", "turn together"] == "100.0%"
    few, many = map(int, table.loc["table1/dynamic", "flips"].split("–"))
    assert 0 < few < many
    if "dynamics/exact" in table.index:                 # neither data nor rounding reaches w: every seed is the same
        assert table.loc["dynamics/exact", "flips"].isdigit()
