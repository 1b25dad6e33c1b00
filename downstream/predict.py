"""Predictions for anybody's pictures: find faces, cut them as the training set was cut, predict, draw, write down."""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from tqdm import tqdm

from configs import ConfigError
from data_prep.crop import CropConfig, crop, crop_affine, encode
from data_prep.detect import DetectConfig, KeepConfig, detect_pictures, mean_side
from data_prep.detector import build
from data_prep.files import atomic_write, lock, remove_temporaries, sha256_file
from data_prep.images import PictureError, decode_picture, read_bytes
from data_prep.names import name_to_text
from data_prep.sources.folder import Folder, FolderConfig
from downstream import drawing
from downstream.evaluate import choose_device
from downstream.features import resize
from downstream.model import TaskNetwork, load_model
from downstream.results import claim
from downstream.tasks.task import SIDE, Array

VERSION = 1
BATCH = 64
"""Faces a forward pass."""
LONGEST, READABLE, LARGEST_ZOOM = 2048, 256, 4
"""Annotated pictures have no more pixels a side; small faces are enlarged to this mean side, but not further."""
TILES = 24
"""Faces a sheet."""
QUALITY = 92


@dataclass(frozen=True)
class Model:
    """A trained task, ready to predict.

    Attributes:
        path: Its file.
        network: It.
        header: Of the file.
        crop: How the faces of its training set were cut.
    """

    path: Path
    network: TaskNetwork
    header: dict[str, str]
    crop: CropConfig


@dataclass(frozen=True)
class Cut:
    """A face as a model sees it.

    Attributes:
        picture: The crop.
        affine: (2, 3) from source to crop pixels.
        prediction: (P,) what the model says.
    """

    picture: Image.Image
    affine: Array
    prediction: Array


@dataclass(frozen=True)
class Face:
    """One face of a picture: (4,) box in source pixels, the detector's score, and a cut for each model."""

    box: NDArray[np.float32]
    score: float
    cuts: tuple[Cut, ...]


def open_model(path: Path, device: torch.device) -> Model:
    """Read a file that ``keep_models`` wrote. What its set did not say of the crops is as the defaults are.

    Raises:
        ConfigError: it is something else, or was trained on crops that cannot be cut here.
    """
    network, header = load_model(path)
    try:
        config = CropConfig.model_validate_json(header["crop"])
    except (KeyError, ValidationError):
        raise ConfigError(f"{path}: does not say how its faces were cut; train it again") from None
    if config.image_size != SIDE:
        raise ConfigError(
            f"{path}: trained on crops of {config.image_size} px; predictions are made on crops of {SIDE} px"
        )
    return Model(path, network.to(device), header, config)


class Predictor:
    """From a picture to its faces.

    Detector, rule and crops are those of the data preparation's defaults, and a crop is coded as JPEG as in a set, so
    that a picture and its row in a set made from it get the same predictions.

    Args:
        models: What is predicted.
        device: Where networks run.
    """

    def __init__(self, models: Sequence[Model], device: torch.device) -> None:
        self.models = models
        self.detect = DetectConfig(device=device.type, decode_threads=0)
        assert self.detect.network == "mobilenet0.25"
        self._detector = build(self.detect.network, device.type, self.detect.threshold)

    def __call__(self, image: Image.Image) -> tuple[list[Face], Counter[str]]:
        """The faces of an RGB picture from left to right, and why others were left out, each with its number.

        Raises:
            ConfigError: a model predicts what is no number.
        """
        row = {"image_id": "", "width": image.width, "height": image.height}
        found = detect_pictures([row], lambda _: image, self._detector, self.detect, KeepConfig())
        left_out = Counter(face["why"] for face in found if not face["kept"])
        kept = sorted((face for face in found if face["kept"]), key=lambda face: float(face["box"][0]))
        pixels = np.asarray(image)
        cuts: dict[CropConfig, list[tuple[Image.Image, Array]]] = {}
        for config in dict.fromkeys(model.crop for model in self.models):
            cuts[config] = [_cut(pixels, face, config) for face in kept]
        by_model = [self._predicted(model, cuts[model.crop]) for model in self.models]
        return [
            Face(face["box"], float(face["score"]), tuple(of_face))
            for face, of_face in zip(kept, zip(*by_model, strict=True), strict=True)
        ], left_out

    def _predicted(self, model: Model, cuts: Sequence[tuple[Image.Image, Array]]) -> list[Cut]:
        made = []
        for start in range(0, len(cuts), BATCH):
            batch = cuts[start : start + BATCH]
            seen = torch.from_numpy(np.stack([np.asarray(picture) for picture, _ in batch])).permute(
                0, 3, 1, 2
            )
            predictions = model.network.predict(resize(seen, model.network.network.size))
            if not np.isfinite(predictions).all():
                raise ConfigError(
                    f"{model.path}: predicts what is no number; train it again, at a lower rate"
                )
            made += [Cut(*cut, said) for cut, said in zip(batch, predictions, strict=True)]
        return made


