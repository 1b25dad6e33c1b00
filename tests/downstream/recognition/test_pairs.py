from __future__ import annotations

import contextlib
import copyreg
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from numpy._core import multiarray, numeric

from configs import ConfigError
from downstream.recognition import pairs


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def named(found: pairs.Pairs) -> list[tuple[str, str, bool, int]]:
    columns = (found.left, found.right, found.same.tolist(), found.fold.tolist())
    return [(found.names[a], found.names[b], s, f) for a, b, s, f in zip(*columns, strict=True)]


# --- LFW -----------------------------------------------------------------------------------------------------

LFW = "2\t1\nAbel_Pacheco\t1\t4\nAbdel\t3\tZico\t2\nAkhmed\t1\t2\nA_B\t12\tC\t1\n"


def test_lfw(tmp_path: Path) -> None:
    assert named(pairs.read_lfw(write(tmp_path / "pairs.txt", LFW))) == [
        ("Abel_Pacheco/Abel_Pacheco_0001.jpg", "Abel_Pacheco/Abel_Pacheco_0004.jpg", True, 0),
        ("Abdel/Abdel_0003.jpg", "Zico/Zico_0002.jpg", False, 0),
        ("Akhmed/Akhmed_0001.jpg", "Akhmed/Akhmed_0002.jpg", True, 1),
        ("A_B/A_B_0012.jpg", "C/C_0001.jpg", False, 1),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LFW.replace("Akhmed\t1\t2\n", ""), "3 pairs, but 2 folds of twice 1"),
        (LFW.replace("Akhmed\t1\t2", "Akhmed\tx\t2"), "line 4: expected 'name i j'"),
        (LFW.replace("2\t1\n", ""), "line 1: expected the numbers of folds"),
        ("", "line 1"),
        ("0\t0\n", "names no pair"),
    ],
)
def test_lfw_damaged(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pairs.read_lfw(write(tmp_path / "pairs.txt", text))


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"pairs\.txt: cannot be read"):
        pairs.read_lfw(tmp_path / "pairs.txt")
    (tmp_path / "pairs.txt").write_bytes(b"10\t300\n\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        pairs.read_lfw(tmp_path / "pairs.txt")


# --- CFP -----------------------------------------------------------------------------------------------------


@pytest.fixture
def cfp(tmp_path: Path) -> Path:
    protocol = tmp_path / "Protocol"
    write(
        protocol / "Pair_list_F.txt",
        "1 ../Data/Images/001/frontal/01.jpg\n"
        "2 ../Data/Images/001/frontal/02.jpg\n"
        "3 ../Data/Images/002/frontal/01.jpg\n",
    )
    write(
        protocol / "Pair_list_P.txt",
        "1 ../Data/Images/001/profile/01.jpg\n2 ../Data/Images/002/profile/01.jpg\n",
    )
    for fold in ("01", "02"):
        write(protocol / "Split/FP" / fold / "same.txt", "1,1\n3,2\n")
        write(protocol / "Split/FP" / fold / "diff.txt", "2, 2\n")
        write(protocol / "Split/FF" / fold / "same.txt", "1,2\n")
        write(protocol / "Split/FF" / fold / "diff.txt", "1,3\n")
    return protocol


def test_cfp_frontal_to_profile(cfp: Path) -> None:
    found = named(pairs.read_cfp(cfp))
    assert len(found) == 6
    assert found[:3] == [
        ("Data/Images/001/frontal/01.jpg", "Data/Images/001/profile/01.jpg", True, 0),
        ("Data/Images/002/frontal/01.jpg", "Data/Images/002/profile/01.jpg", True, 0),
        ("Data/Images/001/frontal/02.jpg", "Data/Images/002/profile/01.jpg", False, 0),
    ]
    assert found[3][3] == 1


def test_cfp_frontal_to_frontal(cfp: Path) -> None:
    assert named(pairs.read_cfp(cfp, "FF"))[1] == (
        "Data/Images/001/frontal/01.jpg",
        "Data/Images/002/frontal/01.jpg",
        False,
        0,
    )


def test_cfp_damaged(cfp: Path) -> None:
    write(cfp / "Split/FP/02/diff.txt", "2,2\n2,9\n")
    with pytest.raises(ConfigError, match=r"02/diff\.txt, line 2: '2,9'"):
        pairs.read_cfp(cfp)
    shutil.rmtree(cfp / "Split/FF")
    with pytest.raises(ConfigError, match="FF: no folds"):
        pairs.read_cfp(cfp, "FF")


# --- CALFW, CPLFW ----------------------------------------------------------------------------------------------


def test_two_lines_a_pair(tmp_path: Path) -> None:
    text = "".join(f"P{k}_0001.jpg {k}\nP{k}_0002.jpg {k}\n" for k in range(1, 11))
    text += "".join(f"D{i}_0001.jpg 0\nE{i}_0001.jpg 0\n" for i in range(20))
    found = named(pairs.read_two_lines(write(tmp_path / "pairs_CALFW.txt", text)))
    assert found[2] == ("P3_0001.jpg", "P3_0002.jpg", True, 2)
    apart = [fold for _, _, same, fold in found if not same]
    assert apart == [i // 2 for i in range(20)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg 1\nb.jpg 1\nc.jpg 0\n", "one is missing"),
        ("a.jpg 1\nb.jpg 2\n", "line 2: 'b.jpg 2' belongs to 'a.jpg 1'"),
        ("a.jpg 1\nb.jpg x\n", "line 2: expected"),
        ("a.jpg 11\nb.jpg 11\n", "line 1: expected"),
    ],
)
def test_two_lines_damaged(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pairs.read_two_lines(write(tmp_path / "pairs.txt", text))


# --- AgeDB ---------------------------------------------------------------------------------------------------


def agedb(path: Path, folds: list[list[tuple[str, str]]]) -> Path:
    """As the published converters take it apart: a struct of one field a fold, in it cells of name and age."""
    splits = np.empty((len(folds), 1), object)
    for fold, listed in enumerate(folds):
        cells = np.empty((2, len(listed)), object)
        for column, pair in enumerate(listed):
            for row, name in enumerate(pair):
                cells[row, column] = {"name": name, "age": 35}
        splits[fold, 0] = {"pairs": cells}
    scipy.io.savemat(path, {"splits": splits})
    return path


def test_agedb(tmp_path: Path) -> None:
    folds = [
        [("MariaCallas_35_1_f", "MariaCallas_65_2_f"), ("AlPacino_20_1_m", "MariaCallas_50_1_f")],
        [("AlPacino_20_1_m", "AlPacino_50_3_m"), ("A_1_1_f", "B_31_1_f")],
    ]
    found = named(pairs.read_agedb(agedb(tmp_path / "04_FINAL_protocol_30_years.mat", folds)))
    assert found == [
        ("03_Protocol_Images/MariaCallas_35_1_f.jpg", "03_Protocol_Images/MariaCallas_65_2_f.jpg", True, 0),
        ("03_Protocol_Images/AlPacino_20_1_m.jpg", "03_Protocol_Images/MariaCallas_50_1_f.jpg", False, 0),
        ("03_Protocol_Images/AlPacino_20_1_m.jpg", "03_Protocol_Images/AlPacino_50_3_m.jpg", True, 1),
        ("03_Protocol_Images/A_1_1_f.jpg", "03_Protocol_Images/B_31_1_f.jpg", False, 1),
    ]


def test_agedb_damaged(tmp_path: Path) -> None:
    path = tmp_path / "protocol.mat"
    path.write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    for damaged in (b"", b"MATLAB 5.0", bytes(300)):
        path.write_bytes(damaged)
        with pytest.raises(ConfigError, match="cannot be read as AgeDB"):
            pairs.read_agedb(path)
    scipy.io.savemat(path, {"splits": np.zeros((10, 3))})
    with pytest.raises(ConfigError, match=r"splits\{1\}"):
        pairs.read_agedb(path)
    scipy.io.savemat(path, {"other": 1})
    with pytest.raises(ConfigError, match="cannot be read as AgeDB"):
        pairs.read_agedb(path)


# --- .bin ----------------------------------------------------------------------------------------------------

PICTURES = [b"\xff\xd8one", b"\xff\xd8two", b"\xff\xd8three", b"\xff\xd8four"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("form", ["bytes", "flat", "column"])
@pytest.mark.parametrize(
    "flags",
    [
        [True, False],
        np.array([True, False]),
        [np.True_, np.False_],
        [np.array(True), np.array([False])],
        np.array([[1], [0]]),
    ],
)
def test_bin_in_every_form(tmp_path: Path, protocol: int, form: str, flags: object) -> None:
    stored = [
        picture
        if form == "bytes"
        else np.frombuffer(picture, np.uint8).reshape(-1, *(1,) * (form == "column"))
        for picture in PICTURES
    ]
    path = tmp_path / "lfw.bin"
    path.write_bytes(pickle.dumps((stored, flags), protocol))
    found, files = pairs.read_bin(path)
    assert files == PICTURES
    assert found.same.tolist() == [True, False]
    assert [(found.left[i], found.right[i]) for i in range(2)] == [(0, 1), (2, 3)]
    assert found.fold.tolist() == [0, 1]


def test_bin_of_an_old_numpy_and_of_python_2(tmp_path: Path) -> None:
    stored = [np.frombuffer(picture, np.uint8) for picture in PICTURES]
    path = tmp_path / "old.bin"
    old = pickle.dumps((stored, [True, False]), 2).replace(b"numpy._core.", b"numpy.core.")
    path.write_bytes(old)
    assert pairs.read_bin(path)[1] == PICTURES
    # Python 2's strings: SHORT_BINSTRING, which Python 3 does not write
    texts = b"".join(b"U" + bytes([len(picture)]) + picture for picture in PICTURES)
    path.write_bytes(b"\x80\x02](" + texts + b"e](\x88\x89e\x86.")
    assert pairs.read_bin(path)[1] == PICTURES


def test_folds_of_a_number_that_ten_does_not_divide() -> None:
    assert np.bincount(pairs.contiguous_folds(6000)).tolist() == [600] * 10
    assert np.bincount(pairs.contiguous_folds(23)).tolist() == [3, 3, 3] + [2] * 7
    assert (np.diff(pairs.contiguous_folds(23)) >= 0).all()


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> object:
        return os.system, (f"touch '{self.target}'",)


class Sneaky:
    """Harmless itself, and the first step to anything."""

    def __reduce__(self) -> object:
        return getattr, ("text", "upper")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    target, path = tmp_path / "was here", tmp_path / "evil.bin"
    for bad in (Malicious(target), Sneaky()):
        path.write_bytes(pickle.dumps(([*PICTURES, bad], [True, False]), protocol))
        with pytest.raises(ConfigError, match=r"evil\.bin: it asks for .*, which no packed set needs"):
            pairs.read_bin(path)
    assert not target.exists()


def text(value: str) -> bytes:
    """BINUNICODE."""
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


EXTENSION = 0xF0F0F0
"""A code of copyreg's registry that nobody else has."""
SYSTEM = {
    "REDUCE of a GLOBAL": b"cos\nsystem\n%s\x85R.",
    "REDUCE of a STACK_GLOBAL": b"\x80\x04" + text("os") + text("system") + b"\x93%s\x85R.",
    "INST": b"(%sios\nsystem\n.",
    "OBJ": b"(cos\nsystem\n%so.",
    "EXT4": b"\x80\x02\x84" + EXTENSION.to_bytes(4, "little") + b"%s\x85R.",
    "BUILD of an object whose __setstate__ was set": b"\x80\x02cargparse\nNamespace\n)\x81}"
    + text("__setstate__")
    + b"cos\nsystem\nsb%sb.",
    "NEWOBJ": b"\x80\x02ccode\nInteractiveInterpreter\n)\x81cos\nsystem\n%s\x85R\x86.",
    "NEWOBJ_EX": b"\x80\x04cargparse\nNamespace\n)}\x92cos\nsystem\n%s\x85R\x86.",
    "a name with dots": b"\x80\x04" + text("pathlib") + text("os.system") + b"\x93%s\x85R.",
    "inside lists, dictionaries and tuples": b"](}N(Ncos\nsystem\n%s\x85Rtse.",
    "inside the state of an array": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR"
    b"(K\x01K\x01\x85cos\nsystem\n%s\x85RI00\nC\x01atb.",
    "among the arguments of an array": b"cnumpy.core.multiarray\n_reconstruct\n"
    b"(cos\nsystem\n%s\x85RK\x00\x85C\x01btR.",
}
"""How a pickle calls what it likes; %s is where the argument goes."""


@pytest.fixture
def extension() -> Iterator[None]:
    copyreg.add_extension("os", "system", EXTENSION)
    yield
    copyreg.remove_extension("os", "system", EXTENSION)


@pytest.mark.usefixtures("extension")
@pytest.mark.filterwarnings("ignore:numpy.core:DeprecationWarning")
@pytest.mark.parametrize("route", SYSTEM)
def test_every_way_to_run_code_is_closed(tmp_path: Path, route: str) -> None:
    target, path = tmp_path / "was here", tmp_path / "evil.bin"
    path.write_bytes(SYSTEM[route] % text(f"touch '{target}'"))
    with pytest.raises(ConfigError, match=r"evil\.bin: it asks for .*, which no packed set needs"):
        pairs.read_bin(path)
    assert not target.exists()
    # The pickle is one that works.
    with contextlib.suppress(Exception):
        pickle.loads(path.read_bytes())
    assert target.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"Pone.",
        b"\x80\x02K\x01Q.",
        b"\x80\x02\x82\x07.",  # EXT1, a code that is not registered
        b"\x80\x02cnumpy\nndarray\n)\x81}" + text("array") + b"Nsb.",  # attributes of a stand-in
        b"\x80\x02cnumpy\nndarray\n}" + text("__iter__") + b"Nsb.",  # and of its class
        b"\x80\x02c_codecs\nencode\n}" + text("__doc__") + b"Nsb.",
        b"c_codecs\nencode\n" + text("abc") + text("zlib_codec") + b"\x86R.",
        b"cnumpy\nndarray.tofile\n.",
        b"\x80\x04" + text("numpy") + text("ndarray.tofile") + b"\x93.",
        b"cnumpy.core.multiarray\nfromfile\n.",
        pickle.dumps((np.array(PICTURES, object), [True, False]), 2),
        pickle.dumps((PICTURES, np.array([True, False], object)), 4),
        pickle.dumps((np.zeros(4, [("a", object)]), [True, False]), 4),
        pickle.dumps((np.ma.masked_array(np.zeros(4, np.uint8)), [True, False]), 4),
        pickle.dumps((np.datetime64("2020-01-01"), [True]), 4),
        pickle.dumps((PICTURES, [[True], [False, True]])),
        pickle.dumps((PICTURES, ["yes", "no"])),
        pickle.dumps((PICTURES, [np.array([1, 0]), np.array(0)])),
    ],
)
def test_whatever_else_a_pickle_may_hold_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "evil.bin"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"evil\.bin: "):
        pairs.read_bin(path)


