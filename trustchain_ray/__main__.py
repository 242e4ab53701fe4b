"""`python -m trustchain_ray VERB`: the same command line under `ray job submit`."""

import sys

from trustchain_ray.cli import main

if __name__ == "__main__":
    sys.exit(main())
