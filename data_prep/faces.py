"""Drawn faces: a person's geometry plus action units (AUs, 0..1) times a table of effects, lit as a height map.

The expression model is one line, `geometry = NEUTRAL + person + au @ EFFECTS`; the rest of the file only draws it,
with signed distances on a pixel grid of any size. No photograph is used. Each part is drawn in the face's own surface
coordinates (u, v), so that a turned head foreshortens it.

Units: the frame is [-1, 1] x [-1, 1] (x right, y down); a frontal face of scale 1 has its chin near y = 1, and at
48 px one pixel is .042. Angles are radians, grey values 0..1.
"""

import copy
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

AUS = (1, 2, 4, 5, 6, 7, 9, 12, 15, 16, 17, 20, 23, 25, 26)
NO_OCCLUDER, SUNGLASSES, HAND, CARD = range(4)
SHORT, LONG, FRINGE, RECEDING, CURLY, SCARF, BOB = range(7)  # hair styles

# What each AU does to the drawing at intensity 1: lengths in frame units (y down), the rest are strengths.
EFFECTS = {
    1: dict(brow_in=-.19, brow_mid=-.02, fore_mid=1.),
    2: dict(brow_out=-.13, brow_mid=-.07, fore_out=1.),
    4: dict(brow_in=.13, brow_mid=.075, brow_out=.02, brow_dx=-.06, glabella=1.3, lid_up=-.014, brow_thick=.004),
    5: dict(lid_up=.055, lid_low=.006),
    6: dict(lid_low=-.030, lid_up=-.012, cheek=1., bag=1., crow=1.),
    7: dict(lid_low=-.024, lid_up=-.030, bag=.4),
    9: dict(nose_up=-.055, nose_wrinkle=1., fold=1.1, brow_in=.06, brow_mid=.03, lid_up=-.020, lid_low=-.018,
            lip_raise=.070, cheek=.6, mouth_y=-.02),
    12: dict(mouth_w=.10, corner_y=-.15, mouth_y=.02, cheek=.6, fold=1., dimple=.8, lip_up=-.006, lip_low=-.006),
    15: dict(corner_y=.115, mouth_w=-.01, mouth_y=-.02, fold=.2, pouch=1.),
    16: dict(gap=.050, lip_low=.012, teeth_low=1., mouth_y=.01),
    17: dict(mouth_y=-.045, corner_y=.055, lip_low=.015, chin=1.),
    20: dict(mouth_w=.11, corner_y=.055, lip_up=-.020, lip_low=-.020, fold=.3, dimple=.5, teeth_low=.6),
    23: dict(mouth_w=-.065, corner_y=.03, lip_up=-.038, lip_low=-.038, press=1.),
    25: dict(gap=.095),
    26: dict(gap=.20, jaw=.10, mouth_y=.015, mouth_w=-.055, teeth_up=-.6),
}
NEUTRAL = dict(
    brow_y=-.42, brow_in=0., brow_mid=-.035, brow_out=.03, brow_dx=0., brow_thick=.036,
    fore_mid=0., fore_out=0., glabella=0.,
    eye_u=.355, eye_y=-.19, eye_w=.165, eye_tilt=-.015, lid_up=.066, lid_low=.046, crow=0., bag=0.,
    cheek=0., fold=.15, nose_len=0., nose_w=.13, nose_up=0., nose_wrinkle=0.,
    mouth_y=.50, mouth_w=.255, corner_y=0., gap=0., lip_up=.052, lip_low=.068, lip_raise=0., dimple=0.,
    pouch=0., press=0., teeth_up=1., teeth_low=0., chin=0., jaw=0., head_w=.80, taper=.20, chin_y=.98,
)
ONE_SIDED = ("brow_in", "brow_mid", "brow_out", "corner_y")  # AU movement that may be stronger on one side

UPPER, LOWER = .32, .68  # an open mouth's gap goes up and down from the mouth line by these shares

# A frontal face in plain light; every key of a scene, with the value that changes nothing.
STILL = dict(
    roll=0., yaw=0., pitch=0., scale=1., dx=0., dy=0.,  # radians; frame units
    skew=0., mouth_skew=0.,  # slope of the face and of the mouth
    lean=0.,  # AUs of brows and mouth corners: left side x (1 - lean), right side x (1 + lean)
    gaze_x=0., gaze_y=0., light_x=-.25, light_y=-.45, ambient=.62, exposure=.95, gamma=1., blur=.1, noise=0.,
    back=.45, back_dx=.05, back_dy=.1, cloth=.25, phase=1.,
    occluder=float(NO_OCCLUDER), occ_x=.3, occ_y=.5, occ_angle=0.,
)

Table = Mapping[str, np.ndarray]


