"""Figures draw what the tables say: looked up in what was drawn, not in pixels."""

import io
import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from fer_lib import figures, palette
from fer_lib.statistics import compare_arms

SITES = ["stem", "layer1.0.act1"]


def history(sites: list[str], steps: int = 40) -> pd.DataFrame:
    step = np.arange(1, steps + 1)
    table = {"step": step, "loss": 2 - step / steps}
    for k, site in enumerate(sites):
        middle = .01 - .001 * step * (k + 1)
        table |= {f"w_mean/{site}": middle, f"w_min/{site}": middle - .01, f"w_max/{site}": middle + .01}
    return pd.DataFrame(table)


def epochs(val_loss: float = 1.5) -> pd.DataFrame:
    rows = [dict(epoch=e, step=10 * e, split=split, mode=mode, train_loss=2 - .3 * e, loss=val_loss,
                 macro_f1=.1 * e + (.05 if mode == "clean" else 0) + (.3 if split == "test" else 0))
            for e in (1, 2, 3, 4) for split in ("val", "test") for mode in ("trained", "clean")]
    return pd.DataFrame(rows)


def flips(*rows: tuple[int, str, int, float]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["step", "site", "sign", "share"])


SOME = flips((12, "layer1.0.act1", -1, 1.), (20, "stem", -1, .25), (30, "layer1.0.act1", 1, 1.))


def panels(figure) -> dict[str, object]:
    return {ax.get_ylabel(): ax for ax in figure.axes}


def line(ax, label: str):
    return next(drawn for drawn in ax.lines if drawn.get_label() == label)


def draw(sites=SITES, found=SOME, drawn=True, **more):
    return figures.training(history(sites), epochs(**more), found, "a run", drawn)


@pytest.mark.parametrize("sites, found, names", [
    (SITES, SOME, ["cross-entropy", "validation macro-F1", "w (mean, range)", figures.SIGN_ROWS]),
    (SITES, flips(), ["cross-entropy", "validation macro-F1", "w (mean, range)"]),
    ([], SOME, ["cross-entropy", "validation macro-F1", figures.SIGN_ROWS]),
    ([], flips(), ["cross-entropy", "validation macro-F1"]),
])
def test_a_run_has_the_panels_it_has_something_for(sites, found, names):
    figure = draw(sites, found)
    assert list(panels(figure)) == names
    assert figure.axes[-1].get_xlabel() == "training step"
    with Image.open(io.BytesIO(figures.png(figure))) as image:
        assert image.format == "PNG" and image.width > 400


def test_the_panels_show_the_tables():
    ax = panels(draw())
    loss, f1, w = ax["cross-entropy"], ax["validation macro-F1"], ax["w (mean, range)"]
    assert np.array_equal(line(loss, "each step").get_xydata(), history(SITES)[["step", "loss"]])
    assert line(loss, "train, mean of the epoch").get_ydata() == pytest.approx([1.7, 1.4, 1.1, .8])
    assert line(loss, "validation").get_ydata() == pytest.approx([1.5] * 4)
    assert line(f1, "as trained").get_ydata() == pytest.approx([.1, .2, .3, .4])
    assert line(f1, "clean (sign +)").get_ydata() == pytest.approx([.15, .25, .35, .45])
    assert line(f1, "as trained").get_xdata() == pytest.approx([10, 20, 30, 40]) and f1.get_ylim() == (0, 1)
    for site, band in zip(SITES, w.collections, strict=True):
        assert line(w, site).get_ydata() == pytest.approx(history(SITES)[f"w_mean/{site}"])
        y = band.get_paths()[0].vertices[:, 1]
        assert (y.min(), y.max()) == pytest.approx((history(SITES)[f"w_min/{site}"].min(),
                                                    history(SITES)[f"w_max/{site}"].max()))


def test_w_has_a_symlog_axis_that_is_linear_near_0():
    ax = panels(draw())["w (mean, range)"]
    assert ax.get_yscale() == "symlog" and ax.yaxis.get_transform().linthresh == 1e-4


def test_a_validation_loss_above_the_axis_is_marked_with_its_value():
    ax = panels(draw(val_loss=50.))["cross-entropy"]
    assert ax.get_ylim()[1] < 3 and any("at most 50.0" in text.get_text() for text in ax.texts)
    assert not panels(draw())["cross-entropy"].texts


