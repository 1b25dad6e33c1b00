"""What ``python -m data_prep download`` has put into a folder, as a source."""

from __future__ import annotations

import json
from typing import ClassVar

import pyarrow as pa

from configs import ConfigError
from data_prep.files import shard_paths
from data_prep.sources.corpus import Corpus
from data_prep.tables import read_shards

PICTURES, TABLES, PLAN = "pictures", "downloads", "download.json"
"""In the folder: pictures/NNNNN/NAME; downloads/NNNNN.parquet, a row for each record; the number of shards."""


class Downloaded(Corpus):
    """A record that was not fetched is an input too: its reason is the input's error."""

    columns: ClassVar[tuple[str, ...]] = ("image_id", "path", "error")

    def inputs(self) -> pa.Table:
        """The records in the order of the list, with the columns named in ``columns``.

        Raises:
            ConfigError: nothing was downloaded, or not all of it.
        """
        folder = self.root / TABLES
        plan = self.root / PLAN
        again = "run 'python -m data_prep download CONFIG', it goes on where it stopped"
        if not plan.exists():
            raise ConfigError(f"source.path={self.root}: nothing was downloaded to it; {again}")
        count = json.loads(plan.read_bytes())["shards"]
        missing = sum(not shard_paths(folder, number)[1].exists() for number in range(count))
        if missing:
            raise ConfigError(
                f"source.path={self.root}: {missing} of {count} shards are not downloaded; {again}"
            )
        return pa.concat_tables(read_shards(folder, count, [*self.columns]))