def geometry_of(au: np.ndarray, person: Table, lean: np.ndarray) -> dict[str, np.ndarray]:
    """NEUTRAL + the person's offsets + au (n, len(AUS)) @ EFFECTS: arrays (n,), plus `lean_*` for what is one-sided."""
    names = list(NEUTRAL)
    effect = np.array([[EFFECTS[a].get(name, 0.) for name in names] for a in AUS])
    moved = au @ effect
    geometry = {name: NEUTRAL[name] + person.get(name, 0.) + moved[:, i] for i, name in enumerate(names)}
    return geometry | {f"lean_{name}": lean * moved[:, names.index(name)] for name in ONE_SIDED}


# ------------------------------------------------------------------------------------------------- drawing tools
def cover(distance: torch.Tensor, softness: torch.Tensor | float) -> torch.Tensor:
    """Anti-aliased coverage: 1 where the signed distance is well below 0, 0 well above, a ramp `softness` wide."""
    return distance.mul(-1 / softness).add_(.5).clamp_(0, 1)


def bump(q: torch.Tensor) -> torch.Tensor:
    """(1 - q/4)^4 where positive: a bell like exp(-q) that ends at q = 4 (no slow denormals). Overwrites q."""
    return q.mul_(-.25).add_(1).clamp_min_(0).square_().square_()


def spot(u, v, u0, v0, su, sv) -> torch.Tensor:
    """Soft round spot, 1 at (u0, v0), gone 2 su (2 sv) away from it."""
    d, e = (u - u0).mul_(1 / su), (v - v0).mul_(1 / sv)
    return bump(d.square_() + e.square_())


def paint(canvas: torch.Tensor, mask: torch.Tensor, value: torch.Tensor | float) -> torch.Tensor:
    """Blend `value` over the canvas where the mask says so, in place."""
    return canvas.lerp_(torch.as_tensor(value, dtype=canvas.dtype), mask)


class Columns:
    """Named columns (n, 1, 1), ready to meet a pixel grid; `rows` picks some of the n."""

    def __init__(self, values: torch.Tensor, column: dict[str, int]):
        self.values, self.column = values, column  # values (n, columns, 1, 1)

    @classmethod
    def of(cls, table: Table) -> "Columns":
        values = np.stack([np.asarray(v, np.float32) for v in table.values()], axis=1)
        return cls(torch.from_numpy(values)[:, :, None, None], {name: i for i, name in enumerate(table)})

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.values[:, self.column[name]]

    def rows(self, index: torch.Tensor) -> "Columns":
        return Columns(self.values[index], self.column)


class Face:
    """A chunk of faces: g = geometry, p = person, s = scene, and the grids (n, size, size) their parts are drawn on.

    fx, fy: frame; x, y: head plane; u, v: the face's own surface (w = |u| draws left and right at once);
    nose_u: u for the nose, which stands out and so moves more; z: how far in front of the ears the surface is.
    """

    GRIDS = ("x", "y", "u", "v", "w", "nose_u", "depth", "rim", "z")

    def __init__(self, g: Columns, p: Columns, s: Columns, size: int):
        self.g, self.p, self.s, self.px = g, p, s, 2 / size
        self.soft = self.px / s["scale"]  # one pixel, in head units
        axis = (torch.arange(size) + .5) * self.px - 1
        self.fx, self.fy = axis[None, None, :], axis[None, :, None]
        self.place()
        self.turn()

    def place(self) -> None:
        """Shift, scale and roll: frame -> head plane."""
        s = self.s
        c, n = s["roll"].cos() / s["scale"], s["roll"].sin() / s["scale"]
        x, y = self.fx - s["dx"], self.fy - s["dy"]
        self.x, self.y = c * x + n * y, c * y - n * x

    def turn(self) -> None:
        """Yaw and pitch: head plane -> surface, by turning an ellipsoid back to the front."""
        s, half, tall, centre = self.s, self.g["head_w"] * 1.06, 1.2, -.12
        x, y = self.x / half, (self.y - centre) / tall
        cos, sin = s["yaw"].cos(), s["yaw"].sin()
        inside = 1 - x * x - y * y
        self.depth = inside.clamp_min(0).sqrt_()
        self.rim = inside.clamp_max_(0)  # falls off outside the ellipsoid, so that the jaw's edge stays in shade
        self.z = x * sin + self.depth * cos
        self.u = (x * cos - self.depth * sin).mul_(half)
        self.v = (y * s["pitch"].cos() - self.z * s["pitch"].sin()).mul_(tall).add_(centre + s["skew"] * self.u)
        self.w = self.u.abs()
        self.nose_u = self.u - .16 * sin

    def rows(self, index: torch.Tensor) -> "Face":
        """The same chunk, some faces only."""
        part = copy.copy(self)
        part.g, part.p, part.s = self.g.rows(index), self.p.rows(index), self.s.rows(index)
        part.soft = self.soft[index]
        for name in self.GRIDS:
            setattr(part, name, getattr(self, name)[index])
        return part

    def band(self, top: float, bottom: float) -> "Band":
        """The pixel lines where some face of the chunk has v in top..bottom."""
        seen = ((self.v > top) & (self.v < bottom)).any(2).any(0).nonzero().flatten().tolist()
        lines = slice(seen[0], seen[-1] + 1) if seen else slice(0, 0)
        part = copy.copy(self)
        part.fy = self.fy[:, lines]
        for name in self.GRIDS:
            setattr(part, name, getattr(self, name)[:, lines])
        return Band(part, lines)


