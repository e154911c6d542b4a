"""Classes by name: what a source calls an expression, and which class that is.

    naming = name_classes({"0": "Neutral", "1": "Happy", "10": "No-Face"})     # source label -> its name
    naming.classes                                                            # ("neutral", "happy")
    naming.code("1"), naming.code("10")                                       # 1, Rejected("no expression class", ...)

Names that are expressions come in the canonical order, whatever order the source has them in, so that folder copies and
csv files of one data set agree. Names of anything else (CIFAR-10, cars) stay as they are, sorted. `select_classes` is
`--classes`: it works on the plan of any source.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from data_prep.packed import CLASSES, SPLITS, DataError, Dropped, Plan, Rejected
from data_prep.shards import dropped_row

EIGHT_CLASSES = (*CLASSES, "contempt")
NOT_SELECTED = Rejected("class not selected", bad=False)
NO_CLASS = "no expression class"

_SPELLINGS = {
    "neutral": ("neutrality",),
    "happy": ("happiness", "joy", "joyful"),
    "sad": ("sadness",),
    "surprise": ("surprised", "suprise", "suprised"),
    "fear": ("fearful", "afraid", "scared"),
    "disgust": ("disgusted",),
    "anger": ("angry",),
    "contempt": ("contemptuous",),
}
_CANONICAL = {spelling: name for name, others in _SPELLINGS.items() for spelling in (name, *others)}
_NO_EXPRESSION = {
    "none", "uncertain", "unsure", "noface", "nonface", "notaface", "nf", "unknown", "other", "others", "ignore",
    "invalid",
}  # fmt: skip
_NUMBERED = re.compile(r"^\d+\s*[-_. ]\s*(?=\D)")  # "0_angry", "6 - Neutral"


def expression(name: str) -> str | None:
    """The canonical name of an expression in any usual spelling ("Angry", "6 - happiness"); None if it is none."""
    return _CANONICAL.get(_letters(name))


def is_no_expression(name: str) -> bool:
    """Whether a label says that there is no class to learn: none, uncertain, no face, other."""
    return _letters(name) in _NO_EXPRESSION


def _letters(name: str) -> str:
    return re.sub(r"[\W_]+", "", _NUMBERED.sub("", name.strip()).casefold())


@dataclass(frozen=True)
class Naming:
    """Which class a source's labels mean: `of` maps a source label to a class, `left_out` to the name of no class."""

    classes: tuple[str, ...]
    of: Mapping[str, str]
    left_out: Mapping[str, str] = field(default_factory=dict)

    def code(self, label: str) -> int | Rejected:
        """The class index of a source label, or why its row is left out."""
        if label in self.of:
            return self.classes.index(self.of[label])
        if label in self.left_out:
            return Rejected(NO_CLASS, self.left_out[label], bad=False)
        return Rejected("unknown label", label[:40] or "(empty)")

    @property
    def shown(self) -> dict[str, str]:
        """For the manifest: source label -> class, or "(left out: name)"."""
        return {**self.of, **{label: f"(left out: {name})" for label, name in self.left_out.items()}}


def name_classes(names: Mapping[str, str] | Iterable[str], others: bool = True) -> Naming:
    """The naming for source labels and their names; a plain iterable means that the labels are the names.

    They are expressions if all names are (or three of them, beside others); then labels such as "none" are left out,
    and without `others` a name that is no expression is an unknown label, no class of its own (a misspelt label in a
    table). DataError if no class remains.
    """
    names = dict(names) if isinstance(names, Mapping) else {name: name for name in names}
    known = {label: expression(name) for label, name in names.items()}
    faces = {name for name in known.values() if name}
    left_out = {label: name for label, name in names.items() if not known[label] and is_no_expression(name)}
    if len(faces) < 3 and len(left_out) + sum(map(bool, known.values())) < len(names):
        known, left_out = dict.fromkeys(names), {}  # no set of expressions: every name stands for itself
        others = True
    of = {label: known[label] or names[label] for label in names if label not in left_out and (known[label] or others)}
    classes = [name for name in EIGHT_CLASSES if name in of.values()]
    classes += sorted(set(of.values()) - set(classes))
    if not classes:
        raise DataError(f"the labels name no class (found: {', '.join(sorted(names.values()))[:80] or 'none'})")
    return Naming(tuple(classes), of, left_out)


