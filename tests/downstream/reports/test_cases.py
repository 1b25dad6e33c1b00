"""The cases of an evaluation: a real one, on a toy some of whose test pictures are known to be called wrongly."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from configs import ConfigError
from data_prep.beton import Beton
from downstream.__main__ import main
from downstream.attention import attention, overlaid
from downstream.evaluate import evaluate
from downstream.matrix import Training
from downstream.model import load_model
from downstream.reports.cases import Answers, Wanted, draw_cases, mistakes, spread
from tests.downstream.conftest import write_backbone
from tests.downstream.test_simfle_protocols import protocol, write_coloured

NAMES = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt")


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight colours. One in four of the test pictures is labelled as the class after its own; those wear glasses."""
    folder = tmp_path_factory.mktemp("cases")
    write_coloured(folder / "eight.beton", 8, seed=0)
    write_backbone(folder / "backbone.safetensors")
    table = pq.read_table(folder / "eight.parquet")
    split, label = (np.array(table[name].to_pylist()) for name in ("split", "expression"))
    place = np.arange(len(label))
    wrong = (split == "val") & (np.concatenate([[0], np.diff(label)]) != 0) | (place == 0)
    columns = {
        "image_id": [f"Image/aligned/{part}_{i:04d}_aligned.jpg" for i, part in enumerate(split)],
        "expression": np.where(wrong, (label + 1) % 8, label),
        "split": split,
        "glasses": wrong,
        "fold": place % 2,
    }
    pq.write_table(pa.table(columns), folder / "eight.parquet")
    return folder


@pytest.fixture(scope="module")
def run(toys: Path) -> Path:
    cfg = protocol(
        "linear", toys, toys / "run", modes=["linear", "frozen"], fractions=[0.5, 1.0], image_size=96
    )
    evaluate(cfg)
    return toys / "run"


def truth(toys: Path) -> dict[str, list[Any]]:
    return pq.read_table(toys / "eight.parquet").to_pydict()


def stored(run: Path, cell: str = "pretrained/expression/frozen/1") -> tuple[np.ndarray, np.ndarray]:
    with np.load(run / "predictions.npz", allow_pickle=False) as archive:
        return archive["rows"], archive[cell].astype(np.float64)


def cases(run: Path, output: Path, **wanted: Any) -> dict[str, Any]:
    told = draw_cases(run, Wanted(**wanted), output, "cpu")
    assert told == json.loads((output / "cases.json").read_text())
    return told


def test_the_wrong_ones_the_surest_first_in_turns_of_the_classes(
    run: Path, toys: Path, tmp_path: Path
) -> None:
    told = cases(run, tmp_path, count=100)
    rows, logits = stored(run)
    shares = torch.softmax(torch.from_numpy(logits), dim=1).numpy()
    label = np.array(truth(toys)["expression"])[rows]
    said = logits.argmax(axis=1)
    assert (told["row"], told["mode"], told["fraction"]) == ("pretrained", "frozen", 1)
    assert told["test"] == {"pictures": 32, "wrong": int((said != label).sum())}
    left = {k: [i for i in np.argsort(-shares.max(axis=1)) if label[i] == k != said[i]] for k in range(8)}
    expected = []
    while any(left.values()):
        turn = [queue.pop(0) for queue in left.values() if queue]
        expected += sorted(turn, key=lambda i: -shares[i].max())
    assert [case["picture"] for case in told["cases"]] == rows[expected].tolist()
    assert len(expected) >= 8, "every picture with a wrong label, if it has learnt the colours at all"
    for case, i in zip(told["cases"], expected, strict=True):
        assert (case["predicted"], case["true"]) == (NAMES[said[i]], NAMES[label[i]])
        np.testing.assert_allclose(list(case["shares"].values()), shares[i], atol=6e-5)
        assert case["image_id"] == truth(toys)["image_id"][case["picture"]]
    few = cases(run, tmp_path, count=3)
    assert few["cases"] == told["cases"][:3]
    assert len({case["true"] for case in few["cases"]}) == 3


