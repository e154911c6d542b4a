"""The paper's claims: the file that says what would show each, verdicts on planted records, and that it came first."""

import copy
import dataclasses
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from fer_lib import claims, statistics
from fer_lib.claims import as_text, judge, main, verdict_table
from fer_lib.claims_file import ClaimError, Claims, at_size, read_claims
from fer_lib.event_metrics import measured
from fer_lib.records import read_records

ROOT = Path(__file__).parents[1]
STUDIES = ROOT / "notebooks" / "studies"
RESULTS = ROOT / "notebooks" / "results"
FILE = "notebooks/studies/claims.yml"
CLAIMS = read_claims(ROOT / FILE)


@pytest.fixture(autouse=True)
def quick_bca(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 99)


# --- the file that comes with the kit ---


def test_all_22_claims_are_there_in_order():
    assert [c.name for c in CLAIMS.claims] == [*(f"C{k}" for k in range(1, 23)), "K1", "K2", "K3"]
    assert {c.name for c in CLAIMS.claims if c.not_judged} == {"C19", "C20"}


@pytest.mark.parametrize("study, data", CLAIMS.data.items())
def test_each_arm_is_a_studys_on_that_data_and_has_the_seeds_that_its_claims_need(study, data):
    content = yaml.safe_load((STUDIES / f"{study}.yml").read_text())
    assert content["settings"]["data"] == data
    for claim in CLAIMS.claims:
        for contrast in claim.contrasts:
            for arm in (a.split("/")[1] for a in contrast.arms if a.startswith(study + "/")):
                assert arm in content["arms"], f"{claim.name} names {study}/{arm}"
                if contrast.direction != "shown":
                    assert content["arms"][arm].get("seeds", content["seeds"]) >= contrast.n, f"{claim.name}: {arm}"


def test_table_1_has_20_seeds_other_scores_10_and_events_4():
    for claim in CLAIMS.claims:
        for c in claim.contrasts:
            if c.direction in ("each_above", "each_below"):
                assert c.n >= 4
            elif c.direction != "shown":
                assert c.n >= (20 if claim.name in ("C1", "C2", "C6", "C7", "C21") else 10)
    families = {}
    for claim in CLAIMS.claims:
        for c in claim.contrasts:
            if c.direction in ("greater", "less"):
                families.setdefault(c.family, []).append(c.n)
    for family, n in families.items():              # each can become significant after Holm
        assert 2 * len(n) / 2 ** min(n) < .05, family


# --- what is refused ---


GOOD = {"studies": {"s": "faces"}, "claims": {"C1": {
    "text": "a helps", "family": "f", "metric": "chosen_test_macro_f1", "margin": .01, "n": 10,
    "contrasts": [{"a": "s/a", "b": "s/baseline", "direction": "greater"}]}}}


def written(folder: Path, content: object) -> Path:
    path = folder / "claims.yml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return path


def changed(**contrast) -> dict:
    content = copy.deepcopy(GOOD)
    content["claims"]["C1"]["contrasts"][0].update(contrast)
    return content


def claim_changed(**values) -> dict:
    content = copy.deepcopy(GOOD)
    content["claims"]["C1"].update(values)
    return content


@pytest.mark.parametrize("content, reason", [
    ("claims: [", "'claims.yml' is not YAML"), ("- 1", "must have the keys studies and claims"),
    ({**GOOD, "claim": {}}, "must have the keys studies and claims"),
    ({**GOOD, "studies": ["s"]}, "'studies' in 'claims.yml' maps each study"),
    ({**GOOD, "claims": {"C1": 3}}, "'claims' in 'claims.yml' maps names to claims"),
    (claim_changed(direction="less"), "unknown key 'direction' in C1"), (claim_changed(text=""), "C1 has no text"),
    (claim_changed(note=3), "note of C1 is a text, not 3"),
    (claim_changed(contrasts=[]), "C1 has either a list of contrasts or a reason"),
    (claim_changed(not_judged="no data"), "C1 has either a list of contrasts or a reason"),
    (claim_changed(contrasts=["s/a"]), "a contrast of C1 is a mapping"),
    (claim_changed(n="many"), "n of C1 is a whole number"),
    (claim_changed(n=1), "n of C1 is at least 2"), (claim_changed(margin=0), "direction greater of C1 needs a margin"),
    (claim_changed(margin="1e-2"), "margin of C1 is a number, not '1e-2'"),
    (changed(direktion="less"), "unknown key 'direktion' in C1"),
    (changed(direction="more"), "unknown direction 'more' of C1 (choose one of greater"),
    (changed(direction="each_above"), "direction each_above of C1 needs a value"),
    (changed(direction="shown"), "no contrast of C1 is judged"), (changed(a="t/a"), "a of C1 names 't/a'"),
    (changed(b="baseline"), "b of C1 names 'baseline'"), (changed(a=[]), "a of C1 is an arm (study/arm) or a list"),
    (changed(against=["s/a"]), "against of C1 is a list of two arms"),
    (changed(paper={"c": 1}), "paper of C1 maps a and b"), (changed(across_precisions=1), "is true or false, not 1"),
    (changed(seed_shift="1"), "seed_shift of C1 is a whole number")])
