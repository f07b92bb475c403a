import sys

from editkit.cli import main

sys.stdout.reconfigure(errors="backslashreplace")  # as of stderr: an ASCII locale knows few letters
sys.exit(main())