def test_no_class_fills_the_picture() -> None:
    shares = np.array([[0.9, 0.1], [0.8, 0.2], [0.99, 0.01], [0.4, 0.6], [0.3, 0.7], [0.9, 0.1]])
    said, true = shares.argmax(axis=1), np.array([1, 1, 1, 0, 0, 0])
    every = Answers(
        Training("it", "expression", "frozen", 1, 0), NAMES[:2], *[np.arange(6), shares], said, true, said
    )
    assert mistakes(every, 9).tolist() == [2, 4, 0, 3, 1]
    assert spread(every, 6).tolist() == [5, 3, 4, 1, 0, 2]
    assert spread(every, 2).tolist() == [5, 2]


def test_chosen_pictures_by_label_or_list(run: Path, toys: Path, tmp_path: Path) -> None:
    rows, _ = stored(run)
    table = truth(toys)
    glasses = [row for row in rows.tolist() if table["glasses"][row]]
    told = cases(run, tmp_path / "where", where={"glasses": "True"}, right=True)
    assert sorted(case["picture"] for case in told["cases"]) == glasses
    assert told["chosen"]["pictures"] == len(glasses) == 8
    # As the published lists of occluded faces name them, and by id; a training picture is passed over.
    names = [table["image_id"][row] for row in (*glasses[:4], 5)]
    stems = [name.split("/")[-1].removesuffix(".jpg") for name in names]
    lines = [f"{stems[0]} 3 4", f"1_{stems[1]}.jpg 8 0", f"val/0/{stems[2]}/", names[3], "", stems[4]]
    path = tmp_path / "list.txt"
    path.write_text("\n".join(lines))
    told = cases(run, tmp_path / "list", listed=path, right=True)
    assert sorted(case["picture"] for case in told["cases"]) == glasses[:4]
    assert told["list"] == str(path)


def test_beside_each_is_what_spoke_for_what_was_said(run: Path, toys: Path, tmp_path: Path) -> None:
    told = cases(run, tmp_path, heat=True, count=2)
    network, _ = load_model(run / "models/pretrained-expression-frozen-1.safetensors")
    sheet = np.asarray(Image.open(tmp_path / "cases.jpg")).astype(int)
    for number, case in enumerate(told["cases"]):
        crop = Image.fromarray(Beton(toys / "eight.beton").image(case["picture"]))
        classes, heat = attention(network, torch.from_numpy(np.array(crop)[None]).permute(0, 3, 1, 2))
        assert NAMES[classes[0]] == case["predicted"]
        x, y = 12 + number * (512 + 12), 12 + 20
        for left, expected in ((0, crop), (256, overlaid(crop, heat[0]))):
            shown = sheet[y : y + 256, x + left : x + left + 256]
            assert np.abs(shown - np.asarray(expected)).mean() < 6, "but for what JPEG loses"


def test_of_folds_each_picture_has_its_own_network(toys: Path, tmp_path: Path) -> None:
    cfg = protocol(
        "linear", toys, tmp_path / "run", protocol={"kind": "folds", "column": "fold"}, image_size=96
    )
    evaluate(cfg)
    told = cases(tmp_path / "run", tmp_path / "out", heat=True, right=True, count=6)
    fold = np.array(truth(toys)["fold"])[[case["picture"] for case in told["cases"]]]
    assert set(fold.tolist()) == {0, 1}
    names = ("pretrained-expression-frozen-1", "pretrained-expression-frozen-1-1")
    networks = [load_model(tmp_path / f"run/models/{name}.safetensors")[0] for name in names]
    apart = []
    sheet = np.asarray(Image.open(tmp_path / "out/cases.jpg")).astype(int)
    for number, case in enumerate(told["cases"]):
        crop = Image.fromarray(Beton(toys / "eight.beton").image(case["picture"]))
        seen, said = (
            torch.from_numpy(np.array(crop)[None]).permute(0, 3, 1, 2),
            NAMES.index(case["predicted"]),
        )
        x, y = 12 + number % 3 * 524 + 256, 12 + number // 3 * (256 + 20 + 12) + 20
        shown = sheet[y : y + 256, x : x + 256]
        mine, other = (
            np.abs(
                shown - np.asarray(overlaid(crop, attention(network, seen, np.array([said]))[1][0]))
            ).mean()
            for network in (networks[fold[number]], networks[1 - fold[number]])
        )
        assert mine < 6
        apart.append(other - mine)
    assert max(apart) > 6, "the other fold's looks elsewhere"


