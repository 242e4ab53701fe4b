"""``python -m ledger verify|export|serve|witness``."""

import sys

from ledger.cli import main

sys.exit(main(sys.argv[1:]))
