"""``python -m twinpass``."""

import sys

from twinpass.cli.main import main

sys.exit(main())
