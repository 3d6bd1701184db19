"""`python -m melora`: the same as the command `melora`."""

import sys

from melora_cli import main

if __name__ == "__main__":
    sys.exit(main())