class Band(NamedTuple):
    """Some pixel lines of a chunk: features that lie there need no other line (they draw on views of the grids)."""

    face: Face
    lines: slice


# ----------------------------------------------------------------------------------------------- relief and light
def relief(f: Face, upper: "Band", lower: "Band") -> torch.Tensor:
    """Height map of the face: everything that is seen only because light falls on it."""
    g = f.g
    tip = .17 + g["nose_len"] + g["nose_up"]
    h = spot(f.nose_u, f.v, 0., -.04, .075, .26).mul_(.070)
    h += spot(f.nose_u, f.v, 0., tip, .095, .085).mul_(.10)
    h += spot(f.w, f.v, .47, .10 - .03 * g["cheek"], .17, .13).mul_(.035 + .045 * g["cheek"])
    h[:, upper.lines] += relief_of_brows_and_eyes(upper.face)
    h[:, lower.lines] += relief_of_mouth_and_chin(lower.face)
    return h.mul_(f.s["yaw"].cos()).add_(f.depth, alpha=.62).add_(f.rim)  # foreshortened slopes would glare


def relief_of_brows_and_eyes(f: Face) -> torch.Tensor:
    """Sockets, brow ridge and wrinkles: forehead, between the brows, nose root, under the eyes, crow's feet."""
    g, w, v = f.g, f.w, f.v
    h = spot(w, v, .33, g["brow_y"] - .02 + .5 * g["brow_mid"], .26, .08).mul_(.030)
    h -= spot(w, v, .31, g["eye_y"] - .01, .20, .11).mul_(.055)
    forehead = g["fore_mid"] * spot(w, v, 0., -.66, .22, .10) + g["fore_out"] * spot(w, v, .40, -.64, .20, .10)
    h += (v * 44 - 5 * w * w).sin_().mul_(forehead).mul_(.011)
    h -= spot(w, v, .062 + .3 * g["brow_dx"], -.40, .024, .070).mul_(.030 * g["glabella"])
    h += (v * 60 + w * 25).sin_().mul_(spot(w, v, .03, -.10, .10, .09)).mul_(.013 * g["nose_wrinkle"])
    du, dv = w - g["eye_u"], v - g["eye_y"]
    h -= spot(du, dv - g["lid_low"] + .10 * du * du, 0., .055, .16, .020).mul_(.020 * g["bag"])
    fan = (dv * 55 / (1 + 4 * (du - g["eye_w"]).clamp_min_(0))).cos_()
    return h.add_(fan.mul_(spot(du, dv, .27, 0., .07, .07)).mul_(.009 * g["crow"]))


def relief_of_mouth_and_chin(f: Face) -> torch.Tensor:
    """Nose wings, muzzle, chin, the hollow under the lip, and the folds from the nose to the mouth's corners."""
    g, w, v, u = f.g, f.w, f.v, f.u
    h = spot(f.nose_u.abs(), v, g["nose_w"], .21 + g["nose_len"] + g["nose_up"], .05, .055).mul_(.05)
    h += spot(u, v, 0., .48, .30, .18).mul_(.035)
    h += spot(u, v, 0., g["chin_y"] - .17 + g["jaw"], .17, .10).mul_(.045 + .03 * g["chin"])
    h -= spot(u, v, 0., g["mouth_y"] + .6 * g["gap"] + .17, .14, .035).mul_(.022 + .02 * g["chin"])
    line = .15 + (g["mouth_w"] - .06) * ((v - .16) / (g["mouth_y"] + g["corner_y"] - .12)).clamp_(0, 1.4)
    fold = ((w - line) / .06).tanh_().mul_(bump(((v - .34) / .17).square_()))
    return h.add_(fold.mul_(.021 * g["fold"]))


