"""`python -m spikeprune` is `spikeprune`; what torchrun starts."""

import sys

from spikeprune.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
