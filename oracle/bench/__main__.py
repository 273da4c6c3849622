import sys

from oracle.bench import main

sys.exit(main())
