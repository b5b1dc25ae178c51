"""$hook $name keeps the rules of its hook."""

from siftune.testing import conforms


def test_it_conforms():
    conforms("$hook", "$name")
