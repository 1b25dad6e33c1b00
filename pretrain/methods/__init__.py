"""The methods, one file each: a class whose ``forward(views, moment)`` is the loss (``method.py``)."""
