"""claims.yml is read strictly, and each arm that it names is one of the studies'."""

from pathlib import Path

import pytest
import yaml

from fer_lib.claims import read_claims

ROOT = Path(__file__).parents[1]
STUDIES = ROOT / "notebooks" / "studies"
CLAIMS = read_claims(STUDIES / "claims.yml")


def test_all_22_claims_are_there_in_order():
    assert [c.name for c in CLAIMS.claims] == [*(f"C{k}" for k in range(1, 23)), "K1", "K2", "K3"]
    assert {c.name for c in CLAIMS.claims if c.not_judged} == {"C19", "C20"}


@pytest.mark.parametrize("study, data", CLAIMS.data.items())
def test_each_arm_is_a_studys_on_that_data_and_has_the_seeds_that_its_claims_need(study, data):
    if not (STUDIES / f"{study}.yml").exists():
        pytest.skip("this study comes with its methods")
    content = yaml.safe_load((STUDIES / f"{study}.yml").read_text())
    assert content["settings"]["data"] == data
    for claim in CLAIMS.claims:
        for contrast in claim.contrasts:
            for arm in (a.split("/")[1] for a in contrast.arms if a.startswith(study + "/")):
                assert arm in content["arms"], f"{claim.name} names {study}/{arm}"
                if contrast.direction != "shown":
                    assert content["arms"][arm].get("seeds", content["seeds"]) >= contrast.n, f"{claim.name}: {arm}"