def light(f: Face, h: torch.Tensor) -> torch.Tensor:
    """Lambert's law on the height map, with a floor of ambient light and a little gloss."""
    s, step = f.s, 2 * f.px
    gx, gy = torch.zeros_like(h), torch.zeros_like(h)
    gx[..., 1:-1] = (h[..., 2:] - h[..., :-2]).div_(step).clamp_(-2.2, 2.2)
    gy[:, 1:-1] = (h[:, 2:] - h[:, :-2]).div_(step).clamp_(-2.2, 2.2)
    facing = (1 - gx * s["light_x"] - gy * s["light_y"]) * (s["light_x"] ** 2 + s["light_y"] ** 2 + 1).rsqrt()
    facing = facing.mul_((gx * gx + gy * gy).add_(1).rsqrt_()).clamp_(0, 1)
    gloss = facing.square().square_()
    return .85 * s["ambient"] + facing * (1.05 - .6 * s["ambient"]) + gloss.mul_(gloss * gloss).mul_(.16)


# ----------------------------------------------------------------------------------------- features on the skin
def draw_mouth(f: Face, skin: torch.Tensor) -> None:
    """Lips, the line or hole between them, teeth, tongue and the shadows around."""
    g, v, soft, tone = f.g, f.v, f.soft, f.p["tone"]
    t, shape, line, upper, lower = mouth_curves(f)
    ends = (t.abs() - 1.04) * g["mouth_w"]
    bow = g["lip_up"].clamp_min(.010) * (shape - bump((t * 6).square_()).mul_(.17))
    lips = torch.maximum(upper - bow - v, v - lower - g["lip_low"].clamp_min(.012) * shape)
    upper_is_darker = (v < line).float().mul_(.25).add_(.75)
    paint(skin, cover(torch.maximum(lips, ends), 1.6 * soft).mul_(upper_is_darker), tone * (.86 - f.p["lips"]))
    shine = g["mouth_y"] + LOWER * g["gap"].clamp_min(0) + .55 * g["lip_low"].clamp_min(.01)
    skin += spot(f.u, v, 0., shine, .12, .022).mul_(.10 * tone)
    inner = torch.maximum(upper - v, v - lower) - .011 - .017 * g["press"]
    hole = cover(torch.maximum(inner, ends), soft)
    paint(skin, hole * .92, tone * .10 + .015)
    draw_teeth(f, skin, hole, t, upper, lower)
    draw_mouth_shadows(f, skin)


def mouth_curves(f: Face) -> tuple[torch.Tensor, ...]:
    """t = -1..1 along the mouth, how open it is there, its middle line, the inner edges of upper and lower lip."""
    g = f.g
    t = (f.u / g["mouth_w"]).clamp_(-1.3, 1.3)
    square = t * t
    arch = (1 - square).clamp_min_(0)
    shape = arch * .55 + arch.sqrt() * .45
    line = g["mouth_y"] + g["corner_y"] * (square - .25) + g["lean_corner_y"] * t * t.abs() + f.s["mouth_skew"] * f.u
    gap, lift = g["gap"].clamp_min(0), g["lip_raise"].clamp_min(0)
    upper = line - (UPPER * gap + lift) * shape
    lower = line + (LOWER * gap + .25 * lift) * shape
    return t, shape, line, upper, lower


def draw_teeth(f: Face, skin: torch.Tensor, hole, t, upper, lower) -> None:
    """Upper and lower teeth and the tongue, inside the hole."""
    g, soft, gap = f.g, f.soft, f.g["gap"].clamp_min(0)
    top = cover(f.v - upper - .075 * g["teeth_up"].clamp(.2, 1), 1.2 * soft)
    bottom = cover(lower - .05 - f.v, 1.2 * soft) * g["teeth_low"].clamp(0, 1)
    room = cover(.022 - gap - g["lip_raise"], .02)
    teeth = torch.maximum(top, bottom).mul_(hole).mul_(room).mul_(cover(t.abs() - .90, .25))
    paint(skin, teeth.mul_(.95), 1. - .15 * f.p["age"])
    tongue = spot(f.u, f.v, 0., g["mouth_y"] + (LOWER - .06) * gap, .5 * g["mouth_w"], .05).mul_(hole)
    paint(skin, tongue.mul_(.75 * ((gap - .14) * 8).clamp(0, 1)), f.p["tone"] * .35 + .08)


def draw_mouth_shadows(f: Face, skin: torch.Tensor) -> None:
    """Dimples or pouches at the corners, and the hollow under the lower lip."""
    g = f.g
    corner = spot(f.w, f.v, g["mouth_w"] + .03, g["mouth_y"] + .75 * g["corner_y"] + .03 * g["pouch"], .045, .05)
    skin *= 1 - corner.mul_(.12 + .20 * (g["dimple"] + g["pouch"]).clamp(0, 1.2))
    low = g["mouth_y"] + LOWER * g["gap"].clamp_min(0) + g["lip_low"] + .055
    skin *= 1 - spot(f.u, f.v, 0., low, .15, .035).mul_(.20 + .15 * g["chin"])


