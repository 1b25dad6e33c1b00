"""The published corpora in their own layouts, each with a few rendered faces. A function writes one below a folder.

The files of labels are written by the tests of the readers.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from data_prep.sources import aflw as aflw_source
from data_prep.synthetic import SyntheticConfig, portrait
from tests.data_prep import (
    test_affectnet,
    test_bp4d,
    test_cofw,
    test_disfa,
    test_ferplus,
    test_rafdb,
    test_sfew,
    test_w300,
    test_wflw,
)

SIDE = 160
_LOOK = SyntheticConfig(size=SIDE, face=(0.6, 0.65), yaw=10, occlusion=0)


@functools.cache
def face(number: int) -> tuple[Image.Image, list[float]]:
    """A portrait, and x0, y0, x1, y1 of the face in it."""
    picture = portrait(0, number, _LOOK)
    return Image.fromarray(picture.image), picture.faces[0].box.tolist()


def save(path: Path, number: int, size: tuple[int, int] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = face(number % 8)[0]
    (image.resize(size) if size else image).save(path)


def disfa(root: Path, _patch: pytest.MonkeyPatch) -> None:
    """Six people, two a fold, three frames each."""
    for number, person in enumerate((1, 2, 6, 11, 3, 4)):
        test_disfa.label(root, f"SN{person:03d}", 3)
        for frame in (1, 2, 3):
            save(root / f"frames/LeftVideoSN{person:03d}_comp/{frame:05d}.jpg", number + frame)


def bp4d(root: Path, _patch: pytest.MonkeyPatch) -> None:
    """Six people, two a fold; of a frame of F002, who is for testing, AU6 and AU10 are not known."""
    for number, person in enumerate(("F001", "F002", "F003", "M002", "F004", "M003")):
        for frame in (1, 2, 3):
            save(root / person / "T1" / f"{frame:04d}.jpg", number + frame)
        for unit in (6, 10, 12, 14, 17):
            values = [(unit + number + frame) % 6 for frame in (1, 2, 3)]
            if person == "F002" and unit < 12:
                values[1] = 9
            lines = " ".join(f"{frame},{value}" for frame, value in enumerate(values, 1))
            test_bp4d.code(root, f"{person}_T1", **{f"AU{unit:02d}": lines})


W300 = {
    "train": ("afw/1_1.jpg", "helen/trainset/2_1.jpg", "lfpw/trainset/image_0001.png"),
    "common": ("helen/testset/3_1.jpg", "lfpw/testset/image_0001.png"),
    "challenge": ("ibug/image_003_1.jpg", "ibug/image_092 _01.jpg"),
    "indoor": ("300W/01_Indoor/indoor_001.png",),
    "outdoor": ("300W/02_Outdoor/outdoor_001.png", "300W/02_Outdoor/outdoor_002.png"),
}


def w300(root: Path, _patch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(name for names in W300.values() for name in names):
        test_w300.add(root, name, 3.5 * test_w300.POINTS + number)
        save(root / name, number)


def cofw(root: Path, _patch: pytest.MonkeyPatch) -> None:
    """Four pictures to learn from; three to test on, which have 68 points too."""
    root.mkdir()
    rng = np.random.default_rng(1)
    for split, count in (("train", 4), ("test", 3)):
        cells = np.empty((count, 1), object)
        cells[:, 0] = [np.asarray(face(number)[0]) for number in range(count)]
        phis = np.concatenate([rng.uniform(40, 120, (count, 58)), rng.integers(0, 2, (count, 29))], axis=1)
        boxes = np.tile([35.0, 35, 90, 90], (count, 1))
        test_cofw.write(root, split, pictures=cells, phis=phis, boxes=boxes)
    test_cofw.write_second(root)


def aflw(root: Path, patch: pytest.MonkeyPatch) -> None:
    """Eight faces, of which the first five in the published order, not 20,000, are for training.

    Of one of either part a point is not known.
    """
    patch.setattr(aflw_source, "TRAIN", 5)
    rng = np.random.default_rng(2)
    names = np.empty((8, 1), object)
    names[:, 0] = [f"0/image{number}.jpg" for number in range(8)]
    seen = np.ones((8, 19))
    seen[[0, 6], 3] = 0
    points = rng.uniform(40, 120, (8, 38))
    points[0, 3] = points[6, 3] = np.nan
    content = {
        "nameList": names,
        "bbox": np.tile([30.0, 130, 40, 120], (8, 1)),
        "data": points,
        "mask_new": seen,
        "ra": np.array([[8, 2, 3, 1, 5, 4, 6, 7]]),
    }
    for number in range(8):
        save(root / f"data/flickr/0/image{number}.jpg", number)
    savemat(root / "AFLWinfo_release.mat", content)


WFLW = {
    f"{name}.jpg": name for name in ("pose", "expression", "illumination", "make_up", "occlusion", "blur")
}


def wflw(root: Path, _patch: pytest.MonkeyPatch) -> None:
    """Four faces to learn from; to test on one with each attribute, and one with pose and blur."""
    train = [test_wflw.line(40 + i, f"0--Parade/{i}.jpg", "1 1 1 1 1 1") for i in range(4)]
    test = [
        test_wflw.line(50 + i, f"1--Handshaking/{name}", " ".join("1" if k == i else "0" for k in range(6)))
        for i, name in enumerate(WFLW)
    ]
    test.append(test_wflw.line(60, "1--Handshaking/both.jpg", "1 0 0 0 0 1"))
    test_wflw.write(root, "train", *train)
    test_wflw.write(root, "test", *test)
    for i, line in enumerate([*train, *test]):
        save(root / "WFLW_images" / line.split()[-1], i)


def affectnet(root: Path, _patch: pytest.MonkeyPatch) -> None:
    """The classes 0 to 8 in both lists, the first one twice; 8 is "none"."""
    for split, first in (("training", 0), ("validation", 50)):
        rows = []
        for i, expression in enumerate((*range(9), 0)):
            name, (_, (x0, y0, x1, y1)) = f"{first}/{i}.jpg", face(i % 8)
            save(root / test_affectnet.PICTURES / name, i)
            box = f"{x0:.0f},{y0:.0f},{x1 - x0:.0f},{y1 - y0:.0f}"
            rows.append(test_affectnet.row(name, expression, 0.2 * i - 0.9, 0.7 - 0.15 * i, box=box))
        test_affectnet.write_list(root, f"{test_affectnet.LISTS}/{split}.csv", *rows)


def rafdb(root: Path, _patch: pytest.MonkeyPatch) -> None:
    """Two pictures of each class to learn from, one to test on."""
    root.mkdir()
    lines = [f"train_{i:05d}.jpg {1 + i % 7}" for i in range(14)] + [
        f"test_{i:04d}.jpg {1 + i}" for i in range(7)
    ]
    test_rafdb.write_list(root, *lines)
    for i, line in enumerate(lines):
        save(root / f"Image/aligned/{line.split('.')[0]}_aligned.jpg", i, (100, 100))


def ferplus(root: Path, patch: pytest.MonkeyPatch) -> None:
    """Each class in each of the three parts; all agree."""
    patch.setattr(
        test_ferplus, "pixels", lambda line: np.asarray(face(line % 8)[0].convert("L").resize((48, 48)))
    )
    rows, labels = [], {}
    parts = {"Training": "FER2013Train", "PublicTest": "FER2013Valid", "PrivateTest": "FER2013Test"}
    for usage, folder in parts.items():
        for expression in range(8):
            name = f"fer{len(rows):07d}.png"
            votes = ",".join("10" if i == expression else "0" for i in range(10))
            rows.append((usage, name, votes))
            labels[folder] = labels.get(folder, "") + test_ferplus.label(name, votes)
    test_ferplus.write(root, *rows, labels=labels)


def sfew(root: Path, _patch: pytest.MonkeyPatch) -> None:
    """Two pictures of each class to learn from, one to test on."""
    for i, folder in enumerate(test_sfew.FOLDERS):
        for part, names in (("Train/Train_Aligned_Faces", "ab"), ("Val/Val_Aligned_Faces_new", "c")):
            for name in names:
                save(root / part / folder / f"{name}.png", i, (143, 181))
