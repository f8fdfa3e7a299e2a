"""The same as `visionlab compare`."""

import sys

from visionlab.cli import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