def draw_eyes(f: Face, skin: torch.Tensor) -> None:
    """Socket shade, eyeball, lashes, lower rim and crease."""
    g, v, soft = f.g, f.v, f.soft
    t = ((f.w - g["eye_u"]) / g["eye_w"]).clamp_(-1.4, 1.4)
    y = v - g["eye_y"] - g["eye_tilt"] * t
    arch = (1 - t * t).clamp_min_(0)
    up = g["lid_up"].clamp_min(.006) * (arch * .75 + .25 * arch.sqrt())
    low = g["lid_low"].clamp_min(.004) * arch
    opening = torch.maximum(torch.maximum(-up - y, y - low), (t.abs() - .97) * g["eye_w"])
    skin *= 1 - spot(f.w, v, g["eye_u"] - .05, g["eye_y"] - .03, .20, .10).mul_(.22)
    draw_eyeball(f, skin, cover(opening, 1.2 * soft), y)
    inside = cover((t.abs() - 1.08) * g["eye_w"], 2 * soft)  # the lid curves end here, not on the whole line
    lash = cover((y + up).abs_() - .013, 1.6 * soft).mul_(inside)
    paint(skin, lash.mul_(f.p["lash"]), f.p["tone"] * .12)
    skin *= 1 - cover((y - low).abs_() - .004, 2 * soft).mul_(inside).mul_(.30)
    skin *= 1 - cover((y + up + .052).abs_() - .004, 2.4 * soft).mul_(inside).mul_(.26)


def draw_eyeball(f: Face, skin: torch.Tensor, eye: torch.Tensor, y: torch.Tensor) -> None:
    """White, iris, pupil and glint, inside the opening `eye`; y is measured from the eye's axis."""
    s, soft = f.s, f.soft
    x = f.u - f.g["eye_u"] * f.u.sign() - s["gaze_x"]
    r = (x * x).add_((y + .012 - s["gaze_y"]).square_()).sqrt_()
    paint(skin, eye * .95, .45 + .42 * f.p["tone"].clamp_min(.5))
    paint(skin, cover(r - .080, 1.3 * soft).mul_(eye), f.p["iris"] * .8)
    paint(skin, cover(r - .036, 1.3 * soft).mul_(eye), .02)
    skin += spot(x, y, .028 * s["light_x"].sign(), -.035, .022, .022).mul_(eye).mul_(.55)


def draw_brows(f: Face, skin: torch.Tensor) -> None:
    """Brows: a parabola through the inner, middle and outer heights, each with its own side's share."""
    g, soft, half, side = f.g, f.soft, .235, f.u.sign()
    t = ((f.w - .355 - g["brow_dx"]) / half).clamp_(-1.3, 1.3)
    square = t * t

    def curve(start, inner, middle, outer):
        """start + inner ((1-t)/2)^2 + outer ((1+t)/2)^2 + middle (1-t^2), by powers of t."""
        ends = .25 * (inner + outer)
        return (start + ends + middle) + .5 * (outer - inner) * t + (ends - middle) * square

    height = curve(g["brow_y"], g["brow_in"], g["brow_mid"], g["brow_out"])
    height += curve(0., g["lean_brow_in"], g["lean_brow_mid"], g["lean_brow_out"]).mul_(side)
    thick = g["brow_thick"].clamp_min(.018) * (.825 - .225 * t)
    mask = cover((f.v - height).abs_().sub_(thick), 1.8 * soft) * cover((t.abs() - 1) * half, 2.5 * soft)
    paint(skin, mask.mul_(.85), torch.minimum(f.p["hair"] * .8, f.p["tone"] * .52))


def draw_nose(f: Face, skin: torch.Tensor) -> None:
    """Nostrils, wings and the shadow under the tip; the ridge itself is relief."""
    g, u = f.g, f.nose_u
    tip = .17 + g["nose_len"] + g["nose_up"]
    skin *= 1 - spot(u.abs(), f.v, .5 * g["nose_w"], tip + .065, .035, .022).mul_(.52)
    wings = spot(u.abs(), f.v, g["nose_w"] + .035, tip + .035, .025, .05)
    skin *= 1 - wings.mul_(.18 + .20 * g["fold"].clamp(0, 1))
    skin *= 1 - spot(u, f.v, 0., tip + .11, .13, .035).mul_(.16)


def draw_beard(f: Face, skin: torch.Tensor) -> None:
    """Full beard or goatee, with a moustache that follows the upper lip."""
    g, w, goatee = f.g, f.w, f.p["goatee"]
    edge = .72 + .6 * g["gap"] - (1 - .72 * goatee) * w * w + 1.4 * goatee * (w - .2).clamp_min(0)
    lip = g["mouth_y"] - .115 - UPPER * g["gap"] - g["lip_raise"] + 1.2 * g["corner_y"] * w * w
    mask = torch.maximum(cover(edge - f.v, .12), spot(f.u, f.v - lip, 0., 0., .8 * g["mouth_w"], .042))
    grain = (f.x * 53 + 3 * (f.y * 31 + 9 * f.x).sin_()).sin_().mul_(.06).add_(.94)
    paint(skin, mask.mul_(grain).mul_(f.p["beard"] * .85), f.p["hair"] * .85 + .05 * f.p["tone"])


