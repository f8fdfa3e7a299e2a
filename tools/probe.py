"""The same as `visionlab probe`."""

import sys

from visionlab.cli import main

if __name__ == "__main__":
    sys.exit(main(["probe", *sys.argv[1:]]))
