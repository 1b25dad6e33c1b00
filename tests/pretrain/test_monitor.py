"""What a run tells of itself: probes with known answers, warnings in words, rows and the heartbeat."""

import json
import logging
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pretrain import backbones, monitor
from pretrain.distributed import Ranks
from pretrain.log import RunLog, read_metrics
from pretrain.methods.method import Moment
from pretrain.methods.swav import SwAV, SwAVConfig
from pretrain.monitor import Monitor, Span, warnings
from pretrain.probes import Probe, ProbeConfig, knn_score, linear_score
from pretrain.views import CropConfig, ViewsConfig
from tests.pretrain import test_methods, test_simfle
from tests.pretrain.runs import ROOT

HEALTHY = {
    "epoch": 2.0,
    "loss": 3.5,
    "ln_k": 5.0,
    "prototype_usage": 0.8,
    "duplicate_prototypes": 0.0,
    "code_entropy": 0.5,
    "feature_std": 0.9,
    "embedding_std": 0.8,
    "embedding_rank": 9.0,
    "mask_ties": 0.1,
}
VIEWS = ViewsConfig(crops=(CropConfig(count=2, size=32, scale=(0.3, 1)),))


@pytest.mark.parametrize("score", [lambda f, y: knn_score(f, y, 5), linear_score])
def test_probes_find_what_is_there_and_nothing_else(score):
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 4, 400)
    centres = rng.normal(size=(4, 16))
    features = (centres[classes] + 0.1 * rng.normal(size=(400, 16))).astype(np.float32)
    assert score(features, classes) > 0.99
    assert abs(score(rng.normal(size=(400, 16)).astype(np.float32), classes) - 0.25) < 0.12
    targets = (features[:, :2] @ rng.normal(size=(2, 3))).astype(np.float32)
    assert score(features, targets) > 0.9
    assert score(rng.normal(size=(400, 16)).astype(np.float32), targets) < 0.1


@pytest.mark.parametrize(
    ("figure", "value", "says"),
    [
        ("loss", 4.995, "the loss is still ln K = 5.000"),
        ("prototype_usage", 0.03, "3% of the prototypes are used: collapse"),
        ("duplicate_prototypes", 0.5, "50% of the prototypes are copies"),
        ("code_entropy", 0.99, "the assignments are nearly uniform"),
        ("feature_std", 0.01, "the features of all pictures are nearly the same"),
        ("embedding_std", 0.01, "the embeddings of all pictures are nearly the same"),
        ("embedding_rank", 1.2, "the embeddings differ in hardly more than one direction"),
        ("mask_ties", 0.3, "in 30% of the pictures the last kept patch and the first masked"),
    ],
)
def test_each_sign_of_collapse_is_said_in_words(figure, value, says):
    assert warnings(HEALTHY) == {}
    (message,) = warnings(HEALTHY | {figure: value}).values()
    assert says in message
    assert warnings(HEALTHY | {figure: value, "epoch": 0.5}) == {}, "too early to tell"


def test_every_section_that_a_message_names_is_there():
    text = (ROOT / "docs/pretrain.md").read_text()
    for figure, (_, message) in monitor._SIGNS.items():
        named = re.findall(r"see docs/pretrain\.md, '(.*)'", message)
        assert all(f"\n## {section}\n" in text for section in named), message
        if figure in ("feature_std", "embedding_std", "embedding_rank"):
            assert named == ["When the embeddings collapse"]


@pytest.fixture
def method():
    torch.manual_seed(0)
    method = SwAV(
        backbones.build("resnet18", 0.125), SwAVConfig(prototypes=12, projection_dim=8, hidden_dim=16)
    )
    method([torch.randn(16, 3, 32, 32)], Moment(0, 10, 100, 0, np.arange(8)))
    return method


def watch(folder, probe=None, first=0):
    place = Ranks(0, 1, 0, 1, torch.device("cpu"))
    span = Span(first, 12, steps_per_epoch=4)
    return Monitor(folder, place, span, batch_size=8, log_every_steps=5, probe=probe, views=VIEWS)


