"""From photographs to a set of face crops; see docs/data.md."""
