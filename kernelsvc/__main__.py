"""``python -m kernelsvc``."""

import sys

from kernelsvc.cli import main

sys.exit(main())
