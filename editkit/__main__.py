import sys

from editkit.cli import main

sys.exit(main())
