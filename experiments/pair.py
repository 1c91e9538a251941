"""Train a matched pair on real text and print a verdict with an interval.

    python experiments/pair.py                                   # dense against Leviathan and the control, five minutes
    python experiments/pair.py --arms dense tapered rising       # where should MLP width go?
    python experiments/pair.py --dry-run --preset 768x12         # what it would cost

The work is done by `eqx_slm.study.pair`; the command line by `eqx_slm.study.command`.
"""

import sys

from eqx_slm.study.command import main

if __name__ == "__main__":
    sys.exit(main())