def test_rows_are_written_when_due_and_at_the_end(tmp_path, method, caplog):
    with caplog.at_level(logging.WARNING), watch(tmp_path) as see:
        for step in range(1, 13):
            see(step, torch.tensor(method.loss_without_learning), 0.1, method)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [5, 10, 12]
    assert rows[0].keys() >= {"loss", "ln_k", "lr", "images_per_second", "effective_rank", "code_entropy"}
    said = [record.getMessage() for record in caplog.records if "still ln K" in record.getMessage()]
    assert len(said) == 1, "once, not at every row"
    assert said[0].startswith("step 5: ")
    beat = json.loads((tmp_path / "heartbeat.json").read_text())
    assert beat["step"] == 1  # the next one is due ten seconds later
    assert beat["pid"]


def test_a_run_that_goes_on_writes_each_row_once(tmp_path, method):
    with watch(tmp_path) as see:
        for step in range(1, 11):
            see(step, torch.tensor(2.0), 0.1, method)
    with watch(tmp_path, first=7) as see:  # its last checkpoint
        for step in range(8, 13):
            see(step, torch.tensor(1.0), 0.1, method)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["loss"]) for row in rows] == [(5, 2.0), (10, 1.0), (12, 1.0)]


def test_a_half_written_last_row_is_left_out(tmp_path):
    with RunLog(tmp_path, step=0, total_steps=9, batch_size=1) as log:
        log.write({"step": 3, "loss": 1.0})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "lo')
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [3]


def test_other_ranks_write_nothing(tmp_path, method):
    place = Ranks(1, 2, 1, 2, torch.device("cpu"))
    span = Span(0, 4, steps_per_epoch=4)
    with Monitor(tmp_path, place, span, batch_size=8, log_every_steps=1, probe=None, views=VIEWS) as see:
        see(1, torch.tensor(1.0), 0.1, method)
    assert not list(tmp_path.iterdir())


def test_the_probe_leaves_the_network_as_it_was(beton_path, tmp_path, method):
    for suffix in (".beton", ".json"):
        shutil.copy(beton_path.with_suffix(suffix), tmp_path)
    pq.write_table(pa.table({"class": np.arange(96) % 3}), tmp_path / "set.parquet")
    probe = Probe(ProbeConfig(data=str(tmp_path / "set.beton"), column="class", pictures=40), VIEWS)
    method.backbone.train()
    before = {name: value.clone() for name, value in method.backbone.state_dict().items()}
    figures = probe(method.backbone)
    assert figures.keys() == {"knn", "linear"}
    assert method.backbone.training
    assert all(torch.equal(value, before[name]) for name, value in method.backbone.state_dict().items())


def test_the_signs_are_figures_of_the_methods(method):
    simfle = test_simfle.build("official")
    simfle(test_simfle.flat(0, simfle), test_methods.moment(0))
    losses = {"similarity", "reconstruction", "distillation", "grouping"}
    figures = {"loss", *method.indicators(), *simfle.indicators()}
    assert set(monitor._SIGNS) == figures - losses - {"effective_rank"}


@pytest.mark.parametrize("name", ["byol", "simclr", "moco"])
@pytest.mark.parametrize("pictures", [1, 2])
def test_too_few_pictures_raise_no_alarm(tmp_path, caplog, name, pictures):
    """With one the figures are not numbers, with two there is one direction only."""
    pair = test_methods.build(name)
    assert pair.loss_without_learning is None
    pair([torch.randn(2 * pictures, 3, 64, 64, dtype=torch.float64)], test_methods.moment(0))
    with caplog.at_level(logging.WARNING), watch(tmp_path) as see:
        see(12, torch.tensor(1.0), 0.1, pair)
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert row.keys() == {"step", "epoch", "loss", "lr", "images_per_second", "time"}
    assert not caplog.records
