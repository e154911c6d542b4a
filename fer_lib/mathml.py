"""Formulas of the notebooks as MathML, which every browser draws by itself: no script, no font from elsewhere.

A small part of TeX, the part that the notebooks use. JupyterLab draws the same formulas with MathJax.
"""

import re
from html import escape

NAMES = {"alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "eta": "η", "lambda": "λ", "mu": "μ",
         "sigma": "σ", "tau": "τ", "theta": "θ", "partial": "∂", "infty": "∞", "ell": "ℓ"}
OPERATORS = {"cdot": "⋅", "times": "×", "le": "≤", "leq": "≤", "ge": "≥", "geq": "≥", "ne": "≠", "neq": "≠", "pm": "±",
             "to": "→", "rightarrow": "→", "leftarrow": "←", "gets": "←", "approx": "≈", "equiv": "≡", "sim": "∼",
             "sum": "∑", "prod": "∏", "in": "∈", "odot": "⊙", "ldots": "…", "dots": "…", "mid": "|", "lvert": "|",
             "rvert": "|", "%": "%", "{": "{", "}": "}", "_": "_"}
FUNCTIONS = ("max", "min", "log", "exp", "sgn", "sign", "cos", "sin")
SPACES = {"quad": "1em", "qquad": "2em", ",": ".17em", ";": ".28em", " ": ".25em", "!": "0em"}
ACCENTS = {"hat": "^", "bar": "¯", "tilde": "~"}
TOKEN = re.compile(r"\\[A-Za-z]+|\\.|\d+(?:\.\d+)?|\.\d+|\s+|.", re.S)


def mathml(tex: str, display: bool = False) -> str:
    """The formula as a <math> element. Raises ValueError naming what of it is not understood."""
    content = Formula(tex).row()
    return f'<math display="{"block" if display else "inline"}">{content}</math>'


class Formula:
    """Reads a formula from left to right."""

    def __init__(self, tex: str):
        self.tex, self.tokens = tex, [t for t in TOKEN.findall(tex) if not t.isspace()]

    def row(self, *ends: str) -> str:
        """Everything up to one of these tokens, or to the end where none is named."""
        parts = []
        while self.tokens and self.tokens[0] not in ends:
            parts.append(self.scripted())
        if ends and not self.tokens:
            raise ValueError(f"the formula '{self.tex}' lacks its {' or '.join(ends)}")
        return f"<mrow>{''.join(parts)}</mrow>"

    def scripted(self) -> str:
        """One item with what stands above and below it."""
        base, found = self.item(), {}
        while self.tokens and self.tokens[0] in "^_":
            place = self.tokens.pop(0)
            found[place] = self.item()
        low, high = found.get("_"), found.get("^")
        if low and high:
            return f"<msubsup>{base}{low}{high}</msubsup>"
        return f"<msub>{base}{low}</msub>" if low else f"<msup>{base}{high}</msup>" if high else base

    def item(self) -> str:
        """A letter, a number, a group or a command with its arguments."""
        if not self.tokens:
            raise ValueError(f"the formula '{self.tex}' ends where something is due")
        piece = self.tokens.pop(0)
        if piece == "{":
            inner = self.row("}")
            self.tokens.pop(0)
            return inner
        if not piece.startswith("\\"):
            kind = "mn" if piece[0].isdigit() or len(piece) > 1 else "mi" if piece.isalpha() else "mo"
            return f"<{kind}>{escape('−' if piece == '-' else piece)}</{kind}>"
        name = piece[1:]
        if name in NAMES or name in FUNCTIONS:
            return f"<mi>{NAMES.get(name, name)}</mi>"
        if name in OPERATORS:
            return f"<mo>{escape(OPERATORS[name])}</mo>"
        if name in SPACES:
            return f'<mspace width="{SPACES[name]}"/>'
        return self.command(name)

    def command(self, name: str) -> str:
        if name in ("text", "mathrm", "operatorname", "mathbf"):
            return f"<mtext>{escape(self.words())}</mtext>"
        if name == "frac":
            return f"<mfrac>{self.item()}{self.item()}</mfrac>"
        if name == "sqrt":
            return f"<msqrt>{self.item()}</msqrt>"
        if name in ACCENTS:
            return f"<mover accent=\"true\">{self.item()}<mo>{ACCENTS[name]}</mo></mover>"
        if name in ("left", "right"):
            piece = self.tokens.pop(0)
            return "" if piece == "." else f'<mo stretchy="true">{escape(piece.removeprefix(chr(92)))}</mo>'
        if name == "begin":
            return self.table(self.words())
        raise ValueError(f"'\\{name}' in the formula '{self.tex}' is not understood by fer_lib.mathml")

    def words(self) -> str:
        """The plain text of a group; its spaces are where the formula has them."""
        rest = self.tex
        opened = self.tokens.pop(0)
        if opened != "{":
            return opened
        found = []
        while self.tokens and self.tokens[0] != "}":
            found.append(self.tokens.pop(0))
        self.tokens.pop(0)
        spaced = re.search(r"\s*".join(map(re.escape, found)), rest)
        return spaced[0] if spaced else "".join(found)

    def table(self, kind: str) -> str:
        """\\begin{cases} or \\begin{aligned}: cells apart by &, rows by \\\\."""
        if kind not in ("cases", "aligned", "matrix"):
            raise ValueError(f"'{kind}' in the formula '{self.tex}' is not understood by fer_lib.mathml")
        rows, ends = [[]], ("&", "\\\\", "\\end")
        while True:
            rows[-1].append(self.row(*ends))
            end = self.tokens.pop(0)
            if end == "\\end":
                self.words()
                break
            if end == "\\\\":
                rows.append([])
        cells = "".join("<mtr>" + "".join(f"<mtd>{cell}</mtd>" for cell in row) + "</mtr>" for row in rows)
        table = f'<mtable columnalign="left">{cells}</mtable>'
        return f'<mrow><mo stretchy="true">{{</mo>{table}</mrow>' if kind == "cases" else table