# ------------------------------------------------------------------------------- head, hair and what is behind
def head_distance(f: Face) -> torch.Tensor:
    """Signed distance (nearly) to the head's outline: an ellipse, its lower half narrowing to a chin that turns too."""
    g = f.g
    y = f.y + .16
    below = (y > 0).float()
    drop = (y.clamp_min(0) / 1.1).square_()
    width = g["head_w"] * (1 - g["taper"] * drop)
    height = below * (g["chin_y"] + .16 + g["jaw"]) + (1 - below) * 1.06
    tall = (y / height).square_()
    tall = tall * (1 + .38 * below * (tall - 1))  # a squarer jaw than an ellipse's
    x = f.x - .26 * f.s["yaw"].sin() * drop
    return (x / width).square_().add_(tall).sqrt_().sub_(1).mul_(.85)


def add_profile(f: Face, outline: torch.Tensor) -> None:
    """Lower the outline's distance where the nose of a turned head stands out of it."""
    g, sin = f.g, f.s["yaw"].sin()
    tip = .19 + g["nose_len"] + g["nose_up"]
    slope = ((f.y + .22) / (tip + .22)).clamp_(0, 1)
    reach = g["head_w"] * sin.abs() * (.96 + .34 * slope)
    nose = torch.maximum(f.x * sin.sign() - reach, f.y - tip - .035)
    torch.minimum(outline, torch.maximum(nose, -.22 - f.y), out=outline)


def hair_distance(f: Face) -> torch.Tensor:
    """Signed distance to the hair's silhouette: the skull grown by the hair's volume, wavy where it curls."""
    p, s = f.p, f.s
    x, y = f.x + .16 * s["yaw"].sin(), f.y + .16  # the back of a turned head is on the other side
    width, height = f.g["head_w"] + p["volume"], 1.06 + p["volume"] * 1.3
    curls = (x * p["curl_rate"] + s["phase"]).sin_().mul_((y * p["curl_rate"] + 2 * s["phase"]).sin_())
    radius = (x / width).square_().add_((y / height).square_()).sqrt_()
    return radius.sub_(1).mul_(.9).add_(curls.mul_(p["curl"]))


def hair_texture(f: Face) -> torch.Tensor:
    """Strands and a slow wave with a sheen; a scarf or cap is smooth and may be lighter."""
    s, smooth = f.s, (f.p["style"] == SCARF).float()
    strand = (f.x * 40 + 3 * (f.y * 5 + s["phase"]).sin_() + s["phase"]).sin_().mul_(.10)
    wave = (f.y * 7 + 6 * f.x + s["phase"]).sin_().mul_(.16)
    sheen = spot(f.u, f.v, .6 * s["light_x"], f.p["hairline"] - .12, .45, .10).mul_(.5)
    return f.p["hair"] * (1 + (1 - smooth) * (strand + wave + sheen)) + .02 + .25 * smooth * s["cloth"]


def draw_background(f: Face) -> torch.Tensor:
    """A slope of grey with an edge, a blob and a faint pattern: (n, size, size)."""
    s = f.s
    img = s["back"] + s["back_dx"] * f.fx + s["back_dy"] * f.fy
    edge = cover(f.fx * s["phase"].cos() + f.fy * s["phase"].sin() - s["back_dx"] * 3, .06)
    blob = spot(f.fx, f.fy, 5 * s["back_dx"], 4 * s["back_dy"], .5, .6)
    shelf = (f.fx * (4 + 12 * s["back"]) + 3 * s["phase"]).sin() * (f.fy * 9 * s["cloth"] + s["phase"]).sin()
    img = img + edge * s["back_dy"] + blob.mul_(.35 * s["phase"].sin()) + shelf.mul_(.35 * s["back_dx"])
    return img.clamp_(.02, .98)


