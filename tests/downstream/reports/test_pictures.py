"""Pictures: what they say is right, and both formats are whole."""

from __future__ import annotations

import io

import lxml.etree
import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image
from scipy.integrate import simpson
from sklearn.metrics import confusion_matrix

from downstream.reports import gallery, pictures
from downstream.tasks import make

RNG = np.random.default_rng(0)
ERRORS = {"pretrained": RNG.gamma(6, 1, 300), "random": RNG.gamma(6, 1.6, 200)}
PLANE = RNG.uniform(-1, 1, (120, 2))
CLASSES = ("neutral", "happy", "sad")
TRUTH, GUESS = RNG.integers(0, 3, 90), RNG.integers(0, 3, 90)


def draw(name: str, form: pictures.Format) -> bytes:
    return {
        "ced": lambda: pictures.cumulative_errors(ERRORS, 10.0, form=form),
        "bars": lambda: pictures.unit_bars(
            {"a": {"AU1": (0.3, 0.2, 0.4), "AU2": (-0.1, -0.2, 0.1)}, "b": {"AU2": (0.5, 0.4, 0.6)}},
            "ICC(3,1)",
            form=form,
        ),
        "plane": lambda: pictures.affect_planes(PLANE, {"a": PLANE / 2, "b": PLANE * 0}, form=form),
        "confusion": lambda: pictures.confusion(TRUTH, GUESS, CLASSES, form=form),
    }[name]()


def texts(name: str) -> list[str]:
    """The words in the picture, in the order in which they are drawn."""
    with mpl.rc_context({"svg.fonttype": "none"}):
        root = lxml.etree.fromstring(draw(name, "svg"))
    return ["".join(element.itertext()).strip() for element in root.iter("{*}text")]


@pytest.mark.parametrize("name", ["ced", "bars", "plane", "confusion"])
def test_both_formats_are_whole_and_the_same_each_time(name: str) -> None:
    with Image.open(io.BytesIO(draw(name, "png"))) as image:
        assert min(image.size) > 400
        assert len(np.unique(np.asarray(image.convert("L")))) > 20
    assert lxml.etree.fromstring(draw(name, "svg")).tag.endswith("svg")
    assert draw(name, "svg") == draw(name, "svg")


@pytest.mark.parametrize("limit", [7.0, 10.0])
def test_failures_and_area_are_those_of_the_curve(limit: float) -> None:
    """The area against Simpson's rule on a fine grid, as the landmark papers compute it."""
    for error in ERRORS.values():
        grid = np.linspace(0, limit, 20001)
        curve = np.searchsorted(np.sort(error), grid, side="right") / len(error)
        assert pictures.area_under_curve(error, limit) == pytest.approx(
            100 * simpson(curve, x=grid) / limit, abs=0.01
        )
        assert pictures.failure_rate(error, limit) == pytest.approx(100 * (1 - curve[-1]))
    assert pictures.area_under_curve(np.zeros(5), limit) == 100
    assert pictures.failure_rate(np.full(4, limit), limit) == 0  # at the limit is not above it


def test_the_legend_of_the_curves_names_both_figures() -> None:
    for row, error in ERRORS.items():
        failures, area = pictures.failure_rate(error, 10), pictures.area_under_curve(error, 10)
        assert f"{row}: FR {failures:.1f} %, AUC {area:.1f} %" in texts("ced")


def test_the_confusion_matrix_is_scikit_learns() -> None:
    counts = confusion_matrix(TRUTH, GUESS)
    shares = 100 * counts / counts.sum(axis=1, keepdims=True)
    drawn = [word for word in texts("confusion") if word.isdigit()]
    assert drawn == [f"{share:.0f}" for share in shares.ravel()]
    for name, total in zip(CLASSES, counts.sum(axis=1), strict=True):
        assert f"{name} ({total})" in texts("confusion")


def test_a_class_without_pictures_has_no_shares() -> None:
    with mpl.rc_context({"svg.fonttype": "none"}):
        root = lxml.etree.fromstring(pictures.confusion(np.array([0, 0]), np.array([0, 1]), CLASSES))
    words = ["".join(element.itertext()) for element in root.iter("{*}text")]
    assert [word for word in words if word.isdigit()] == ["50", "50", "0"]


def test_every_row_and_unit_is_named() -> None:
    assert {"AU1", "AU2", "a", "b", "ICC(3,1)"} <= set(texts("bars"))
    assert {"a", "b", "valence", "arousal", "label", "prediction"} <= set(texts("plane"))


def test_expressions_of_all_seeds_are_drawn_a_file_a_row() -> None:
    seeds = [RNG.random((90, 3)) for _ in range(2)]
    drawn = dict(
        gallery._predicted(
            make("expression", classes=CLASSES),
            {"a/b c": seeds},
            TRUTH[:, None].astype(float),
            "stem",
            "title",
        )
    )
    guesses = np.concatenate([seed.argmax(axis=1) for seed in seeds])
    expected = pictures.confusion(np.tile(TRUTH, 2), guesses, CLASSES, "a/b c: title", seeds=2)
    assert drawn == {"stem-a%2Fb_c": expected}
    with mpl.rc_context({"svg.fonttype": "none"}):
        twice = pictures.confusion(np.tile(TRUTH, 2), guesses, CLASSES, seeds=2)
    for name, total in zip(CLASSES, np.bincount(TRUTH), strict=True):
        assert f"{name} ({total})".encode() in twice, "a picture is one, however many seeds look at it"


def test_a_long_title_of_few_classes_is_not_cut_off() -> None:
    title = "pretrained backbone: finetune, 100 % of the labels, synthetic faces"
    picture = pictures.confusion(TRUTH, GUESS, CLASSES, title, "png")
    plain = pictures.confusion(TRUTH, GUESS, CLASSES, "", "png")
    with Image.open(io.BytesIO(picture)) as long, Image.open(io.BytesIO(plain)) as short:
        assert long.width > short.width
        ink = np.asarray(long.convert("L")) < 128
        assert not ink[:, -2:].any()
        assert ink[: long.height // 6].any()