def test_of_the_linear_readout_scores_are_shown(run: Path, tmp_path: Path) -> None:
    told = cases(run, tmp_path, mode="linear", fraction=0.5)
    rows, scores = stored(run, "pretrained/expression/linear/0.5")
    assert told["cases"]
    for case in told["cases"]:
        (i,) = np.flatnonzero(rows == case["picture"])
        np.testing.assert_allclose(list(case["shares"].values()), scores[i].clip(0, 1), atol=6e-5)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            {"row": "other"},
            r"no such row, mode and share of the labels; there are: pretrained, linear, 0\.5;",
        ),
        ({"where": {"sex": "f"}}, r"--where sex: .*eight\.beton has no such label"),
        ({"where": {"glasses": "maybe"}}, "--where glasses=maybe: no row of"),
        ({"where": {"split": "train"}}, "--where, --list: no test picture is meant"),
        ({"listed": Path("nowhere.txt")}, r"--list nowhere\.txt: cannot be read"),
        ({"heat": True, "mode": "linear"}, "--heat: the mode linear trains no network"),
    ],
)
def test_what_cannot_be_shown_is_refused(
    run: Path, tmp_path: Path, wanted: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        draw_cases(run, Wanted(**wanted), tmp_path / "out", "cpu")
    assert not (tmp_path / "out").exists()


def test_lists_that_name_none_or_several(run: Path, toys: Path, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("somebody.jpg\n")
    with pytest.raises(
        ConfigError, match=r"list\.txt: names no test picture of .*; its names are like Image/"
    ):
        draw_cases(run, Wanted(listed=path), tmp_path / "out", "cpu")
    before = (toys / "eight.parquet").read_bytes()
    rows, _ = stored(run)
    ids = truth(toys)["image_id"]
    ids[rows[0]], ids[rows[1]] = "1/same.jpg", "2/same.jpg"
    table = pq.read_table(toys / "eight.parquet")
    try:
        pq.write_table(table.set_column(0, "image_id", pa.array(ids)), toys / "eight.parquet")
        path.write_text("2/same.jpg\n")
        assert cases(run, tmp_path / "one", listed=path, right=True)["cases"][0]["picture"] == rows[1]
        path.write_text("\nsame.jpg 3\n")
        with pytest.raises(
            ConfigError, match=r"list\.txt:2: 'same' may be 1/same\.jpg or 2/same\.jpg; write"
        ):
            draw_cases(run, Wanted(listed=path), tmp_path / "out", "cpu")
    finally:
        (toys / "eight.parquet").write_bytes(before)


def test_a_network_that_is_not_there_or_anothers(run: Path, tmp_path: Path) -> None:
    model = run / "models/pretrained-expression-frozen-0.5.safetensors"
    kept = model.read_bytes()
    model.unlink()
    with pytest.raises(ConfigError, match="evaluate with keep_models=true to another output"):
        draw_cases(run, Wanted(heat=True, fraction=0.5), tmp_path / "out", "cpu")
    model.write_bytes(kept)
    metrics = json.loads((run / "metrics.json").read_text())
    copy = tmp_path / "copy"
    (copy / "models").mkdir(parents=True)
    (copy / "models" / model.name).write_bytes(kept)
    (copy / "predictions.npz").write_bytes((run / "predictions.npz").read_bytes())
    (copy / "metrics.json").write_text(json.dumps(metrics | {"inputs": "another"}))
    with pytest.raises(ConfigError, match="is of another evaluation"):
        draw_cases(copy, Wanted(heat=True, fraction=0.5), tmp_path / "out", "cpu")


def test_from_the_command_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(*words: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["downstream", "cases", str(run), *words])
        assert main() == 0
        return capsys.readouterr().out.splitlines()

    first, second, last = command("--where", "glasses=True", "--count", "2")
    assert first.startswith("test pictures: 32, ")
    assert second.startswith("chosen pictures: 8, ")
    assert last == f"{run}/cases/cases.jpg"
    assert Path(last).is_file()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=r"--output: .*file cannot be a folder"):
        command("--output", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="--where glasses: write COLUMN=VALUE"):
        command("--where", "glasses")
