"""`python -m spikeprune` runs the command `spikeprune`. torchrun starts this module."""

import sys

from spikeprune.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