def test_signs_are_filled_while_features_are_flipped():
    ax = panels(draw())[figures.SIGN_ROWS]
    bars = [(ax.get_yticklabels()[round(bar.get_y() + .4)].get_text(), bar.get_x(), bar.get_x() + bar.get_width(),
             bar.get_alpha()) for bar in ax.patches]
    assert bars == [("stem", 20, 41, .25), ("layer1.0.act1", 12, 30, 1.)]


def test_the_marks_of_flips_are_of_the_full_colour():
    mark, = [drawn for drawn in panels(draw(found=SOME[:1]))["cross-entropy"].lines if len(drawn.get_xdata()) == 2]
    assert mark.get_color() == palette.RED and mark.get_alpha() is None


def test_each_step_with_a_flip_is_marked_in_the_other_panels():
    for name, ax in panels(draw()).items():
        marks = [x[0] for x in (drawn.get_xdata() for drawn in ax.lines) if len(x) == 2 and x[0] == x[1]]
        assert marks == ([] if "sign" in name else [12, 20, 30])
    many = flips(*((k, "stem", -1, .001) for k in range(1, 300)))
    assert len(panels(draw(found=many))["cross-entropy"].lines) == 3, "so many marks hide the curve"


def test_steps_between_flips_are_drawn_from_three_flips_on():
    insets = lambda found: [i for ax in draw(found=found).axes for i in ax.child_axes]
    assert not insets(SOME[:2]) and len(insets(SOME)) == 1
    assert [bar.get_height() for bar in insets(SOME)[0].patches] == [0, 0, 0, 1, 1]


def test_each_site_has_a_colour_of_its_own_darker_with_depth():
    colors = figures.depth_colors(17)
    light = [np.array(to_rgb(c)) @ [.3, .59, .11] for c in colors]
    assert len(set(colors)) == 17 and light == sorted(light, reverse=True) and light[0] < .85
    w = panels(draw())["w (mean, range)"]
    assert [line(w, site).get_color() for site in SITES] == figures.depth_colors(2)


def test_a_picture_keeps_its_colours():
    """Each colour of the palette as drawn; a map in colour with grey around it, and bands that shine through."""
    named = [*palette.CYCLE, palette.YELLOW, *(look.color for look in palette.ARMS.values())]
    figure = Figure(figsize=(6, 3))
    left, right = figure.subplots(1, 2)
    ramp = np.linspace(-1, 1, 400).reshape(20, 20)
    left.imshow(ramp, cmap="PuOr_r")
    for k, color in enumerate(named):
        right.plot([0, 1], [k, k + 3], color=color, lw=1.5)
        right.fill_between([0, 1], k - 1, k + 1, color=color, alpha=.15, lw=0)
    raw = io.BytesIO()
    figure.savefig(raw, format="png", dpi=90, facecolor="white")
    wanted = np.array(Image.open(raw).convert("RGB")).astype(int)
    small = figures.png(figure)
    kept = np.array(Image.open(io.BytesIO(small)).convert("RGB")).astype(int)
    assert np.abs(kept - wanted).max() <= 24 and len(small) < .6 * len(raw.getvalue())
    for color in named:
        rgb = np.round(np.array(to_rgb(color)) * 255).astype(int)
        solid = (wanted == rgb).all(-1)
        assert solid.any() and np.abs(kept[solid] - rgb).max() <= 8, color


def test_few_colours_are_kept_to_the_bit():
    found = np.array([[0, 0, 0], [255, 255, 255], [9, 9, 9]])
    chosen, nearest = figures.few_colors(found, np.array([5, 9, 1]), 8)
    assert (chosen[nearest] == found).all()
    chosen, nearest = figures.few_colors(found, np.array([5, 9, 6]), 2)
    assert chosen.tolist() == [[255, 255, 255], [0, 0, 0]] and nearest.tolist() == [1, 0, 1]


@pytest.mark.parametrize("drawn", [True, False])
def test_drawn_faces_are_called_so_and_only_they(drawn):
    assert ("drawn faces, not photographs" in draw(drawn=drawn).get_suptitle()) == drawn