def parse_class_names(text: str, labels: Iterable[str]) -> dict[str, str]:
    """`--class-names`: "surprise,fear,..." in the order of the sorted labels, or "1=surprise,2=fear,...".

    In the second form a label that is a word may be left out and keeps it. DataError if a number gets no name, or the
    first form has another count of names.
    """
    labels = sorted(set(labels), key=lambda label: (len(label), label) if label.isdigit() else (99, label))
    parts = [part.strip() for part in text.split(",")]
    if all("=" in part for part in parts):
        named = dict(part.split("=", 1) for part in parts)
        for label in labels:
            if label not in named and label.isdigit():
                raise DataError(f"--class-names has no name for the label {label!r}; add '{label}=NAME'")
        return {label: named.get(label, label).strip() for label in labels}
    if len(parts) != len(labels) or not all(parts):
        raise DataError(
            f"--class-names has {len(parts)} names for {len(labels)} labels ({', '.join(labels)[:80]}); "
            "name each of them in this order, or as LABEL=NAME"
        )
    return dict(zip(labels, parts, strict=True))


# --- soft labels ----------------------------------------------------------------------------------------------------


def soft_labels(shares: np.ndarray) -> tuple[np.ndarray, list[Rejected | None]]:
    """Shares (n, classes) -> float32 rows that sum to 1, and for each row what is wrong with it (None = nothing)."""
    finite = np.isfinite(shares).all(1)
    shares = np.where(finite[:, None], shares, 0.0)
    with np.errstate(over="ignore"):
        negative, total = (shares < 0).any(1), shares.sum(1)
    why: list[Rejected | None] = [None] * len(shares)
    for i in np.flatnonzero(~finite | negative | ~(total > 0) | ~np.isfinite(total)):
        what = "not a number" if not finite[i] else "a negative share" if negative[i] else f"sum {total[i]:g}"
        why[i] = Rejected("unusable soft label", what)
    with np.errstate(all="ignore"):
        return (shares / total[:, None]).astype(np.float32), why


# --- --classes ------------------------------------------------------------------------------------------------------


def select_classes(plan: Plan, wanted: Sequence[str]) -> Plan:
    """The plan with these classes in this order; rows of the others become dropped rows.

    Soft labels keep the shares of the chosen classes, which then sum to 1 again. DataError for a name that the source
    has not, a name given twice, or a single class.
    """
    chosen = tuple(_find_class(name, plan) for name in wanted)
    if len(set(chosen)) != len(chosen) or len(chosen) < 2:
        raise DataError(f"--classes {','.join(wanted)} must name two or more different classes")
    old = [plan.classes.index(name) for name in chosen]
    new = np.full(len(plan.classes), -1)
    new[old] = np.arange(len(old))
    samples, dropped = {}, list(plan.dropped)
    for split in SPLITS:
        samples[split], left_out = _select_rows(plan.samples[split], split, new, old)
        dropped += left_out
    return replace(
        plan,
        classes=chosen,
        samples=samples,
        dropped=dropped,
        options={**plan.options, "classes": list(chosen)},
        label_mapping={
            label: name if name in chosen or name not in plan.classes else f"({name}: not selected)"
            for label, name in plan.label_mapping.items()
        },
        published=_selected_counts(plan.published, chosen, len(chosen) == len(plan.classes)),
    )


def _find_class(name: str, plan: Plan) -> str:
    for found in (name.strip(), expression(name)):
        if found in plan.classes:
            return found
    raise DataError(f"--classes: {name.strip()!r} is no class of {plan.title} (it has: {', '.join(plan.classes)})")


def _select_rows(
    table: pd.DataFrame, split: str, new: np.ndarray, old: list[int]
) -> tuple[pd.DataFrame, list[Dropped]]:
    label = new[table["label"].to_numpy(np.int64)]
    others = table.loc[label < 0, [name for name in ("source", "_row") if name in table]].to_dict("records")
    dropped = [dropped_row(split, row, NOT_SELECTED) for row in others]
    kept = table[label >= 0].reset_index(drop=True).assign(label=label[label >= 0])
    if "soft" in kept and len(kept):
        soft = np.stack(kept["soft"].to_list())[:, old]
        kept["soft"] = pd.Series(list((soft / soft.sum(1, keepdims=True)).astype(np.float32)), dtype=object)
    if "true_label" in kept:
        kept["true_label"] = new[kept["true_label"].to_numpy(np.int64)]
    return kept, dropped


def _selected_counts(
    published: Mapping[str, Mapping[str, int]], chosen: Sequence[str], all_classes: bool
) -> dict[str, dict[str, int]]:
    wanted = {*chosen, "all"} if all_classes else set(chosen)
    counts = {split: {name: n for name, n in of.items() if name in wanted} for split, of in published.items()}
    return {split: of for split, of in counts.items() if of}
