"""Checkpoints in the layouts of others, and what others read of ours.

The layouts are those of the published files; the weights are random.
"""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from configs import ConfigError, load
from pretrain import backbones
from pretrain.checkpoint import CheckpointConfig, Writer
from pretrain.distributed import Ranks
from pretrain.interchange import export_backbone, import_backbone
from pretrain.train import PretrainConfig, build

ROOT = Path(__file__).parents[2]
IMAGES = torch.linspace(-1, 1, 2 * 3 * 64 * 64).view(2, 3, 64, 64)


def network(seed: int = 0, name: str = "resnet18") -> torch.nn.Module:
    """A torchvision ResNet with statistics that matter."""
    torch.manual_seed(seed)
    model = getattr(torchvision.models, name)()
    model.train()(torch.randn(4, 3, 64, 64))
    return model.eval()


def features(model: torch.nn.Module) -> torch.Tensor:
    """Pooled, (2, D)."""
    *body, _ = model.children()
    with torch.no_grad():
        return torch.nn.Sequential(*body)(IMAGES).flatten(1)


def named(prefix: str, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in model.state_dict().items()}


def numbered(prefix: str, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """As nn.Sequential(*children) without the classifier calls them."""
    *body, _ = model.children()
    return named(prefix, torch.nn.Sequential(*body))


MINE, OTHER = network(0), network(1)
HEAD = {"module.projection_head.0.weight": torch.zeros(8, 512), "module.prototypes.weight": torch.zeros(9, 8)}
LAYOUTS = {
    "torchvision": MINE.state_dict(),
    "SwAV": named("module.", MINE) | HEAD,
    "SwAV in training": {
        "epoch": 3,
        "state_dict": named("module.", MINE) | HEAD,
        "optimizer": {"state": {0: {}}},
    },
    "Bulat et al.": {"epoch": 9, "state_dict": named("module.base_net.", MINE) | HEAD},
    "MoCo": {
        "arch": "resnet18",
        "state_dict": named("module.encoder_q.", MINE)
        | named("module.encoder_k.", OTHER)
        | {"module.queue": torch.zeros(8, 16)},
    },
    "BYOL": {
        "online_network_state_dict": numbered("encoder.", MINE),
        "target_network_state_dict": numbered("encoder.", OTHER),
    },
    "words within words": named("semantic.", MINE) | named("ema.", OTHER),
    "SimFLE": {
        "epoch": 1,
        "state_dict": numbered("online_network.net.", MINE) | numbered("target_network.net.", OTHER),
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(64, 3, 7, 7)}}},
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_checkpoint_of_others_gives_its_own_features(tmp_path, layout):
    torch.save(LAYOUTS[layout], tmp_path / "theirs.pth.tar")
    import_backbone(
        tmp_path / "theirs.pth.tar", tmp_path / "ours.safetensors", std=(0.228, 0.224, 0.225), licence="MIT"
    )
    ours, header = backbones.load(tmp_path / "ours.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(IMAGES), features(MINE), atol=0, rtol=0)
    assert (header["architecture"], header["licence"]) == ("resnet18", "MIT")
    assert json.loads(header["std"]) == [0.228, 0.224, 0.225]


@pytest.mark.parametrize("recipe", ["byol", "moco", "simfle"])
def test_a_checkpoint_of_ours_gives_the_backbone_that_is_trained(tmp_path, recipe):
    """As a run writes it: SimFLE's backbone has two names in it, and every method's follower is another network."""
    gfl = {"name": "moco" if recipe == "moco" else "byol", "projection_dim": 8}
    gfl |= {"queue_length": 8} if recipe == "moco" else {"hidden_dim": 8}
    crops = [{"count": 2, "size": 32, "scale": [0.2, 1]}]
    method = {"name": "simfle", "gfl": gfl, "facemae": None} if recipe == "simfle" else gfl
    text = {"output": "unused", "data": {"path": "unused"}, "batch_size": 8, "method": method}
    text |= {"backbone": {"architecture": "resnet18"}, "views": {"crops": crops}, "schedule": {"lr": 0.1}}
    (tmp_path / "run.yaml").write_text(json.dumps(text))
    config = load(tmp_path / "run.yaml", schema=PretrainConfig)
    built = build(config, Ranks(0, 1, 0, 1, torch.device("cpu")))
    with torch.no_grad():
        built.backbone.layer4[1].conv2.weight.mul_(2)  # one step ahead of what follows it
    with Writer(tmp_path, CheckpointConfig()) as writer:
        writer.write(3, {"method": built.state_dict(), "optimizer": {}, "ranks": {}, "step": 3, "world": 1})
    import_backbone(tmp_path / "step_00000003.pt", tmp_path / "backbone.safetensors")
    ours, _ = backbones.load(tmp_path / "backbone.safetensors")
    for key, value in built.backbone.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), key


