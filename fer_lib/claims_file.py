"""What would show each claim of the paper: notebooks/studies/claims.yml, read strictly. Its head explains each key.

It is written and committed before the records that it judges; `fer_lib.claims` judges them.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

DIRECTIONS = ("greater", "less", "equal", "no_gain", "each_above", "each_below", "shown")
WITH_MARGIN = ("greater", "less", "equal", "no_gain")
WITH_VALUE = ("each_above", "each_below")
CLAIM_KEYS = {"text", "source", "note", "family", "metric", "margin", "n", "contrasts", "not_judged"}
CONTRAST_KEYS = {"a", "b", "against", "direction", "family", "metric", "margin", "n", "value", "paper", "seed_shift",
                 "across_precisions"}
KINDS = {"family": ((str,), "a text"), "metric": ((str,), "a text"), "n": ((int,), "a whole number"),
         "seed_shift": ((int,), "a whole number"), "across_precisions": ((bool,), "true or false"),
         "margin": ((int, float), "a number"), "value": ((int, float), "a number")}


class ClaimError(ValueError):
    """A claims file that can't be used; its one sentence names the claim, the value and what is allowed."""

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


@dataclass(frozen=True)
class Contrast:
    """One comparison. Arms are "study/arm"; several count as the spread over them. `paper`: its numbers of a and b."""

    a: tuple[str, ...]
    direction: str
    metric: str
    family: str
    n: int
    b: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    margin: float = 0.
    value: float = 0.
    paper: dict[str, float] = field(default_factory=dict)
    seed_shift: int = 0
    across_precisions: bool = False

    @property
    def arms(self) -> tuple[str, ...]:
        return self.a + self.b + self.against

    @property
    def label(self) -> str:
        """Such as "table1/periodic - table1/baseline"."""
        side = lambda arms: arms[0] if len(arms) == 1 else f"spread of {', '.join(arms)}"                  # noqa: E731
        text = side(self.a) + (f" - {side(self.b)}" if self.b else "")
        return f"({text}) - ({' - '.join(self.against)})" if self.against else text


@dataclass(frozen=True)
class Claim:
    """A claim of the paper (C1, ...) or a control (K1, ...). not_judged: why it can't be judged here, else empty."""

    name: str
    text: str
    contrasts: tuple[Contrast, ...] = ()
    source: str = ""
    note: str = ""
    not_judged: str = ""


@dataclass(frozen=True)
class Claims:
    """The file: claims in order, and the data set whose records judge each study's arms."""

    claims: tuple[Claim, ...]
    data: dict[str, str]


