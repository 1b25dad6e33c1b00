"""How pictures are fetched; what is fetched is said by the source."""

from __future__ import annotations

from pydantic import Field, IPvAnyNetwork

from configs import Config


class DownloadConfig(Config):
    """The stage download: politeness, limits, safety."""

    contact: str = Field("", pattern=r"^[\x20-\x7e]*$")
    """Your mail or web address; it goes into the User-Agent, so that a host can complain to you."""
    rate: float = Field(5.0, gt=0)
    """Requests a second to each host, of this process."""
    search_rate: float = Field(0.9, gt=0)
    """Searches a second; Flickr grants 3600 an hour to a key."""
    connections: int = Field(8, ge=1)
    """Pictures under way at once."""
    deadline: float = Field(60.0, gt=0)
    """Seconds that one try may take with its redirects, from the connection to the last byte."""
    max_bytes: int = Field(32 << 20, ge=1)
    """A larger answer is refused."""
    tries: int = Field(4, ge=1)
    """How often a picture is asked for while its failure is a passing one."""
    backoff: float = Field(1.0, ge=0)
    """Seconds before the second try; doubled for each further one, and up to half as long again by chance."""
    longest_wait: float = Field(300.0, ge=0)
    """A host may ask for so many seconds of silence; one that asks for more stops the command."""
    give_up_after: int = Field(50, ge=1)
    """So many passing failures in a row stop the command: the network is away."""
    allow_private: tuple[IPvAnyNetwork, ...] = ()
    """Networks that may be connected to though not public, such as [10.1.2.0/24] with a mirror in it."""
    shard_size: int = Field(1000, ge=1)
    """Pictures a shard and a folder."""
