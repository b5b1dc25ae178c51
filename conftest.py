"""Settled before any test: threads before torch is imported, as the command line does, and interrupts."""

import signal

from siftune import threads

threads.settle()
# a shell that starts the tests in the background has them ignore interrupts, and so would what they interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)
