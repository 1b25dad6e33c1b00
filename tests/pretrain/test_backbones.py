"""The hand-off file in torchvision and timm, with the very lines that the README shows."""

import subprocess
import sys

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file

from configs import ConfigError
from pretrain import backbones


@pytest.fixture(scope="module", params=["resnet18", "resnet50"])
def handed_off(request, tmp_path_factory):
    backbone = backbones.random(request.param, 1.0, seed=1).train()
    with torch.no_grad():  # so that the batch-norm statistics are not the initial ones
        backbone(torch.randn(4, 3, 64, 64))
    path = tmp_path_factory.mktemp("backbone") / "backbone.safetensors"
    backbones.save_backbone(path, backbone, {"architecture": request.param, "width": "1.0"})
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        return request.param, path, images, backbone.eval()(images)


def test_torchvision(handed_off):
    architecture, path, images, expected = handed_off
    model = getattr(torchvision.models, architecture)()
    report = model.load_state_dict(load_file(path), strict=False)
    assert report.unexpected_keys == []
    assert report.missing_keys == ["fc.weight", "fc.bias"]
    model.fc = torch.nn.Identity()
    with torch.no_grad():
        assert torch.equal(model.eval()(images), expected)


def test_timm(handed_off):
    architecture, path, images, expected = handed_off
    model = timm.create_model(architecture, num_classes=0, checkpoint_path=str(path))
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images), expected, rtol=1e-5, atol=1e-5)


def test_own_reader(handed_off):
    architecture, path, images, expected = handed_off
    backbone, metadata = backbones.load(path)
    assert metadata == {"architecture": architecture, "width": "1.0"}
    with torch.no_grad():
        assert torch.equal(backbone.eval()(images), expected)


def test_a_narrow_backbone_round_trips(tmp_path):
    backbone = backbones.random("resnet18", 0.5, seed=0)
    assert backbones.feature_dim(backbone) == 256
    backbones.save_backbone(
        tmp_path / "b.safetensors", backbone, {"architecture": "resnet18", "width": "0.5"}
    )
    loaded, _ = backbones.load(tmp_path / "b.safetensors")
    x = torch.randn(2, 3, 48, 48)
    assert torch.equal(loaded.eval()(x), backbone.eval()(x))


def test_equal_backbones_are_equal_files(tmp_path):
    """In several processes: safetensors alone orders its metadata by a random hash."""
    program = (
        "import sys; from pathlib import Path; from pretrain import backbones;"
        "backbones.save_backbone(Path(sys.argv[1]), backbones.random('resnet18', 0.125, 0),"
        " {'architecture': 'resnet18', 'width': '0.125', 'a': '1', 'b': '2', 'c': '3', 'd': '4'})"
    )
    paths = [tmp_path / f"{i}.safetensors" for i in range(2)]
    for path in paths:
        subprocess.run([sys.executable, "-c", program, str(path)], check=True)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    _, metadata = backbones.load(paths[0])
    assert metadata == {"architecture": "resnet18", "width": "0.125", "a": "1", "b": "2", "c": "3", "d": "4"}


def test_width_one_is_torchvision():
    for name in ("resnet18", "resnet34", "resnet50", "resnet101"):
        theirs = getattr(torchvision.models, name)().state_dict()
        ours = backbones.build(name).state_dict()
        assert {k: v.shape for k, v in ours.items()} == {
            k: v.shape for k, v in theirs.items() if not k.startswith("fc.")
        }


def test_random_is_a_function_of_the_seed():
    state = torch.random.get_rng_state()
    first, second, other = (backbones.random("resnet18", 0.25, seed=s).conv1.weight for s in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("content", [None, b"", b"no safetensors at all"])
def test_a_bad_file_is_one_line(tmp_path, content):
    path = tmp_path / "backbone.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"backbone\.safetensors: cannot be read"):
        backbones.load(path)


def test_a_run_may_begin_with_the_weights_of_another(tmp_path):
    path = tmp_path / "backbone.safetensors"
    theirs = backbones.random("resnet18", 0.25, seed=3)
    backbones.save_backbone(path, theirs, {"architecture": "resnet18", "width": "0.25"})
    config = backbones.BackboneConfig(architecture="resnet18", width=0.25, init=str(path))
    for ours, other in zip(backbones.start(config).parameters(), theirs.parameters(), strict=True):
        assert torch.equal(ours, other)
    with pytest.raises(ConfigError, match=r"is a resnet18 of width 0\.25"):
        backbones.start(config.model_copy(update={"architecture": "resnet34"}))
