"""`python -m batchfree.cli`."""

import sys

from batchfree.cli import main

sys.exit(main())
