"""The same as `visionlab evaluate`."""

import sys

from visionlab.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