def read_claims(path: Path) -> Claims:
    """Read a claims file. Raises ClaimError for anything that is not as its head says."""
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ClaimError(f"no claims file at '{path}' ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ClaimError(f"'{path.name}' is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not {"studies", "claims"} <= set(content) <= {"studies", "claims", "controls"}:
        raise ClaimError(f"'{path.name}' must have the keys studies and claims, and may have controls")
    data = content["studies"]
    if not isinstance(data, dict) or not all(isinstance(x, str) for pair in data.items() for x in pair):
        raise ClaimError(f"'studies' in '{path.name}' maps each study to the name of its data set")
    found = []
    for key in ("claims", "controls"):
        entries = content.get(key) or {}
        if not isinstance(entries, dict) or not all(isinstance(own, dict) for own in entries.values()):
            raise ClaimError(f"'{key}' in '{path.name}' maps names to claims")
        found += [_claim(str(name), own, data) for name, own in entries.items()]
    return Claims(tuple(found), data)


def _claim(name: str, own: dict, data: dict[str, str]) -> Claim:
    _check_keys(name, own, CLAIM_KEYS)
    text = {key: own.get(key, "") for key in ("text", "source", "note", "not_judged")}
    for key, value in text.items():
        if not isinstance(value, str):
            raise ClaimError(f"{key} of {name} is a text, not {value!r}")
    if not text["text"]:
        raise ClaimError(f"{name} has no text")
    contrasts = own.get("contrasts", [])
    if not isinstance(contrasts, list) or bool(contrasts) == bool(text["not_judged"]):
        raise ClaimError(f"{name} has either a list of contrasts or a reason why it is not judged (not_judged)")
    defaults = {key: own[key] for key in ("family", "metric", "margin", "n") if key in own}
    found = tuple(_contrast(name, one, defaults, data) for one in contrasts)
    if found and all(c.direction == "shown" for c in found) and name.startswith("C"):
        raise ClaimError(f"no contrast of {name} is judged: give one a direction other than shown, or say not_judged")
    return Claim(name, contrasts=found, **text)


def _contrast(name: str, own: object, defaults: dict, data: dict[str, str]) -> Contrast:
    if not isinstance(own, dict):
        raise ClaimError(f"a contrast of {name} is a mapping, not {own!r}")
    _check_keys(name, own, CONTRAST_KEYS)
    values = {**defaults, **own}
    if missing := [key for key in ("a", "direction", "family", "metric", "n") if key not in values]:
        raise ClaimError(f"a contrast of {name} has no {missing[0]}")
    direction = values["direction"]
    if direction not in DIRECTIONS:
        raise ClaimError(f"unknown direction '{direction}' of {name} (choose one of {', '.join(DIRECTIONS)})")
    for key, (kinds, words) in KINDS.items():
        if key in values and type(values[key]) not in kinds:
            raise ClaimError(f"{key} of {name} is {words}, not {values[key]!r}")
    if values["n"] < 2:
        raise ClaimError(f"n of {name} is at least 2, not {values['n']}")
    if direction in WITH_MARGIN and not values.get("margin", 0) > 0:
        raise ClaimError(f"direction {direction} of {name} needs a margin above 0")
    if direction in WITH_VALUE and "value" not in values:
        raise ClaimError(f"direction {direction} of {name} needs a value")
    paper = values.get("paper", {})
    if not isinstance(paper, dict) or not set(paper) <= {"a", "b"} \
            or not all(type(v) in (int, float) for v in paper.values()):
        raise ClaimError(f"paper of {name} maps a and b to the paper's numbers, not {paper!r}")
    sides = {key: _arms(name, key, values.get(key, []), data) for key in ("a", "b", "against")}
    if sides["against"] and (len(sides["against"]) != 2 or not sides["b"]):
        raise ClaimError(f"against of {name} is a list of two arms, beside a and b")
    return Contrast(**{**values, **sides, "paper": paper})


def _arms(name: str, key: str, value: object, data: dict[str, str]) -> tuple[str, ...]:
    arms = [value] if isinstance(value, str) else value
    if not isinstance(arms, list) or key == "a" and not arms:
        raise ClaimError(f"{key} of {name} is an arm (study/arm) or a list of them, not {value!r}")
    for arm in arms:
        study = arm.partition("/")[0] if isinstance(arm, str) and "/" in arm else None
        if study not in data:
            raise ClaimError(f"{key} of {name} names '{arm}': an arm is written study/arm, with a study of "
                             f"{', '.join(data)}")
    return tuple(arms)


def _check_keys(name: str, own: dict, known: set[str]) -> None:
    if unknown := sorted(str(key) for key in set(own) - known):
        raise ClaimError(f"unknown key '{unknown[0]}' in {name} (known: {', '.join(sorted(known))})")


def at_size(claims: Claims, path: Path, size: str) -> Claims:
    """The claims on a size's records, which lie in STUDY-quick or STUDY-paper and are of the data that the study files
    beside `path` name. Raises ClaimError where one can't be read.
    """
    if size == "standard":
        return claims

    def data_of(study: str) -> str:
        try:
            content = yaml.safe_load((path.parent / f"{study}.yml").read_text())
            own = content["sizes"][size] or {}
            return {**content["settings"], **own.get("settings", {})}["data"]
        except (OSError, yaml.YAMLError, KeyError, TypeError):
            raise ClaimError(f"'{study}.yml' says no data for the size '{size}'") from None

    renamed = lambda arms: tuple(arm.replace("/", f"-{size}/", 1) for arm in arms)                         # noqa: E731
    moved = tuple(replace(claim, contrasts=tuple(
        replace(c, a=renamed(c.a), b=renamed(c.b), against=renamed(c.against)) for c in claim.contrasts))
        for claim in claims.claims)
    return Claims(moved, {f"{study}-{size}": data_of(study) for study in claims.data})
