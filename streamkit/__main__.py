"""`python -m streamkit` is the command line.

>>> from streamkit.cli import main
"""

import sys

from streamkit.cli import main

if __name__ == "__main__":
    sys.exit(main())
