"""Fills the folder of a source from the network; see docs/download.md. Not imported by anything else."""
