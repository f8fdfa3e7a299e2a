"""The same as `visionlab check-data`."""

import sys

from visionlab.cli import main

if __name__ == "__main__":
    sys.exit(main(["check-data", *sys.argv[1:]]))
