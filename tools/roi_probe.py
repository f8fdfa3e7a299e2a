"""The same as `visionlab roi-probe`."""

import sys

from visionlab.cli import main

if __name__ == "__main__":
    sys.exit(main(["roi-probe", *sys.argv[1:]]))
