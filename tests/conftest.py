"""For all tests."""

from __future__ import annotations

import signal

# Whatever runs in the background of a script inherits that Ctrl-C is ignored, and so would the commands that tests
# start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