def draw_body(f: Face, img: torch.Tensor, texture: torch.Tensor) -> None:
    """Hair behind the head, neck, clothes and ears."""
    p, s, soft = f.p, f.s, f.soft
    dim = .6 + .4 * s["ambient"]
    nape = .05 + .3 * torch.maximum((p["length"] > .3).float(), s["yaw"].sin().abs())
    crown = torch.maximum(hair_distance(f), f.y - nape + 2 * (f.x.abs() - .70).clamp_min_(0))
    spread = f.g["head_w"] + .5 * p["volume"] + .10 * (f.y + .2)
    fall = torch.maximum(torch.maximum((f.x + .10 * s["yaw"].sin()).abs() - spread, -.15 - f.y), f.y - p["length"])
    back = torch.minimum(crown, fall)
    paint(img, cover(back, 2.5 * soft) * (1 - p["bald"]), texture * .72 * dim)
    neck = torch.maximum(f.x.abs() - .42, .5 - f.y)
    paint(img, cover(neck, 3 * soft), p["tone"] * .55 * (.5 + .5 * s["ambient"]))
    collar = 1.13 - .21 * (.5 - f.x.abs()).clamp_min_(0) + .22 * f.x * f.x
    paint(img, cover(collar - f.y, 3 * soft), s["cloth"] * (.8 + .2 * s["ambient"]))
    ears = cover(.5 - spot(f.x.abs(), f.y, f.g["head_w"] + .01, -.02, .07, .17), .35)
    seen = (1 - 1.6 * s["yaw"] * f.x.sign()).clamp_(0, 1) * (p["length"] < .3).float()
    paint(img, ears.mul_(seen), p["tone"] * .72)


def draw_near_ear(f: Face, img: torch.Tensor) -> None:
    """The ear that a turned head shows, with the shadow of its rim."""
    sin, cos = f.s["yaw"].sin(), f.s["yaw"].cos()
    x = f.x + sin.sign() * f.g["head_w"] * cos * .98
    ear = cover(.5 - spot(x, f.y, 0., -.02, .10, .17), .3)
    paint(img, ear, f.p["tone"] * (.45 + .4 * f.s["ambient"]))
    img *= 1 - spot(x, f.y, .02 * sin.sign(), -.02, .045, .09).mul_(.25)


def draw_hair(f: Face, img: torch.Tensor, texture: torch.Tensor, head: torch.Tensor, shade: torch.Tensor) -> None:
    """Hair over the forehead: hairline, parting, temples and the sides that a turned head shows."""
    p, s = f.p, f.s
    away = (f.u - p["part"]).abs()
    fourth = f.w.square().square_()
    edge = p["hairline"] + p["fall"] * away + p["temple"] * fourth - p["recess"] * spot(f.w, f.v, .42, -.85, .16, .5)
    rough = (f.u * 23 + s["phase"]).sin().add_((f.u * 51 + 2 * s["phase"]).sin()).mul_(p["ragged"])
    front = f.v - edge - rough
    side = torch.maximum(f.z + .04, f.v - .10 - p["length"].clamp_min(0))  # behind the ears
    mask = cover(torch.minimum(front, side + 9 * p["bald"]), 2.5 * f.soft) * head
    paint(img, mask, texture * (.50 + .50 * shade))


# ------------------------------------------------------------------------------------ glasses, occluders, camera
def draw_glasses(f: Face, img: torch.Tensor, dark: float = 0.) -> None:
    """Frames, bridge and temples, with a glint on the glass; `dark` is the glass's opacity."""
    g, soft = f.g, f.soft
    du, dv = (f.w - g["eye_u"] - .01).abs_(), (f.v - g["eye_y"] - .03).abs_()
    ring = ((du / .22) ** 4 + (dv / .165) ** 4).sqrt_().sqrt_().sub_(1).mul_(.18)
    front = cover(.08 - torch.minimum(f.z, f.depth), .1)  # on the visible side of the head
    paint(img, cover(ring, 1.5 * soft).mul_(dark).mul_(front), .04)
    bar = (f.v - g["eye_y"] + .02).abs() - .014
    bridge = cover(torch.maximum(bar, f.w - .16), 1.5 * soft)
    temple = cover(torch.maximum(bar, .57 - f.w), 1.5 * soft) * cover(f.w - .80, .05)
    wire = torch.maximum(torch.maximum(cover(ring.abs() - .012, 1.5 * soft), bridge), temple)
    paint(img, wire.mul_(.85).mul_(front), f.p["frame"])
    img += spot(du, dv, .08, .06, .03, .06).mul_(front).mul_(.10)


def draw_sunglasses(f: Face, img: torch.Tensor) -> None:
    """Glasses with dark lenses."""
    draw_glasses(f, img, dark=.9)


def draw_hand(f: Face, img: torch.Tensor) -> None:
    """Four fingers and the back of a hand, laid over the face; dark gaps between the fingers."""
    s = f.s
    c, n = s["occ_angle"].cos(), s["occ_angle"].sin()
    x, y = f.x - s["occ_x"], f.y - s["occ_y"]
    a, b = c * x + n * y, c * y - n * x
    width, fan = .15, 1 + .25 * (.3 - b).clamp_(-.3, .3)  # fingers spread towards their tips
    across = a / fan
    finger = (across / width).floor().clamp_(-2, 1).add_(.5)  # -1.5, -.5, .5, 1.5
    off = across - finger * width
    tip = (.045 * (finger - .3).square() - b).clamp_min_(0)  # how far above the finger's last joint
    fingers = (off * off).add_(tip.square_()).sqrt_().sub_(.070)
    palm = torch.maximum((a + .02).abs() - .29 - .05 * b, .40 - b)
    gap = cover(.055 - off.abs(), .03).mul_(cover(b - .46, .1))
    tone = f.p["tone"] * (.46 + .60 * s["ambient"]) * (1 - .35 * gap)
    edge = cover(torch.minimum(fingers, palm) - .03, 3 * f.soft)
    img *= 1 - edge.mul_(.35)  # the shadow it casts
    paint(img, cover(torch.minimum(fingers, palm), 1.5 * f.soft), tone)


