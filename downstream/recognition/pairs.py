"""Verification sets: which pictures are compared, which of them show one person, and in which fold.

Readers of the published layouts. Each gives names of pictures as they stand in its lists; where the pictures are is
another matter: in a .beton made of the set's folder, or, for a ``.bin``, inside the file itself.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import numpy as np
import scipy.io
from numpy.typing import NDArray

from configs import ConfigError

FOLDS = 10
Pair = tuple[str, str, bool, int]
"""Left picture, right picture, one person?, fold."""


@dataclass(frozen=True)
class Pairs:
    """P pairs of N pictures."""

    names: tuple[str, ...]
    """(N,) of the pictures, each once."""
    left: NDArray[np.int64]
    """(P,) index into ``names``."""
    right: NDArray[np.int64]
    """(P,) index into ``names``."""
    same: NDArray[np.bool_]
    """(P,) one person?"""
    fold: NDArray[np.int64]
    """(P,) from 0."""

    def __len__(self) -> int:
        return len(self.same)


def gather(pairs: Iterator[Pair] | list[Pair], path: Path) -> Pairs:
    """Number the pictures of ``pairs`` in the order in which they come up; ``path`` is named if there is none."""
    listed = list(pairs)
    if not listed:
        raise ConfigError(f"{path}: it names no pair")
    numbers: dict[str, int] = {}
    left = [numbers.setdefault(pair[0], len(numbers)) for pair in listed]
    right = [numbers.setdefault(pair[1], len(numbers)) for pair in listed]
    return Pairs(
        tuple(numbers),
        np.array(left, np.int64),
        np.array(right, np.int64),
        np.array([pair[2] for pair in listed], bool),
        np.array([pair[3] for pair in listed], np.int64),
    )


# --- lists ---------------------------------------------------------------------------------------------------


def read_lfw(path: Path) -> Pairs:
    """LFW's ``pairs.txt``: a line ``10 <tab> 300``, then for each fold 300 lines ``name i j`` (one person) and 300
    ``name1 i name2 j``. A picture is ``name/name_0001.jpg``.

    Raises:
        ConfigError: with file and line, where it is none or not as long as it says.
    """
    lines = _lines(path)
    header = lines[0].split() if lines else []
    if len(header) != 2 or not all(word.isdigit() for word in header):
        raise ConfigError(f"{path}, line 1: expected the numbers of folds and of pairs, for example '10 300'")
    folds, each = map(int, header)
    if len(lines) - 1 != 2 * folds * each:
        raise ConfigError(
            f"{path}: {len(lines) - 1} pairs, but {folds} folds of twice {each} are announced; is it whole?"
        )
    return gather(
        [_lfw_pair(path, n, line, (n - 2) // (2 * each)) for n, line in enumerate(lines[1:], 2)], path
    )


def _lfw_pair(path: Path, number: int, line: str, fold: int) -> Pair:
    words = line.split()
    if len(words) == 3:
        words = [words[0], words[1], words[0], words[2]]
        same = True
    else:
        same = False
    if len(words) != 4 or not (words[1].isdigit() and words[3].isdigit()):
        raise ConfigError(f"{path}, line {number}: expected 'name i j' or 'name1 i name2 j', found '{line}'")
    (a, i, b, j) = words
    return f"{a}/{a}_{int(i):04d}.jpg", f"{b}/{b}_{int(j):04d}.jpg", same, fold


def read_cfp(path: Path, protocol: str = "FP") -> Pairs:
    """CFP's folder ``Protocol``: ``Pair_list_F.txt`` and ``Pair_list_P.txt`` number the frontal and the profile
    pictures (``1 ../Data/Images/001/frontal/01.jpg``), ``Split/FP/01/same.txt`` and ``diff.txt`` hold pairs
    ``i,j``: i of the frontal list, j of the profile list (of the frontal one under ``Split/FF``). A picture is
    named from the dataset's folder: ``Data/Images/001/frontal/01.jpg``.
    """
    frontal = _cfp_list(path / "Pair_list_F.txt")
    other = _cfp_list(path / "Pair_list_P.txt") if protocol == "FP" else frontal
    folders = sorted(folder for folder in (path / "Split" / protocol).glob("[0-9]*") if folder.is_dir())
    if not folders:
        raise ConfigError(f"{path / 'Split' / protocol}: no folds 01, 02, ...; give CFP's folder 'Protocol'")
    pairs = [
        pair
        for fold, folder in enumerate(folders)
        for name, same in (("same.txt", True), ("diff.txt", False))
        for pair in _cfp_pairs(folder / name, frontal, other, same, fold)
    ]
    return gather(pairs, path)


def _cfp_list(path: Path) -> dict[str, str]:
    pictures = {}
    for number, line in enumerate(_lines(path), 1):
        words = line.split()
        if len(words) != 2 or not words[0].isdigit():
            raise ConfigError(f"{path}, line {number}: expected 'number path', found '{line}'")
        pictures[words[0].lstrip("0")] = re.sub(r"^(\.\./)+", "", words[1])
    return pictures


def _cfp_pairs(
    path: Path, frontal: dict[str, str], other: dict[str, str], same: bool, fold: int
) -> Iterator[Pair]:
    for number, line in enumerate(_lines(path), 1):
        words = [word.strip().lstrip("0") for word in line.split(",")]
        if len(words) != 2 or words[0] not in frontal or words[1] not in other:
            raise ConfigError(f"{path}, line {number}: '{line}' names no pair of the two lists")
        yield frontal[words[0]], other[words[1]], same, fold


def read_two_lines(path: Path) -> Pairs:
    """CALFW's and CPLFW's ``pairs_CALFW.txt``: two lines a pair, ``Name_0001.jpg k``; k is 0 for different people
    and the fold, from 1, for one person. The file does not say to which fold a pair of different people belongs:
    they are dealt out in their order, a tenth to each.
    """
    lines = _lines(path)
    if len(lines) % 2:
        raise ConfigError(f"{path}: {len(lines)} lines; a pair has two, so one is missing")
    entries = [_entry(path, number, line) for number, line in enumerate(lines, 1)]
    pairs = []
    apart = sum(k == 0 for _, k in entries) // 2
    seen = 0
    for number in range(0, len(entries), 2):
        (left, k), (right, again) = entries[number : number + 2]
        if k != again:
            raise ConfigError(
                f"{path}, line {number + 2}: '{right} {again}' belongs to '{left} {k}' before it"
            )
        fold = k - 1 if k else seen * FOLDS // apart
        seen += not k
        pairs.append((left, right, k > 0, fold))
    return gather(pairs, path)


def _entry(path: Path, number: int, line: str) -> tuple[str, int]:
    name, _, k = line.rpartition(" ")
    if not name or not k.isdigit() or int(k) > FOLDS:
        raise ConfigError(f"{path}, line {number}: expected 'name.jpg k' with k from 0 to 10, found '{line}'")
    return name.strip(), int(k)


def read_agedb(path: Path) -> Pairs:
    """AgeDB-30's ``04_FINAL_protocol_30_years.mat``: ``splits`` holds for each fold a 2 x P cell array, a column a
    pair, each entry with the picture's name, without suffix, and the age. The first word of a name up to "_" is
    the person; a picture is ``03_Protocol_Images/name.jpg``.
    """
    try:
        splits = scipy.io.loadmat(path)["splits"]
    except Exception as error:  # whatever a damaged file makes the reader run into
        raise ConfigError(f"{path}: cannot be read as AgeDB's protocol ({error})") from None
    pairs = []
    for fold in range(len(splits)):
        cells = _unwrap(splits[fold], path, fold)
        for left, right in zip(cells[0], cells[1], strict=True):
            a, b = _agedb_name(left, path, fold), _agedb_name(right, path, fold)
            same = a.partition("_")[0] == b.partition("_")[0]
            pairs.append((f"03_Protocol_Images/{a}.jpg", f"03_Protocol_Images/{b}.jpg", same, fold))
    return gather(pairs, path)


def _unwrap(value: Any, path: Path, fold: int) -> Any:
    """The 2 x P array inside MATLAB's wrappings of one element each, of which there may be any number."""
    while isinstance(value, np.void) or (isinstance(value, np.ndarray) and value.size == 1):
        value = value[0] if isinstance(value, np.void) else value.reshape(-1)[0]
    if not isinstance(value, np.ndarray) or value.ndim != 2 or len(value) != 2:
        raise ConfigError(f"{path}: splits{{{fold + 1}}} is no cell array of two rows")
    return value


