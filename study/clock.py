"""`python study/clock.py sweep ...`: the command line of spikeprune, whose records then hold CPU seconds.

On a shared machine seconds by the wall say how busy others are. A run of one thread on a CPU takes as many CPU seconds
as it would take by the wall if it were alone.
"""

import sys
import time

from spikeprune.cli.main import main

time.perf_counter = time.process_time

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