def test_a_gallery_shows_the_first_pictures_of_each_class():
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), dtype=np.uint8)
    figure = figures.gallery(images, np.array([1, 0, 1, 1, 0]), ["a", "b"], 2, drawn=True)
    shown = [ax.images[0].get_array() for ax in figure.axes]
    assert all(np.array_equal(shown[k], images[row, 0]) for k, row in enumerate((1, 4, 0, 2)))
    assert [figure.axes[k].get_ylabel() for k in (0, 2)] == ["a", "b"]
    assert figure.get_suptitle() == "drawn faces, not photographs"
    empty = figures.gallery(images, np.zeros(5), ["a", "b"], 2, drawn=True)
    assert [len(ax.images) for ax in empty.axes] == [1, 1, 0, 0]


def test_a_gallery_of_research_pictures_is_refused():
    with pytest.raises(ValueError, match="research pictures are not shown"):
        figures.gallery(np.zeros((1, 1, 8, 8), np.uint8), np.zeros(1), ["a"], 1, drawn=False)


def rendered(figure) -> np.ndarray:
    """What is saved at the figure's own size: (H, W, 3)."""
    return np.array(Image.open(io.BytesIO(figures.png(figure, dpi=96, colors=256))).convert("RGB")).astype(int)


def test_a_contact_sheet_shows_each_picture_pixel_by_pixel():
    pictures = np.full((3, 1, 8, 8), 120, np.uint8)
    pictures[1, 0, 2, 5] = 0                             # one dark pixel in the first row's second picture
    rows = {"happy": pictures[:2], "sad": pictures[2:]}
    figure = figures.contact_sheet(rows, drawn=True, headings=["a", "b"], side=16)
    ax, = figure.axes
    assert [t.get_text() for t in ax.get_yticklabels()] == ["happy", "sad"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["a", "b"]
    assert [t.get_text() for t in figure.texts] == ["drawn faces, not photographs"]
    sheet = rendered(figure)[-40:, -40:]                # two rows and columns of 16 pixels, 4 between them
    assert sheet.shape == (40, 40, 3) and abs(sheet[:16, :16] - 120).max() <= 2
    assert (sheet[4:6, 30:32] <= 2).all() and abs(sheet[6:16, 20:36] - 120).max() <= 2
    assert (sheet[20:36, 20:36] >= 253).all(), "there is no second sad picture"


@pytest.mark.parametrize("size, shown", [(48, 96), (96, 96), (224, 75), (1, 72)])
def test_pictures_of_any_size_come_out_alike(size, shown):
    figure = figures.contact_sheet({"x": np.full((1, 3, size, size), 9, np.uint8)}, drawn=True)
    assert figure.axes[0].images[0].get_array().shape == (shown + 4, shown + 4, 3)


def test_a_contact_sheet_of_research_pictures_must_be_asked_for_and_says_so():
    rows = {"x": np.zeros((1, 1, 8, 8), np.uint8)}
    with pytest.raises(ValueError, match="research pictures are not shown"):
        figures.contact_sheet(rows, drawn=False)
    assert "do not share" in figures.contact_sheet(rows, drawn=False, show_images=True).texts[0].get_text()


def test_class_counts_are_bars_by_split():
    counts = pd.DataFrame({"train": [30, 10], "val": [5, 5]}, index=["happy", "sad"])
    figure = figures.class_counts(counts, drawn=True)
    assert [[bar.get_width() for bar in ax.patches] for ax in figure.axes] == [[30, 10], [5, 5]]
    assert [ax.get_title() for ax in figure.axes] == ["train, 40 images", "val, 10 images"]
    assert [ax.lines[0].get_xdata()[0] for ax in figure.axes] == [20, 5]
    assert "drawn faces, not photographs" in figure.get_suptitle()


def test_soft_labels_are_means_by_class():
    soft = np.array([[.8, .2, 0], [.6, .4, 0], [0, 1, 0]])
    ax, = figures.soft_labels(soft, np.array([0, 0, 1]), ["a", "b", "c"], drawn=False).axes
    assert ax.images[0].get_array().tolist() == [[pytest.approx(v) for v in row]
                                                 for row in ([.7, .3, 0], [0, 1, 0], [0, 0, 0])]


def test_memory_has_a_line_a_seed_and_a_dot_a_score():
    scores = pd.DataFrame({"all": [.5, .6], "leaked": [.9, 1.]}, index=[0, 1])
    ax, = figures.memory(scores, "accuracy", drawn=True).axes
    assert ax.get_title() == "drawn faces, not photographs"
    assert [list(line.get_xdata()) for line in ax.lines] == [[.5, .9], [.6, 1.], [.5, .6], [.9, 1.]]
    assert ax.get_xlabel() == "accuracy; a line is a seed (n = 2)"


RUNS = pd.DataFrame([("baseline", 0, .30), ("baseline", 1, .34), ("dynamic", 0, .40), ("dynamic", 1, .38),
                     ("single", 0, .2)], columns=["name", "seed", "f1"])


def test_arms_shows_means_intervals_seeds_and_the_papers_numbers():
    table = compare_arms(RUNS, "f1")
    ax, = figures.arms(RUNS, table, "f1", "macro-F1", {"dynamic": .39, "dropout": .32}, "title").axes
    assert [t.get_text() for t in ax.get_yticklabels()] == ["baseline (n = 2)", "dynamic (n = 2)", "single (n = 1)"]
    marks = lambda marker: np.concatenate([d.get_xydata() for d in ax.lines if d.get_marker() == marker])
    assert marks("D") == pytest.approx(np.array([(.32, 0), (.39, 1), (.2, 2)]))
    dots = marks("o")
    assert dots[:, 0] == pytest.approx([.30, .34, .40, .38, .2])
    assert dots[:, 1].round().tolist() == [0, 0, 1, 1, 2]
    assert marks("x") == pytest.approx(np.array([(.39, 1)]))
    spans = [d.get_xydata() for d in ax.lines if d.get_marker() == "None"]
    for row, span in enumerate(spans[:2]):
        assert span == pytest.approx(np.array([(table["score"][row].low, row), (table["score"][row].high, row)]))
    assert np.isnan(spans[2][:, 0]).all()
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["a seed", "95 % interval of the mean", "mean", "paper (AffectNet)"]
    without, = figures.arms(RUNS, table, "f1", "macro-F1", {}, "title").axes
    assert not [d for d in without.lines if d.get_marker() == "x"]


def test_curves_have_a_line_a_seed_and_their_mean():
    parts = [epochs().assign(name=name, seed=seed, macro_f1=lambda t, s=seed: t["macro_f1"] + s / 10)
             for name in ("b", "a") for seed in (0, 1)]
    parts = [part.replace({"name": {"a": "dynamic"}}) for part in parts]
    figure = figures.arm_curves(pd.concat(parts), ["dynamic", "b"], "test", "macro_f1", "F1", "title")
    assert [ax.get_title() for ax in figure.axes] == ["dynamic (n = 2)", "b (n = 2)"]
    for ax, name in zip(figure.axes, ("dynamic", "b")):
        look = palette.arm_look(name)
        assert {(line.get_color(), line.get_linestyle()) for line in ax.lines} == {(look.color, look.line)}
        drawn = [d.get_ydata() for d in ax.lines]
        wanted = np.array([.4, .5, .6, .7])
        assert len(drawn) == 3 and all(d.get_xdata() == pytest.approx([1, 2, 3, 4]) for d in ax.lines)
        assert [*map(list, drawn)] == [pytest.approx(list(wanted + s)) for s in (0, .1, .05)]
    assert figure.axes[0].get_ylabel() == "F1" and figure.get_suptitle() == "title"


def test_an_arm_looks_the_same_everywhere_and_never_differs_by_colour_alone():
    looks = [palette.arm_look(name) for name in palette.ARMS]
    assert len({(k.line, k.marker) for k in looks}) > len(looks) // 2
    assert len({k.color for k in looks}) == len(looks)
    for a, b in itertools.combinations(looks, 2):
        assert (a.line, a.marker) != (b.line, b.marker), (a, b)
    mine = palette.arm_look("my own arm")
    assert mine == palette.arm_look("my own arm") and mine.color in palette.CYCLE
    plus, minus = palette.sign_look(0.), palette.sign_look(-1e-30)
    assert plus.color != minus.color and plus.line != minus.line and plus.marker != minus.marker
    for look in [*looks, plus, minus, *(palette.arm_look(f"arm {k}") for k in range(40))]:
        assert look.dash and look.symbol


def test_a_picture_in_a_notebook_has_words():
    shown = figures.picture(Figure(figsize=(1, 1)), "an empty\n  picture")
    assert shown._repr_png_()[1] == {"alt": "an empty picture"}
    with pytest.raises(ValueError, match="give alt"):
        figures.picture(Figure(figsize=(1, 1)), " ")
