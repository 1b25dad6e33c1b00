"""Pretraining: a ``.beton`` of faces in, ``backbone.safetensors`` out."""
