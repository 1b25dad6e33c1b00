"""The command ``download``: which records there are for a source, and how they are fetched."""

from __future__ import annotations

from collections import Counter

from configs import ConfigError
from data_prep.config import DataPrepConfig, flatten
from data_prep.download.engine import Downloader
from data_prep.download.flickr import PLACEHOLDER, Search
from data_prep.download.imdbface import read_records
from data_prep.sources.flickr import FlickrConfig
from data_prep.sources.imdbface import IMDbFaceConfig
from data_prep.stage import WHOLE


def download(config: DataPrepConfig, retry_failed: bool = False, part: slice = WHOLE) -> Counter[str]:
    """Fetch the pictures of ``config.source`` that are not there yet; returns how many have which status.

    Raises:
        ConfigError: the source is not one that is downloaded, or as of :class:`Search` and :class:`Downloader`.
    """
    source = config.source
    settings = flatten(source, "source", frozenset({"path"}))
    if isinstance(source, FlickrConfig):
        records = Search(source, config.download).run()
        downloader = Downloader(source.path, config.download, settings, PLACEHOLDER)
    elif isinstance(source, IMDbFaceConfig):
        records = read_records(source.path)
        downloader = Downloader(source.path, config.download, settings)
    else:
        raise ConfigError(f"source.kind={source.kind}: only flickr and imdb_face are downloaded")
    return downloader.run(records, part, retry_failed)