def _cut(pixels: NDArray[np.uint8], face: dict[str, Any], config: CropConfig) -> tuple[Image.Image, Array]:
    affine = crop_affine(face, config)
    stored = encode(crop(pixels, affine, config), config.quality)
    picture = Image.open(io.BytesIO(stored), formats=["JPEG"])
    picture.load()
    return picture, affine.reshape(2, 3).astype(np.float64)


# --- pictures ------------------------------------------------------------------------------------------------


def annotated(image: Image.Image, faces: Sequence[Face], models: Sequence[Model]) -> Image.Image:
    """A picture with boxes, numbers, and all that is predicted on the faces; small faces are enlarged."""
    typical = float(np.median([mean_side(face.box) for face in faces]))
    larger = min(max(1.0, READABLE / typical), LARGEST_ZOOM)
    scale = min(larger, LONGEST / max(image.size))
    sides = tuple(max(1, round(side * scale)) for side in image.size)
    drawn = image.resize((sides[0], sides[1]), Image.Resampling.LANCZOS, reducing_gap=3)
    by = np.array(sides) / image.size
    boxes = np.stack([face.box for face in faces]) * np.tile(by, 2)
    drawing.mark_faces(drawn, [(x0, y0, x1, y1) for x0, y0, x1, y1 in boxes.tolist()])
    for face in faces:
        for model, cut in zip(models, face.cuts, strict=True):
            affine = np.concatenate([cut.affine[:, :2] / by, cut.affine[:, 2:]], axis=1)
            model.network.task.mark(drawn, cut.prediction, affine)
    return drawn


def tiles(
    faces: Sequence[Face], models: Sequence[Model], first: int = 1
) -> Iterator[tuple[str, Image.Image]]:
    """Each face's crop with all that is predicted over and beside it; one for each way in which it was cut.

    ``first`` is the number of the first face.
    """
    for number, face in enumerate(faces, first):
        drawn: dict[CropConfig, Image.Image] = {}
        for model, cut in zip(models, face.cuts, strict=True):
            seen, task = drawn.get(model.crop, cut.picture), model.network.task
            drawn[model.crop] = task.draw(seen, task.shown(cut.prediction, regressed=False))
        for tile in drawn.values():
            yield f"{number}   score {face.score:.3f}", tile


# --- a run ---------------------------------------------------------------------------------------------------


def predict(models: Sequence[Path], pictures: Sequence[Path], output: Path, device: str) -> Counter[str]:
    """Write predictions.json and the annotated pictures to the folder ``output``; how many there were of what.

    A run that was interrupted goes on, if models and pictures are the same. Memory does not grow with the number
    of pictures, but for their names.

    Raises:
        ConfigError: a model or a picture is not there, the folder is another command's, or another run writes to it.
    """
    listed = find_pictures(pictures, output)
    claim(output, "--output", "predictions.json")
    place = choose_device(device)
    opened = [open_model(path, place) for path in models]
    predictor = Predictor(opened, place)
    with lock(output / ".lock", wait=False) as mine:
        if not mine:
            raise ConfigError(f"{output}: another run writes there; wait for it or give another --output")
        for folder in (output, output / "pictures", output / "faces"):
            remove_temporaries(folder)
        journal = _Journal(output / ".predictions.jsonl", _about(opened, predictor))
        counts = Counter[str]()
        bar = tqdm(listed, unit="picture", mininterval=1, disable=None)
        for number, (path, error) in enumerate(bar, 1):
            name = drawing_name(path, number, len(listed))
            entry = _entry(path, error, journal, name, predictor, output)
            counts.update(
                pictures=1,
                faces=len(entry["faces"]),
                unreadable=int(entry["unreadable"]),
                without_face=int(not entry["faces"] and not entry["unreadable"]),
            )
        journal.publish(output / "predictions.json", counts)
    return counts


def find_pictures(given: Sequence[Path], output: Path) -> list[tuple[Path, str]]:
    """Every file that is named or lies below a folder that is, by name, each with why it cannot be used.

    Raises:
        ConfigError: a path is not there, a folder holds nothing, or ``output`` lies in it.
    """
    listed: list[tuple[Path, str]] = []
    for path in given:
        if not path.exists():
            raise ConfigError(f"{name_to_text(path)}: no such file or folder; correct the path")
        if not path.is_dir():
            listed.append((path, ""))
            continue
        if path.resolve() in (output.resolve(), *output.resolve().parents):
            raise ConfigError(
                f"--output {output}: lies in {path}, whose pictures are read; give a folder elsewhere"
            )
        try:
            (shard,) = Folder(FolderConfig(kind="folder", path=path), sys.maxsize).shards()
        except ConfigError:
            raise ConfigError(f"{name_to_text(path)}: no file in this folder; give another") from None
        listed += [(path / name, error) for name, error in shard.payload]
    return listed


def drawing_name(path: Path, number: int, count: int) -> str:
    """What the drawings of picture ``number`` of ``count`` are called, without a suffix, on any file system."""
    plain = re.sub(r"[^\w.-]+", "_", name_to_text(path.stem))[:60]
    return f"{number:0{len(str(count))}d}-{plain}"


