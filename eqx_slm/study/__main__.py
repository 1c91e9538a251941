"""`python -m eqx_slm.study`."""

import sys

from .finished import main

if __name__ == "__main__":
    sys.exit(main())
