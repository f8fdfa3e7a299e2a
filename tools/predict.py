"""The same as `visionlab predict`."""

import sys

from visionlab.cli import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
