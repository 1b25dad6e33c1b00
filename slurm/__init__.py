"""Launches the stages: on a SLURM cluster or on this machine, one at a time or as a chain."""
