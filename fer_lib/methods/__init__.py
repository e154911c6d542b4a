"""The methods by name. Names combine with "+": `dropout+periodic`, `dropout+dynamic`.

A new method is one file here and one line in METHODS.
"""

from collections.abc import Mapping

from fer_lib.methods.base import Combined, Method
from fer_lib.methods.bn_negation import BatchNormNegation
from fer_lib.methods.bn_reset import BatchNormReset
from fer_lib.methods.dropout import Dropout
from fer_lib.methods.dynamic import Dynamic
from fer_lib.methods.gaussian_noise import GaussianNoise
from fer_lib.methods.periodic import Periodic
from fer_lib.methods.random_flip import RandomFlip
from fer_lib.methods.shakedrop import ShakeDrop
from fer_lib.methods.shrink_perturb import ShrinkPerturb

METHODS: dict[str, type[Method]] = {"baseline": Method, "dropout": Dropout, "periodic": Periodic, "dynamic": Dynamic,
                                    "bn_negation": BatchNormNegation, "random_flip": RandomFlip,
                                    "gaussian_noise": GaussianNoise, "shrink_perturb": ShrinkPerturb,
                                    "bn_reset": BatchNormReset, "shakedrop": ShakeDrop}


def parse(name: str) -> list[type[Method]]:
    """The classes behind a name such as "dropout+periodic".

    Raises ValueError for an unknown name, one named twice, baseline in a combination, two that steer signs, or two that
    rewrite weights.
    """
    parts = [p.strip() for p in name.split("+")]
    for part in parts:
        if part not in METHODS:
            raise ValueError(f"unknown method '{part}' (choose from {', '.join(METHODS)}, joined by '+')")
    if len(set(parts)) < len(parts):
        raise ValueError(f"method '{name}' names one method twice")
    if "baseline" in parts and len(parts) > 1:
        raise ValueError(f"method '{name}': baseline changes nothing and can't be combined")
    if sum(METHODS[p].steers_signs for p in parts) > 1:
        raise ValueError(f"method '{name}' combines two methods that both steer the sign of features")
    if sum(METHODS[p].rewrites_weights for p in parts) > 1:
        raise ValueError(f"method '{name}' combines two methods that both rewrite weights between steps")
    return [METHODS[p] for p in sorted(parts)]


def steers_signs(name: str) -> bool:
    """Whether the method, or one of a combination, decides the sign of features."""
    return any(method.steers_signs for method in parse(name))


def draws_in_forward(name: str) -> bool:
    """Whether the method, or one of a combination, draws random numbers within the forward pass."""
    return any(method.draws_in_forward for method in parse(name))


def canonical_name(name: str) -> str:
    """One spelling for each combination: `periodic+dropout` -> `dropout+periodic`."""
    parse(name)
    return "+".join(sorted(p.strip() for p in name.split("+")))


def fields(name: str) -> set[str]:
    """The experiment fields that the method reads."""
    return {field for method in parse(name) for field in method.fields}


def build_method(name: str, settings: Mapping[str, object]) -> Method:
    """The method, given at least the settings in `fields(name)`. Raises ValueError for one out of its range."""
    methods = [cls(**{field: settings[field] for field in cls.fields}) for cls in parse(name)]
    return methods[0] if len(methods) == 1 else Combined(methods)
