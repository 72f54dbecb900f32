"""``python -m klto``."""

import sys

from klto.cli import main

sys.exit(main())