def test_timm_bottlenecks_and_safetensors(tmp_path):
    theirs = timm.create_model("resnet50", num_classes=7).eval()
    save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    header = import_backbone(tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors")
    assert header["architecture"] == "resnet50"
    ours, _ = backbones.load(tmp_path / "ours.safetensors")
    with torch.no_grad():
        expected = theirs.forward_head(theirs.forward_features(IMAGES), pre_logits=True)
        torch.testing.assert_close(ours.eval()(IMAGES), expected, atol=1e-5, rtol=1e-5)


def test_files_of_long_ago_have_no_counters(tmp_path):
    old = {name: x for name, x in MINE.state_dict().items() if "num_batches" not in name}
    torch.save(old, tmp_path / "old.pth")
    assert import_backbone(tmp_path / "old.pth", tmp_path / "ours.safetensors")["architecture"] == "resnet18"


def test_one_of_several_is_named(tmp_path):
    torch.save(named("left.", MINE) | named("right.", OTHER), tmp_path / "two.pth")
    with pytest.raises(ConfigError, match=r"name one ResNet with --root; .* 'left\.', 'right\.'"):
        import_backbone(tmp_path / "two.pth", tmp_path / "ours.safetensors")
    import_backbone(tmp_path / "two.pth", tmp_path / "ours.safetensors", root="right")
    ours, _ = backbones.load(tmp_path / "ours.safetensors")
    assert torch.equal(ours.conv1.weight, OTHER.conv1.weight)


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight": torch.zeros(3)}, "the keys of those in it begin with: none"),
        (named("", MINE) | {"layer4.2.conv1.weight": torch.zeros(1)}, r"a ResNet with \[2, 2, 2, 3\] blocks"),
        (
            named("", MINE) | {"bn1.weight": torch.zeros(3)},
            "not torchvision's resnet18: size mismatch for bn1.weight",
        ),
        ({"state_dict": named("", MINE), "hook": Evil()}, "holds Python objects, which are not executed"),
        (None, "cannot be read"),
    ],
)
def test_what_cannot_be_taken_over_is_one_line(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        torch.save(content, "theirs.pth", pickle_module=pickle)
    with pytest.raises(ConfigError, match=message) as caught:
        import_backbone(Path("theirs.pth"), Path("ours.safetensors"))
    assert "\n" not in str(caught.value)
    assert not Path("ours.safetensors").exists()
    assert not Path("executed").exists()


# --- out -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("ours") / "backbone.safetensors"
    torch.save(MINE.state_dict(), path.with_suffix(".pth"))
    import_backbone(path.with_suffix(".pth"), path, image_size=64)
    return path


def test_pth_loads_in_torchvision_and_timm(tmp_path, ours):
    export_backbone(ours, tmp_path / "out.pth")
    state = torch.load(tmp_path / "out.pth", weights_only=True)
    theirs = torchvision.models.resnet18()
    assert theirs.load_state_dict(state, strict=False).missing_keys == ["fc.weight", "fc.bias"]
    assert torch.equal(features(theirs.eval()), features(MINE))
    model = timm.create_model("resnet18", num_classes=0, checkpoint_path=str(tmp_path / "out.pth")).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES), features(MINE), atol=1e-5, rtol=1e-5)


def test_onnx_gives_the_same_features_for_any_number_of_pictures(tmp_path, ours):
    export_backbone(ours, tmp_path / "out.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "out.onnx", providers=["CPUExecutionProvider"])
    for images in (IMAGES, IMAGES[:1], IMAGES.repeat(3, 1, 1, 1)):
        (found,) = session.run(["features"], {"images": images.numpy()})
        expected = features(MINE)[torch.arange(len(images)) % 2].numpy()
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)


def test_the_card_tells_recipe_figures_and_conditions(tmp_path, ours):
    measured = {"row": "pretrained", "task": "pose", "mode": "frozen", "fraction": 0.1, "metric": "mae"}
    measured |= {"value": 5.4, "low": 5.1, "high": 5.8, "unit": "deg", "subset": "all"}
    monday = measured | {"subset": "monday", "value": 6.4}
    (tmp_path / "metrics.json").write_text(
        json.dumps({"measurements": [measured, monday], "data": {"synthetic": True}, "inputs": "0"})
    )
    command = [sys.executable, "-m", "pretrain", "export", str(ours), str(tmp_path / "out.safetensors")]
    done = subprocess.run(
        [*command, "--figures", str(tmp_path / "metrics.json")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    card = Path(done.stdout.strip()).read_text()
    assert "| architecture | resnet18 |" in card
    assert "on rendered faces" in card
    assert "| pretrained | pose | frozen | 10 % | mae (°) | 5.4 [5.1, 5.8] |" in card
    assert "6.4" not in card
    assert "Faces are biometric data" in card
    with pytest.raises(ConfigError, match="the suffix says the format"):
        export_backbone(ours, tmp_path / "out.bin")