def test_a_pickle_inside_a_picture_is_bytes(tmp_path: Path) -> None:
    inner = pickle.dumps(Malicious(tmp_path / "was here"))
    (tmp_path / "lfw.bin").write_bytes(pickle.dumps(([inner, np.frombuffer(inner, np.uint8)], [True])))
    assert pairs.read_bin(tmp_path / "lfw.bin")[1] == [inner, inner]
    assert not (tmp_path / "was here").exists()


class Address:
    """numpy's own dtype would believe this state, and an array's bytes would become the address of an object."""

    def __reduce__(self) -> object:
        state = (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0)
        return np.dtype, ("V8", False, True), state


class ArrayOfAddresses:
    def __reduce__(self) -> object:
        return multiarray._reconstruct, (np.ndarray, (0,), b"b"), (1, (1,), Address(), False, b"A" * 8)


def test_bytes_of_a_pickle_never_become_addresses(tmp_path: Path) -> None:
    path = tmp_path / "evil.bin"
    path.write_bytes(pickle.dumps((PICTURES[:2], ArrayOfAddresses()), 4))
    code = "import sys; from pathlib import Path; from downstream.recognition import pairs"
    code += "; pairs.read_bin(Path(sys.argv[1]))"
    # In a process of its own: where it goes wrong, it crashes.
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "an array is of V8" in done.stderr


def test_a_pickle_cannot_change_numpys_functions(tmp_path: Path) -> None:
    path = tmp_path / "evil.bin"
    path.write_bytes(
        b"\x80\x04cnumpy._core.numeric\n_frombuffer\nN}X\x0e\x00\x00\x00__kwdefaults__}X\x01\x00\x00\x00aX\x01\x00\x00\x00bss\x86b."
    )
    with pytest.raises(ConfigError):
        pairs.read_bin(path)
    assert numeric._frombuffer.__kwdefaults__ is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps((PICTURES, [True, False]))[:-9], "is no packed verification set"),
        (b"", "is no packed verification set"),
        (b"\xff\xd8\xff\xe0 a JPEG", "is no packed verification set"),
        (pickle.dumps((PICTURES[:3], [True, False])), "3 pictures for 2 pairs"),
        (pickle.dumps(([], [])), "0 pictures for 0 pairs"),
        (pickle.dumps(([1, 2], [True])), "stored as int"),
        (pickle.dumps(([np.zeros(4, np.float32)] * 2, [True])), "an array is of f4"),
        (pickle.dumps({"a": 1}), "is no packed verification set"),
    ],
)
def test_bin_damaged(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "lfw.bin"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        pairs.read_bin(path)
