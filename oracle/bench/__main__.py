import sys

from oracle.bench import main
from oracle.exits import supervised

sys.exit(supervised(main))
