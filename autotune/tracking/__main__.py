"""`python -m autotune.tracking FOLDER [--once]`: send a study's folder to MLflow; the driver starts it with its settings."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from autotune import study as studies
from autotune.errors import AutotuneError
from autotune.ledger import STUDY
from autotune.tracking import default_uri
from autotune.tracking.sender import DRIVER, EXPERIMENT, LIMITS, URI, Sender, Watch


def main() -> int:
    """Send until the driver is gone, or once; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m autotune.tracking", description=__doc__)
    parser.add_argument("folder", type=Path, help="the study's folder in the store")
    parser.add_argument("--once", action="store_true", help="send what is missing and end")
    options = parser.parse_args()
    for name, value in LIMITS.items():
        os.environ.setdefault(name, value)
    os.nice(10)  # a trial may be measuring on the same cores
    watch = Watch(int(os.environ.get(DRIVER, os.getppid())))
    watch.start()
    try:
        wanted = studies.load(options.folder / STUDY)[0].tracking
    except AutotuneError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    uri = os.environ.get(URI) or wanted.uri or default_uri(options.folder.parent)
    return Sender(options.folder, uri, os.environ.get(EXPERIMENT) or wanted.experiment, watch).run(options.once)


if __name__ == "__main__":
    sys.exit(main())
