import sys

from shoal.commands.cli import main

sys.exit(main())
