"""Threads are settled before any test imports torch, as the command line does."""

from siftune import threads

threads.settle()
