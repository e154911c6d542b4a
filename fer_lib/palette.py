"""One palette for the kit: an arm and a sign look the same in each picture, and never differ by colour alone."""

import zlib
from dataclasses import dataclass

# Okabe & Ito's palette: told apart with any kind of colour vision
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, GREY = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9",
                                                       "#F0E442", "#666666")
CYCLE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY)
BLACK, BROWN, INDIGO, WINE, TEAL = "#000000", "#8A6D3B", "#332288", "#882255", "#006D6D"


@dataclass(frozen=True)
class Look:
    """How something is drawn: color, matplotlib's line style and marker."""

    color: str
    line: str = "-"
    marker: str = "o"

    @property
    def dash(self) -> str:
        """The line style in plotly's words."""
        return {"-": "solid", "--": "dash", ":": "dot", "-.": "dashdot"}[self.line]

    @property
    def symbol(self) -> str:
        """The marker in plotly's words."""
        return {"o": "circle", "s": "square", "^": "triangle-up", "v": "triangle-down", "D": "diamond", "x": "x",
                "+": "cross", "*": "star", "P": "cross", "X": "x"}[self.marker]


SIGNS = {1: Look(BLUE, "-", "+"), -1: Look(RED, "--", "x")}     # of a feature, of w: blue plus, dashed vermilion cross
ARMS = {
    "baseline": Look(GREY, "-", "o"),
    "dropout": Look(ORANGE, "--", "s"),
    "periodic": Look(SKY, "-", "^"),
    "dynamic": Look(GREEN, "-", "D"),
    "dropout+periodic": Look(PURPLE, "--", "v"),
    "dropout+dynamic": Look(INDIGO, "--", "P"),
    "bn_negation": Look(BLACK, ":", "x"),
    "bn_reset": Look(BROWN, "-.", "X"),
    "lr_restart": Look(TEAL, ":", "*"),
    "random_flip": Look(RED, "-.", "*"),
    "gaussian_noise": Look(WINE, "-.", "s"),
}


def sign_look(sign: float) -> Look:
    """How the sign of a feature or of w is drawn; 0 counts as +, as it does in AutoReLU."""
    return SIGNS[-1 if sign < 0 else 1]


def arm_look(arm: str) -> Look:
    """How an arm is drawn. One that has no look of its own gets one by its name, the same each time."""
    if arm in ARMS:
        return ARMS[arm]
    code = zlib.crc32(arm.encode())
    return Look(CYCLE[code % len(CYCLE)], ("-", "--", "-.", ":")[code // 7 % 4], "os^Dv"[code // 28 % 5])
