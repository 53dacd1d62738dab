"""What the fake server takes long to import."""

import os
import sys
import time

READ = os.environ.get("FAKE_READ")
print("heavy is imported by", sys.argv[0], flush=True)
time.sleep(0.3)
