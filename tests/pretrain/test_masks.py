"""What SimFLE masks: the pictures of a run, and the averages in them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import configs
from configs import ConfigError, load
from pretrain import checkpoint, masks
from pretrain.__main__ import main
from pretrain.distributed import Ranks
from pretrain.methods import Moment
from pretrain.train import PretrainConfig, build
from tests.pretrain.runs import TINY
from tests.pretrain.test_simfle import RUN

ALONE = Ranks(0, 1, 0, 1, torch.device("cpu"))
PATCHES, KEPT = 16, 4


def run_of(text: str, data: Path, folder: Path) -> PretrainConfig:
    """The folder of a run, without checkpoints."""
    folder.mkdir()
    (folder / "given.yaml").write_text(text)
    config = load(
        folder / "given.yaml",
        [f"data.path={data}", f"output={folder}", "deterministic=false"],
        schema=PretrainConfig,
    )
    (folder / "config.yaml").write_text(configs.dump(config))
    return config


def test_the_pictures_of_a_run(beton_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = run_of(RUN, beton_path, tmp_path / "run")
    (tmp_path / "run/checkpoints").mkdir()
    for step in (6, 12, 24):
        method = build(config.model_copy(update={"seed": step}), ALONE)
        checkpoint.save(
            tmp_path / "run/checkpoints",
            step,
            {"method": method.state_dict()},
            config.checkpoint.model_copy(update={"keep": 3}),
        )
    assert main(["masks", str(tmp_path / "run"), "--pictures", "10", "--shown", "3"]) == 0
    written = [tmp_path / "run/masks" / name for name in ("masking.png", "reconstruction.png")]
    assert capsys.readouterr().out.split() == [str(path) for path in written]
    with Image.open(written[0]) as maps:
        assert maps.width > 3 * 200  # three checkpoints
    with Image.open(written[1]) as sheet:
        assert sheet.size == (10 * (64 + masks.GAP) + masks.GAP, 3 * (64 + masks.GAP) + masks.GAP)
        page = np.asarray(sheet).astype(int)
    tiles = page[masks.GAP :, masks.GAP :]
    first, masked = tiles[:64, :64], tiles[:64, 68 : 68 + 64]
    grey = (masked == masks.GREY).all(-1)
    assert grey.mean() == pytest.approx(1 - KEPT / PATCHES, abs=0.01)
    assert (masked[~grey] == first[~grey]).all()


def test_averages_are_those_of_the_masks(beton_path: Path, tmp_path: Path) -> None:
    config = run_of(RUN, beton_path, tmp_path / "run")
    method = build(config, ALONE).eval()
    pictures = torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    kept, error = masks._averages(method, pictures, seed=3)
    assert kept.sum() == pytest.approx(KEPT)
    counts, total, times = np.zeros(PATCHES), np.zeros((64, 64)), np.zeros((64, 64))
    for draw in range(masks.DRAWS):
        moment = Moment(draw, 1, 1, 3, np.arange(5))
        counts += method.reconstruct(pictures, moment).kept.numpy().sum(0)
        made = method.reconstruct(pictures, moment, at_random=True)
        for picture, painted, visible in zip(pictures, made.pictures, made.kept, strict=True):
            for patch in np.flatnonzero(~visible.numpy()):
                place = (
                    slice(16 * (patch // 4), 16 * (patch // 4) + 16),
                    slice(16 * (patch % 4), 16 * (patch % 4) + 16),
                )
                total[place] += ((painted - picture) ** 2).mean(0).numpy()[place]
                times[place] += 1
    np.testing.assert_allclose(kept.ravel(), counts / 20)
    np.testing.assert_allclose(error, total / np.maximum(times, 1), rtol=1e-5)


def test_other_runs_are_refused(beton_path: Path, tmp_path: Path) -> None:
    run_of(TINY, beton_path, tmp_path / "swav")
    with pytest.raises(ConfigError, match="is no run of SimFLE with FaceMAE"):
        masks.draw_masks(tmp_path / "swav", tmp_path / "out", count=4, shown=2)
    run_of(RUN, beton_path, tmp_path / "young")
    with pytest.raises(ConfigError, match="has no checkpoint yet"):
        masks.draw_masks(tmp_path / "young", tmp_path / "out", count=4, shown=2)
