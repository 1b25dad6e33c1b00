"""Chains of stages on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs import ConfigError
from slurm.__main__ import main

CHAIN = """
stages:
  - {name: photos, stage: data_prep, config: tiny.yaml, overrides: [output=photos]}
  - {name: swav, stage: pretrain, config: tiny.yaml, overrides: [output=swav], after: [photos]}
  - {name: end, stage: data_prep, config: tiny.yaml, overrides: [output=end], after: [swav]}
"""


@pytest.fixture
def chain(tiny: list[str]) -> list[str]:
    """CONFIG and overrides of a chain of three stages."""
    Path("chain.yaml").write_text(CHAIN)
    environment = tiny[1]
    return ["chain.yaml", *(f"{name}.{environment}" for name in ("photos", "swav", "end"))]


def test_stages_run_in_order_with_their_output(chain: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["pipeline", *chain, "--local", "swav.lines=1"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line[1:].split()[0] for line in lines] == ["photos"] * 4 + ["swav"] * 2 + ["end"] * 4
    assert all((Path(run) / "rank_0.json").exists() for run in ("photos", "swav", "end"))


def test_only_what_is_missing_runs(chain: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["pipeline", *chain, "--local"]) == 0
    Path("swav/rank_0.json").unlink()
    capfd.readouterr()
    assert main(["pipeline", *chain, "--local"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert (lines[0], lines[-1]) == ("photos: finished already, photos", "end: finished already, end")
    assert Path("swav/rank_0.json").exists()
    assert [len(list(Path(run, "logs").glob("[0-9]*"))) for run in ("photos", "swav", "end")] == [1, 2, 1]


def test_a_failed_stage_stops_the_chain(chain: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["pipeline", *chain, "--local", "swav.fail=true"]) == 1
    message = capfd.readouterr().err
    assert "stage swav: process 0 failed" in message
    assert "ValueError: the picture is upside down" in message
    assert not Path("end").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sawv.lines=1", "did you mean 'swav.'"),
        ("lines=1", "write it as STAGE.field=value"),
        ("end.linse=1", "did you mean 'lines'"),
        ("photos.data=absent", "data: absent: no such file"),
    ],
)
def test_all_stages_are_checked_before_the_first_starts(
    chain: list[str], override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        main(["pipeline", *chain, "--local", override])
    assert not Path("photos").exists()


def test_a_later_stage_may_wait_for_data_that_an_earlier_one_makes(chain: list[str]) -> None:
    assert main(["pipeline", *chain, "--local", "swav.data=photos/rank_0.json"]) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CHAIN.replace("after: [photos]", "after: [end]"), "'end' is no stage above it"),
        (CHAIN.replace("name: end", "name: swav"), "two stages are named 'swav'"),
        (CHAIN.replace("pretrain", "pretrian"), "did you mean 'pretrain'"),
    ],
)
def test_a_wrong_chain_is_refused(tiny: list[str], text: str, message: str) -> None:
    Path("chain.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        main(["pipeline", "chain.yaml", "--local"])


def test_dry_run_on_slurm_shows_the_dependencies(chain: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    cluster = Path(__file__).resolve().parents[2] / "configs/cluster/university.yaml"
    assert main(["pipeline", *chain, "--cluster", str(cluster), "--dry-run"]) == 0
    photos, swav, end = capfd.readouterr().out.split("### ")[1:]
    assert "dependency" not in photos
    assert "#SBATCH --dependency=afterok:ID_OF_photos\n" in swav
    assert "#SBATCH --kill-on-invalid-dep=yes\n" in swav
    assert "#SBATCH --dependency=afterok:ID_OF_swav\n" in end