def _entry(
    path: Path, error: str, journal: _Journal, name: str, predictor: Predictor, output: Path
) -> dict[str, Any]:
    """What predictions.json says of one picture, whose drawings are called ``name``."""
    entry: dict[str, Any] = {"picture": name_to_text(path), "sha256": None, "name": name}
    try:
        if error:
            raise PictureError(error)
        data = read_bytes(path)
        entry["sha256"] = hashlib.sha256(data).hexdigest()
        if done := journal.find(entry, output):
            return done
        image = decode_picture(data)
        faces, left_out = predictor(image)
    except PictureError as reason:
        if done := journal.find(entry, output):
            return done
        entry |= {"unreadable": True, "reason": str(reason), "files": [], "faces": []}
    else:
        why = ", ".join(f"{count} {what}" for what, count in left_out.items())
        entry |= {"unreadable": False, "reason": "" if faces else f"no face{f' but {why}' if why else ''}"}
        entry |= {"width": image.width, "height": image.height, "left_out": dict(left_out)}
        entry["files"] = _drawn(image, faces, predictor.models, name, output) if faces else []
        entry["faces"] = [
            {
                "face": number,
                "box": [round(float(x), 2) for x in face.box],
                "score": round(face.score, 4),
                "predictions": [
                    {
                        "model": place,
                        "task": model.network.task.name,
                        "values": model.network.task.describe(cut.prediction, cut.affine),
                    }
                    for place, (model, cut) in enumerate(zip(predictor.models, face.cuts, strict=True))
                ],
            }
            for number, face in enumerate(faces, 1)
        ]
    journal.add(entry)
    return entry


def _drawn(
    image: Image.Image, faces: Sequence[Face], models: Sequence[Model], name: str, output: Path
) -> list[str]:
    """Write the annotated picture and the sheets of its faces; their paths below ``output``."""
    written = [f"pictures/{name}.jpg"]
    save_picture(annotated(image, faces, models), output / written[0])
    for page, start in enumerate(range(0, len(faces), TILES), 1):
        written.append(f"faces/{name}{f'-{page}' if len(faces) > TILES else ''}.jpg")
        save_picture(
            drawing.sheet(tiles(faces[start : start + TILES], models, start + 1)), output / written[-1]
        )
    return written


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a JPEG, whole or not at all."""
    with atomic_write(path) as file:
        picture.save(file, "JPEG", quality=QUALITY, subsampling=0)


def _about(models: Sequence[Model], predictor: Predictor) -> dict[str, Any]:
    """What predictions.json says of the run."""
    return {
        "version": VERSION,
        "models": [
            {
                "path": str(model.path),
                "sha256": sha256_file(model.path),
                "task": model.network.task.model_dump(mode="json", exclude={"recipe"}),
                "crop": model.crop.model_dump(),
            }
            | {name: model.header[name] for name in ("row", "mode", "fraction") if name in model.header}
            for model in models
        ],
        "detector": predictor.detect.network,
    }


class _Journal:
    """The entries of a run that has not ended, one a line: what is there already is not made again.

    Args:
        path: The file.
        about: The run; an unfinished one of another kind is dropped.
    """

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path, self.about = path, about
        self._file = open(path, "a+b")  # noqa: SIM115 - closed by publish, or with the process
        self._file.seek(0)
        self._reading = self._file.readline() == _line(about)
        if not self._reading:
            self._file.truncate(0)
            self._file.write(_line(about))

    def find(self, entry: dict[str, Any], output: Path) -> dict[str, Any] | None:
        """The next entry, if it is of this picture and its drawings are there; else all that follow are dropped."""
        if not self._reading:
            return None
        start = self._file.tell()
        try:
            kept: dict[str, Any] = json.loads(self._file.readline())
            same = all(kept[field] == value for field, value in entry.items())
            if same and all((output / name).exists() for name in kept["files"]):
                return kept
        except (ValueError, KeyError, TypeError):  # cut off, or nothing is left
            pass
        self._file.truncate(start)
        self._file.seek(start)
        self._reading = False
        return None

    def add(self, entry: dict[str, Any]) -> None:
        """Write down one more."""
        self._file.write(_line(entry))
        self._file.flush()

    def publish(self, path: Path, counts: Counter[str]) -> None:
        """Write all entries to ``path``, and end."""
        end = self._file.tell()
        self._file.seek(0)
        self._file.readline()
        with atomic_write(path) as file:
            file.write(_line(self.about | {"counts": dict(counts)})[:-2] + b', "pictures": [\n')
            first = True
            while self._file.tell() < end:
                file.write((b"" if first else b",\n") + self._file.readline()[:-1])
                first = False
            file.write(b"\n]}\n")
        self._file.close()
        self.path.unlink()


def _line(tree: dict[str, Any]) -> bytes:
    return json.dumps(tree, allow_nan=False).encode() + b"\n"
