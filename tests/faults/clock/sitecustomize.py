"""Makes the wall clock of a driver and its workers jump: `time.time` is off by the seconds that a file says now."""

import os
import time

_real = time.time


def _jumped():
    try:
        with open(os.environ["CLOCK_OFFSET_FILE"]) as stream:  # noqa: PTH123 - imported by every interpreter, must be cheap
            return _real() + float(stream.read())
    except (KeyError, OSError, ValueError):
        return _real()


time.time = _jumped