def test_a_bad_claims_file_is_one_sentence(tmp_path, capsys, content, reason):
    path = written(tmp_path, content)
    with pytest.raises(ClaimError) as error:
        read_claims(path)
    assert reason in str(error.value)
    assert main(["--claims", str(path), "--records", str(tmp_path)]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("claims: ") and shown.err.count("\n") == 1


def test_missing_files_are_one_sentence(tmp_path, capsys):
    assert main(["--claims", str(tmp_path / "none.yml")]) == 2
    assert "no claims file at" in capsys.readouterr().err
    assert main(["--records", str(tmp_path / "none")]) == 2
    assert "no folder of records at" in capsys.readouterr().err


# --- verdicts on planted records ---


SD = .014           # of paired differences, as measured on faces
RNG = np.random.default_rng(0)
SEED_EFFECT = RNG.normal(.4, .03, 200)


def run(arm: str, seed: int, f1: float, **more) -> dict:
    return {"study": "s", "name": arm, "method": "baseline", "seed": seed, "id": f"{arm}{seed}", "data": "faces",
            "data_hash": "d", "drawn": False, "semantics": 2, "env_device": "GPU", "env_precision": "tf32",
            "setting_epochs": 3, "setting_batch_size": 64, "setting_backbone": "resnet18", "setting_width": 1.,
            "setting_w0": .1, "setting_image_size": 0, "steps": 12, "last_epoch": 3, "chosen_test_macro_f1": f1,
            "last_test_macro_f1": f1 - .01, "max_val_macro_f1": f1 + .02, "flips_steps": 0, "chosen_val_loss": 2.,
            "chosen_train_loss": .5, **more}


def arm(name: str, gain: float, n: int = 20, sd: float = SD, first: int = 0, **more) -> list[dict]:
    """Runs whose F1 is the seed's, plus exactly `gain` on average, plus noise of exactly that sd."""
    noise = np.random.default_rng(sum(map(ord, name))).normal(size=n)
    noise = (noise - noise.mean()) / noise.std(ddof=1) * sd if n > 1 else np.zeros(n)
    return [run(name, first + k, SEED_EFFECT[first + k] + gain + noise[k], **more) for k in range(n)]


def plant(folder: Path, *rows: list[dict], study: str = "s", **tables: pd.DataFrame) -> Path:
    """A study's records as `fer_lib.records export` writes them."""
    place = folder / study
    place.mkdir(parents=True)
    pd.DataFrame([row for some in rows for row in some]).to_parquet(place / "runs.parquet")
    for name in ("epochs", "flips", "history"):
        tables.get(name, pd.DataFrame({"name": pd.Series(dtype=str), "seed": pd.Series(dtype=int)})).to_parquet(
            place / f"{name}.parquet")
    return folder


def asked(tmp_path: Path, **contrast) -> Claims:
    return read_claims(written(tmp_path, changed(n=20, **contrast)))


def verdict(tmp_path: Path, *rows: list[dict], **contrast) -> claims.ClaimVerdict:
    return judge(asked(tmp_path, **contrast), plant(tmp_path / "r", arm("baseline", 0, sd=0), *rows))[0]


@pytest.mark.parametrize("gain, direction, expected", [
    (.03, "greater", "holds"), (0, "greater", "does not hold"), (-.03, "greater", "does not hold"),
    (-.03, "less", "holds"), (.006, "greater", "undecided"), (0, "equal", "holds"), (.05, "equal", "does not hold")])
def test_a_planted_method(tmp_path, gain, direction, expected):
    """One that truly helps, one that truly does nothing, one that hurts, and one whose gain 20 seeds can't tell."""
    found = verdict(tmp_path, arm("a", gain), direction=direction)
    contrast, = found.contrasts
    assert found.verdict == expected == contrast.judgement.verdict and found.reason == ""
    assert contrast.judgement.estimate.mean == pytest.approx(gain, abs=1e-9) and contrast.judgement.n == 20
    assert len(contrast.sample.ids) == 40 and contrast.sample.notes == ()
    assert contrast.beside["max_val_macro_f1"].mean == pytest.approx(gain, abs=1e-9)


def test_too_few_seeds_describe_and_say_so(tmp_path):
    found = verdict(tmp_path, arm("a", .05, n=19))
    assert found.verdict == "descriptive" and found.reason == "n = 19 where 20 are asked for: s/a - s/baseline"
    assert found.contrasts[0].judgement.estimate.mean == pytest.approx(.05, abs=.01)


@pytest.mark.parametrize("rows, reason", [
    ([], "no records of s/a"), ([arm("a", 0, data="cars")], "the records of s/a are of cars, not faces"),
    ([arm("a", 0), arm("a", 0, n=1)], "two records of s/a with seed 0"),
    ([arm("a", 0, first=50)], "no seed with all of s/a, s/baseline"),
    ([arm("a", 0, semantics=1)], "s/a, s/baseline differ in semantics: 1, 2"),
    ([arm("a", 0, data_hash="e")], "differ in data_hash: d, e"),
    ([arm("a", 0, setting_epochs=4)], "differ in epochs: 3, 4"),
    ([arm("a", 0, env_device="another GPU")], "the arms ran on different devices or precisions in each seed"),
    ([arm("a", 0, env_precision="bf16")], "the arms ran on different devices or precisions in each seed")])
def test_what_can_not_be_compared_is_not_judged_and_says_why(tmp_path, rows, reason):
    found = verdict(tmp_path, *rows)
    assert found.verdict == "not judged" and reason in found.reason and found.contrasts[0].judgement.n == 0


@pytest.mark.parametrize("contrast", [{"direction": "greater"}, {"direction": "each_above", "value": 0}])
def test_drawn_faces_judge_nothing(tmp_path, contrast):
    found = verdict(tmp_path, arm("a", .3, drawn=True), **contrast)
    assert (found.verdict, found.reason) == ("descriptive", "drawn faces are no evidence about methods")
    assert found.contrasts[0].judgement.n == 20


def test_records_of_nothing_are_not_judged(tmp_path):
    assert judge(asked(tmp_path), tmp_path)[0].reason == "no records of s"


def test_pairs_are_made_on_one_device_and_the_verdict_names_them_all(tmp_path):
    """Seeds 18, 19: the arms on two devices, left out. 10 to 17: both on another device, used."""
    def device(row: dict) -> dict:
        other = row["seed"] >= 10 and not (row["name"] == "a" and row["seed"] >= 18)
        return {**row, "env_device": "GPU 2" if other else "GPU"}

    rows = [device(row) for row in arm("baseline", 0) + arm("a", .05)]
    contrast, = judge(asked(tmp_path), plant(tmp_path / "r", rows))[0].contrasts
    assert contrast.judgement.n == 18 and contrast.judgement.verdict == "descriptive"
    assert contrast.sample.notes == ("2 seeds left out: their arms ran on different devices or precisions",
                                     "runs of several devices or precisions: GPU, tf32 (20), GPU 2, tf32 (16)")


def test_precisions_are_compared_only_where_the_claim_says_so(tmp_path):
    found = verdict(tmp_path, arm("a", .05, env_precision="bf16"), across_precisions=True)
    assert found.verdict == "holds" and "GPU, bf16 (20)" in found.contrasts[0].sample.notes[0]


def test_an_interaction_a_spread_and_a_shift_of_seeds(tmp_path):
    rows = [arm(name, gain, sd=0) for name, gain in (("a", .07), ("c", .05), ("d", .04))]
    for name in "123":
        (tmp_path / name).mkdir()
    contrast, = verdict(tmp_path / "1", *rows, against=["s/c", "s/d"]).contrasts
    assert contrast.judgement.estimate.mean == pytest.approx(.06)
    assert contrast.contrast.label == "(s/a - s/baseline) - (s/c - s/d)"
    contrast, = verdict(tmp_path / "2", *rows, a=["s/a", "s/c", "s/d"], b=["s/c", "s/d"]).contrasts
    assert contrast.judgement.estimate.mean == pytest.approx(.03 - .01)
    contrast, = verdict(tmp_path / "3", arm("a", 0, first=100), seed_shift=100).contrasts
    assert contrast.judgement.n == 20 and contrast.sample.ids[0] == "a100"


def test_holm_is_over_the_family_wherever_its_claims_are(tmp_path):
    content = changed(n=10)
    second = copy.deepcopy(content["claims"]["C1"])
    second["contrasts"][0]["a"] = "s/missing"
    content["claims"]["C2"] = second
    folder = plant(tmp_path / "r", arm("baseline", 0, 10, 0), arm("a", .05, 10))
    found = judge(read_claims(written(tmp_path, content)), folder)
    judgement = found[0].contrasts[0].judgement
    assert judgement.p_adjusted == pytest.approx(2 * judgement.p) and found[1].verdict == "not judged"


# --- events in a run ---


def events_of(flip_epochs: list[int], loss: list[float], f1: list[float], name: str = "a") -> dict[str, pd.DataFrame]:
    """One run of four steps an epoch; signs turn at the first step of those epochs."""
    epochs = pd.DataFrame([{"epoch": k + 1, "step": 4 * (k + 1), "split": split, "mode": mode, "train_loss": loss[k],
                            "macro_f1": f1[k] - (split == "test") / 100 - (mode == "clean"), "name": name, "seed": 0}
                           for k in range(len(loss)) for split in ("val", "test") for mode in ("trained", "clean")])
    flips = pd.DataFrame([{"step": 4 * (e - 1) + 1, "epoch": e, "site": site, "sign": sign, "share": 1., "name": name,
                           "seed": 0} for k, e in enumerate(flip_epochs) for sign in [1 if k % 2 else -1]
                          for site in ("x", "y")], columns=["step", "epoch", "site", "sign", "share", "name", "seed"])
    history = pd.DataFrame({"step": [4, 8], "epoch": [1, 2], "loss": 1., "w_mean/x": [.1, -.002],
                            "w_mean/y": [.1, .001], "w_mean/z": np.nan, "name": name, "seed": 0})
    return {"epochs": epochs, "flips": flips, "history": history}


def metric_of(tmp_path: Path, name: str, flip_epochs: list[int] = (3, 6, 9), **changes) -> float:
    loss = [1., .8, 1.5, .9, .7, 1.2, .6, .5, .9, .4]
    f1 = [.1, .3, .2, .35, .4, .3, .5, .45, .4, .5]
    tables = events_of(list(flip_epochs), loss, f1)
    tables.update(changes)
    plant(tmp_path, [run("a", 0, .4, steps=40, last_epoch=10, flips_steps=len(flip_epochs),
                         uncorrupted_macro_f1=.4, corrupted_macro_f1=.25)], **tables)
    return measured(read_records(tmp_path / "s"), "a", name)[0]


@pytest.mark.parametrize("name, wanted", [
    ("loss_spike", (.7 + .5 + .4) / 3), ("f1_drop", (.1 + .1 + .05) / 3),
    ("loss_over_an_interval", ((.7 - .8) + (.5 - .7)) / 2), ("f1_over_an_interval", ((.4 - .3) + (.45 - .4)) / 2),
    ("recovery_epochs", (2 + 1) / 2),               # epochs 3, 4 are above epoch 2's .8; epoch 6 is above epoch 5's .7
    ("flip_count", 3), ("flips_last_third", 1),     # steps 9, 21, 33 of 40
    ("interval_cv", 0), ("synchrony", 1), ("w_end_ratio", .02), ("ends_negative", .5),
    ("before_toggle_test_macro_f1", .44), ("chosen_gap", 1.5), ("last_test_macro_f1", .39),
    ("corruption_drop", .15)])
def test_event_metrics_by_hand(tmp_path, name, wanted):
    assert metric_of(tmp_path, name) == pytest.approx(wanted)


@pytest.mark.parametrize("name, wanted", [
    ("loss_spike", np.nan), ("recovery_epochs", np.nan), ("flip_count", 0), ("interval_cv", np.nan),
    ("synchrony", np.nan), ("before_toggle_test_macro_f1", .49), ("flips_last_third", 0)])
def test_a_run_without_flips_has_no_events(tmp_path, name, wanted):
    assert metric_of(tmp_path, name, []) == pytest.approx(wanted, nan_ok=True)


def test_irregular_and_lonely_flips(tmp_path):
    """Intervals of 1 and 3 epochs: sd / mean = 1 / 2. One site of two at a time: half of the signs."""
    assert metric_of(tmp_path / "1", "interval_cv", [2, 3, 6]) == pytest.approx(.5)
    flips = events_of([3, 6], [1.] * 10, [1.] * 10)["flips"]
    flips = flips[(flips["site"] == "x") == (flips["epoch"] == 3)]
    assert metric_of(tmp_path / "2", "synchrony", flips=flips) == .5
    assert np.isnan(metric_of(tmp_path / "3", "w_end_ratio", history=pd.DataFrame({"name": [], "seed": []})))


@pytest.mark.parametrize("name", ["flips_last_third", "interval_cv", "loss_spike", "before_toggle_test_macro_f1"])
def test_flips_that_the_records_do_not_keep_are_no_zero(tmp_path, name):
    assert np.isnan(metric_of(tmp_path, name, flips=events_of([], [1.], [1.])["flips"]))


def test_runs_without_the_event_are_named(tmp_path):
    tables = events_of([2, 3], [1., .5, .2], [.1, .2, .3])
    tables["epochs"] = pd.concat([tables["epochs"], tables["epochs"].assign(seed=1)])
    rows = [run("a", 0, .4), run("a", 1, .4)]
    claim = read_claims(written(tmp_path, changed(b=[], metric="loss_spike", direction="each_below", value=0, n=2)))
    contrast, = judge(claim, plant(tmp_path / "r", rows, **tables))[0].contrasts
    assert contrast.sample.notes == ("1 of 2 runs of s/a have no loss_spike",)
    assert (contrast.judgement.n, contrast.judgement.verdict) == (1, "descriptive")


def test_flips_that_were_only_counted_are_named(tmp_path):
    rows = [run("a", seed, .4, flips_steps=9) for seed in (0, 1)]
    claim = read_claims(written(tmp_path, changed(b=[], metric="interval_cv", direction="each_above", value=0, n=2)))
    contrast, = judge(claim, plant(tmp_path / "r", rows))[0].contrasts
    assert contrast.judgement.n == 0 and contrast.sample.notes == (
        "2 of 2 runs of s/a have no interval_cv; of their flips the records keep only the number",)


def test_an_unknown_metric_is_named(tmp_path):
    assert verdict(tmp_path, arm("a", 0), metric="f1").reason == "the records of s/a have no f1"


def test_event_metrics_of_real_runs():
    """The stored runs of the quick study: periodic toggles at epochs 4 and 8, dynamic turns all signs together."""
    records = read_records(RESULTS / "example_runs")
    runs = records.runs.set_index("name")
    assert measured(records, "periodic", "flip_count")[0] == runs["flips_steps"]["periodic"] == 2
    assert measured(records, "periodic", "loss_spike")[0] > 0
    assert measured(records, "dynamic", "synchrony")[0] == pytest.approx(1)
    assert measured(records, "dynamic", "flip_count")[0] == runs["flips_steps"]["dynamic"]
    assert 0 < measured(records, "dynamic", "w_end_ratio")[0] < 1
    assert measured(records, "baseline", "flip_count")[0] == 0


# --- the table and the command ---


def test_the_table_has_the_papers_number_beside_ours(tmp_path):
    found = [verdict(tmp_path, arm("a", .03), paper={"a": .38, "b": .34})]
    row, = verdict_table(found).to_dict("records")
    assert row["paper_difference"] == pytest.approx(.04) and row["estimate"] == pytest.approx(.03)
    assert row["low"] < .03 < row["high"] and row["p_adjusted"] < .05 and row["improvement"] > .9
    assert row["detectable"] == pytest.approx(.0092, abs=2e-4) and row["records"].count(",") == 39
    text = as_text(found)
    assert "C1  HOLDS          a helps" in text and "the paper +0.0400, ours less the paper's -0.0100" in text
    assert "n = 20" in text and "adjusted" in text


def test_the_command_prints_a_verdict_for_every_claim(capsys, monkeypatch, kit):
    asked = []
    monkeypatch.setattr(claims, "judge", lambda *given: asked.append(given) or kit)
    assert main([]) == 0
    assert asked == [(CLAIMS, ROOT / "notebooks" / "results")]
    shown = capsys.readouterr()
    assert shown.err == ""
    for claim in CLAIMS.claims:
        assert f"\n{claim.name:<4}" in "\n" + shown.out
    assert "this version trains expressions only" in shown.out


def test_the_claims_of_another_size_are_on_its_records(tmp_path):
    moved = at_size(CLAIMS, ROOT / FILE, "quick")
    assert moved.data["table1-quick"] == "synthetic-quick"
    assert moved.claims[0].contrasts[0].arms == ("table1-quick/periodic", "table1-quick/baseline")
    paper = at_size(dataclasses.replace(CLAIMS, data={"table1": "fer2013"}), ROOT / FILE, "paper")
    assert paper.data == {"table1-paper": "affectnet"}
    with pytest.raises(ClaimError, match="'none.yml' says no data for the size 'quick'"):
        at_size(Claims((), {"none": "x"}), ROOT / FILE, "quick")


# --- the claims were there before the records ---


def git(root: Path, *arguments: str) -> str:
    found = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


def contrasts_on(study: str, some: Claims) -> list:
    return [(claim.name, c) for claim in some.claims for c in claim.contrasts
            if any(arm.startswith(f"{study}/") for arm in c.arms)]


def changed_after_the_records(root: Path, tmp_path: Path) -> list[str]:
    """Studies whose contrasts are not those of the parent of the commit that added the study's records."""
    now, late = read_claims(root / FILE), []
    for study in now.data:
        records = f"notebooks/results/{study}/runs.parquet"
        if added := git(root, "log", "--diff-filter=A", "--format=%H", "--", records).split():
            before = f"{added[-1]}^:{FILE}"
            known = subprocess.run(["git", "cat-file", "-e", before], cwd=root, capture_output=True).returncode == 0
            then = contrasts_on(study, read_claims(written(tmp_path, git(root, "show", before)))) if known else None
            late += [study] if then != contrasts_on(study, now) else []
    return late


def test_the_claims_were_committed_before_the_records_that_they_judge(tmp_path):
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    if git(ROOT, "rev-parse", "--is-shallow-repository") == "true":
        pytest.skip("a shallow clone has no history")
    assert changed_after_the_records(ROOT, tmp_path) == []


def test_claims_that_come_late_or_change_are_found(tmp_path):
    """Of three studies one has its claim before its records, one after, one beside them."""
    root, content = tmp_path / "repository", {"studies": dict.fromkeys("stu", "faces"), "claims": {}}

    def commit(claims: dict[str, str], records: str = "") -> None:
        for name, study in claims.items():
            content["claims"][name] = yaml.safe_load(yaml.safe_dump(GOOD["claims"]["C1"]).replace("s/", f"{study}/"))
        if claims:
            (root / FILE).write_text(yaml.safe_dump(content))
        if records:
            (root / "notebooks" / "results" / records).mkdir(parents=True)
            (root / "notebooks" / "results" / records / "runs.parquet").write_bytes(b"numbers")
        git(root, "add", "-A")
        git(root, "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "a step")

    (root / FILE).parent.mkdir(parents=True)
    git(root, "init", "-q")
    commit({"C1": "s"})
    commit({}, "s")
    assert changed_after_the_records(root, tmp_path) == []
    commit({}, "t")
    commit({"C2": "t"})
    commit({"C3": "u"}, "u")
    assert changed_after_the_records(root, tmp_path) == ["t", "u"]
    content["claims"]["C1"]["margin"] = .001
    commit({"C4": "u"})
    assert changed_after_the_records(root, tmp_path) == ["s", "t", "u"]
