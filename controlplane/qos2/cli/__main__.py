"""`python -m qos2.cli`: the command `qos2` where its script is not installed."""

import sys

from qos2.cli.main import main

sys.exit(main())
