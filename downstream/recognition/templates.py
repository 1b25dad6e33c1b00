"""IJB-B and IJB-C: the lists behind their template protocol, as insightface distributes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from configs import ConfigError


@dataclass(frozen=True)
class Templates:
    """N faces in templates, and P pairs of templates."""

    names: tuple[str, ...]
    """(N,) the picture of each face."""
    template: NDArray[np.int64]
    """(N,) its template."""
    media: NDArray[np.int64]
    """(N,) the still or video that it comes from."""
    left: NDArray[np.int64]
    """(P,) a template."""
    right: NDArray[np.int64]
    """(P,) the template it is compared with."""
    same: NDArray[np.bool_]
    """(P,) one person?"""


def read_templates(faces: Path, pairs: Path) -> Templates:
    """Read ``ijbc_face_tid_mid.txt`` (picture, template, medium) and ``ijbc_template_pair_label.txt`` (template,
    template, 1 for one person), columns by single blanks.

    Raises:
        ConfigError: a file is missing or damaged, or a pair names a template that has no face.
    """
    face = _read(faces, {"name": pa.string(), "template": pa.int64(), "media": pa.int64()})
    pair = _read(pairs, {"left": pa.int64(), "right": pa.int64(), "same": pa.int8()})
    template = face["template"].to_numpy()
    known = np.unique(template)
    left, right = pair["left"].to_numpy(), pair["right"].to_numpy()
    for side in (left, right):
        unknown = np.flatnonzero(~np.isin(side, known))
        if len(unknown):
            row = unknown[0]
            raise ConfigError(f"{pairs}, line {row + 1}: template {side[row]} has no face in {faces}")
    return Templates(
        tuple(face["name"].to_pylist()),
        template,
        face["media"].to_numpy(),
        left,
        right,
        pair["same"].to_numpy().astype(bool),
    )


def _read(path: Path, columns: dict[str, pa.DataType]) -> pa.Table:
    """IJB-C's pairs are 16 million lines: pyarrow reads them in seconds."""
    try:
        table = pyarrow.csv.read_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(column_names=list(columns)),
            parse_options=pyarrow.csv.ParseOptions(delimiter=" "),
            convert_options=pyarrow.csv.ConvertOptions(column_types=columns),
        )
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except pa.ArrowInvalid as error:
        raise ConfigError(f"{path}: expected lines of {', '.join(columns)} ({error})") from None
    if not len(table):
        raise ConfigError(f"{path}: is empty")
    return table