def draw_card(f: Face, img: torch.Tensor) -> None:
    """A phone, a mug or a caption: a plain rectangle that stands before the face."""
    s = f.s
    c, n = s["occ_angle"].cos(), s["occ_angle"].sin()
    x, y = f.fx - s["occ_x"], f.fy - s["occ_y"]
    d = torch.maximum((c * x + n * y).abs() - .30, (c * y - n * x).abs() - .22)
    paint(img, cover(d, 1.5 * f.px), s["cloth"])


def camera(f: Face, img: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Exposure, gamma, blur (mix with a 3x3 binomial, wider at larger sizes) and sensor noise -> uint8."""
    s = f.s
    img = (img * s["exposure"]).clamp_(1e-3, 1).pow_(s["gamma"])
    for _ in range(max(1, round(.03 / f.px))):
        soft = F.pad(img, (1, 1, 1, 1), mode="replicate")
        soft = soft[..., :-2] + 2 * soft[..., 1:-1] + soft[..., 2:]
        soft = (soft[:, :-2] + 2 * soft[:, 1:-1] + soft[:, 2:]).div_(16)
        img = img.lerp_(soft, s["blur"])
    img += torch.randn(img.shape, generator=generator).mul_(s["noise"])
    return img.clamp_(0, 1).mul_(255).round_().to(torch.uint8)


# ------------------------------------------------------------------------------------------------- all together
def draw_faces(geometry: Table, person: Table, scene: Table, size: int, noise_seed: int) -> np.ndarray:
    """Arrays (n,) of geometry (`geometry_of`), person and scene -> uint8 (n, size, size).

    Skin is painted flat, lit, then set into the picture. Memory is about 130 n size^2 bytes: call it in chunks. The
    bytes depend on the whole chunk's order and noise_seed; on one machine they are the same for any thread setting
    of the caller's (it runs on one thread), other CPUs and torch versions may round differently.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            f = Face(Columns.of(geometry), Columns.of(person), Columns.of(scene), size)
            img = compose(f)
            return camera(f, img, torch.Generator().manual_seed(noise_seed)).numpy()
    finally:
        torch.set_num_threads(threads)


def compose(f: Face) -> torch.Tensor:
    """The picture before the camera: float (n, size, size)."""
    p, kind, turned = f.p, f.s["occluder"], f.s["yaw"].abs() > .5
    upper, lower = f.band(-.95, .20), f.band(0., 1.2)
    shade, skin = light(f, relief(f, upper, lower)), paint_skin(f, upper, lower)
    img, texture, outline = draw_background(f), hair_texture(f), head_distance(f)
    draw_body(f, img, texture)
    where(turned, add_profile, f, outline)
    paint(img, cover(outline, 1.5 * f.soft), skin.mul_(shade))
    draw_hair(f, img, texture, cover(outline - .035, 2 * f.soft), shade)
    where(turned & (p["length"] < .3), draw_near_ear, f, img)
    where((p["glasses"] > 0) & (kind != SUNGLASSES), draw_glasses, f, img)
    where(kind == SUNGLASSES, draw_sunglasses, f, img)
    where(kind == HAND, draw_hand, f, img)
    where(kind == CARD, draw_card, f, img)
    return img


def paint_skin(f: Face, upper: Band, lower: Band) -> torch.Tensor:
    """The face's albedo, not yet lit: (n, size, size)."""
    skin = f.p["tone"] * torch.ones_like(f.u)
    draw_eyes(upper.face, skin[:, upper.lines])
    draw_brows(upper.face, skin[:, upper.lines])
    draw_nose(lower.face, skin[:, lower.lines])
    draw_mouth(lower.face, skin[:, lower.lines])
    where(f.p["beard"] > 0, draw_beard, lower.face, skin[:, lower.lines])
    return skin


def where(mask: torch.Tensor, part: Callable[[Face, torch.Tensor], None], f: Face, canvas: torch.Tensor) -> None:
    """Draw a part on the faces that have it; parts most people lack cost only what they use."""
    rows = mask.flatten().nonzero().flatten()
    if len(rows):
        piece = canvas[rows]
        part(f.rows(rows), piece)
        canvas[rows] = piece
