"""The same as `visionlab export`."""

import sys

from visionlab.cli import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
