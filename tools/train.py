"""The same as `visionlab train`."""

import sys

from visionlab.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
