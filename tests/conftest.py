"""Hypothesis profiles: `dev` at the desk, `ci` where CI is set, `nightly` by --hypothesis-profile=nightly."""

import os
import signal

from hypothesis import settings
from hypothesis.database import DirectoryBasedExampleDatabase

# Every profile says derandomize and database itself: under CI, Hypothesis makes True and None the
# defaults, and a profile that leaves them out tries the same examples for ever. No deadline: no verdict hangs
# on a clock.
_FOUND = DirectoryBasedExampleDatabase(".hypothesis/examples")
settings.register_profile("dev", derandomize=False, database=_FOUND, deadline=None, max_examples=50, print_blob=True)
# The same examples for everybody: a pull request fails for what it changes. New examples are nightly's task.
settings.register_profile("ci", derandomize=True, database=None, deadline=None, max_examples=100, print_blob=True)
settings.register_profile(
    "nightly", derandomize=False, database=_FOUND, deadline=None, max_examples=2000, print_blob=True
)
settings.load_profile("ci" if os.environ.get("CI") else "dev")

# A shell that starts a job in the background has it ignore Ctrl-C, and so would whatever the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