def _agedb_name(value: Any, path: Path, fold: int) -> str:
    """The text in one entry, which comes first in it."""
    while not isinstance(value, str):
        if not isinstance(value, (np.ndarray, np.void)) or (isinstance(value, np.ndarray) and not value.size):
            raise ConfigError(
                f"{path}: an entry of splits{{{fold + 1}}} does not begin with a picture's name"
            )
        value = value[0] if isinstance(value, np.void) else value.reshape(-1)[0]
    return value


def _lines(path: Path) -> list[str]:
    """The lines that are not empty."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is no text in UTF-8 ({error.reason} at byte {error.start})") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


# --- .bin ----------------------------------------------------------------------------------------------------


def read_bin(path: Path) -> tuple[Pairs, list[bytes]]:
    """Insightface's packed sets (``lfw.bin``, ``cfp_fp.bin``, ``agedb_30.bin``, ...): a pickle of 2P encoded
    pictures and P booleans; pictures 2i and 2i+1 are pair i; folds are contiguous.

    The pictures are aligned already, 112 x 112. A pickle can run code when it is read; here nothing but texts,
    numbers, lists and numpy's arrays of them can come out of it.

    Returns:
        The pairs, and (2P,) picture files.

    Raises:
        ConfigError: damaged, of another form, or with anything else inside.
    """
    try:
        with open(path, "rb") as file:
            content = _Restricted(file, encoding="bytes").load()
        pictures, same = content
        files = [_encoded(picture) for picture in pictures]
        labels = np.array([_flag(label) for label in same])
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except Exception as error:  # whatever a damaged pickle makes the reader run into
        raise ConfigError(
            f"{path}: is no packed verification set ({type(error).__name__}: {error})"
        ) from None
    if len(files) != 2 * len(labels) or not files:
        raise ConfigError(f"{path}: {len(files)} pictures for {len(labels)} pairs; is it whole?")
    count = len(labels)
    names = tuple(f"{number:06d}" for number in range(2 * count))
    left = np.arange(0, 2 * count, 2)
    return Pairs(names, left, left + 1, labels, contiguous_folds(count)), files


def contiguous_folds(count: int) -> NDArray[np.int64]:
    """(count,) the fold of each pair when they are cut into ten runs, the first ``count % 10`` longer by one."""
    parts = np.array_split(np.arange(count), min(FOLDS, count))
    return np.repeat(np.arange(len(parts)), [len(part) for part in parts])


def _encoded(picture: Any) -> bytes:
    if isinstance(picture, _Array) and picture.array.dtype == np.uint8:
        return picture.array.tobytes()
    if isinstance(picture, bytes):
        return picture
    raise ConfigError(f"a picture is stored as {type(picture).__name__}; expected bytes or a uint8 array")


def _flag(label: Any) -> bool:
    """A label alone, or an array of one, which as an object would be true whatever it holds."""
    value = np.asarray(label.array if isinstance(label, _Array) else label)
    if value.size != 1 or value.dtype.kind not in "biu":
        raise ConfigError(
            f"whether a pair is one person is stored as {type(label).__name__}; expected a boolean"
        )
    return bool(value.item())


class _Dtype:
    """Stands for ``numpy.dtype``: numbers only, and nothing else of what a dtype's state can ask for.

    numpy's own believes it: with a state of its making an array's bytes become addresses.
    """

    def __init__(self, name: Any, *_: Any) -> None:
        text = name.decode() if isinstance(name, bytes) else name
        if text not in ("u1", "b1", "i1", "i4", "i8"):
            _refuse(f"an array is of {text}; expected whole numbers or booleans")
        self.dtype = np.dtype(text)

    def __setstate__(self, state: Any) -> None:
        if state[1] in (">", b">"):
            _refuse("an array has the other byte order")


class _Array:
    """Stands for ``numpy.ndarray``: made from bytes that the file holds."""

    def __init__(self, *_: Any) -> None:
        self.array = np.zeros(0, np.uint8)

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, raw = state
        self.array = np.frombuffer(raw, kind.dtype).reshape(shape, order="F" if fortran else "C")

    def __iter__(self) -> Iterator[Any]:
        return iter(self.array)


class _FromBuffer:
    """Stands for what protocol 5 makes an array with. A class: a pickle could set attributes of a function."""

    def __new__(cls, raw: Any, kind: _Dtype, shape: Any, order: Any, *_: Any) -> Any:
        made = _Array()
        made.__setstate__((1, shape, kind, order == "F", raw))
        return made

    def __setstate__(self, state: Any) -> None: ...


class _Scalar:
    """Stands for what one number is made with."""

    def __new__(cls, kind: _Dtype, raw: bytes) -> Any:
        return np.frombuffer(raw, kind.dtype, 1)[0]

    def __setstate__(self, state: Any) -> None: ...


class _Latin1:
    """Stands for ``codecs.encode``, with which old protocols spell bytes."""

    def __new__(cls, text: str, encoding: Any) -> Any:
        if encoding not in ("latin1", b"latin1"):
            _refuse(f"it asks for the encoding {encoding!r}; bytes are spelt in latin1")
        return text.encode("latin1")

    def __setstate__(self, state: Any) -> None: ...


class _Restricted(pickle.Unpickler):
    """Gives what numpy's pickles ask for as stand-ins of ours, and refuses to look up anything else."""

    _stand_ins: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
        ("_codecs", "encode"): _Latin1,
    } | {
        (f"numpy.{core}.{place}", name): stand_in
        for core in ("core", "_core")
        for place, name, stand_in in (
            ("multiarray", "_reconstruct", _Array),
            ("multiarray", "scalar", _Scalar),
            ("numeric", "_frombuffer", _FromBuffer),
        )
    }

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in."""
        if (module, name) not in self._stand_ins:
            _refuse(
                f"it asks for {module}.{name}, which no packed set needs; it may run code, and was not read on"
            )
        return self._stand_ins[module, name]


def _refuse(message: str) -> NoReturn:
    raise ConfigError(message)
