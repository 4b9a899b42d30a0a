"""What tests of the command line share: a run file of a toy, ways to change it, and a way to run it."""

import pytest

from couloir.cli import main

WELL = """
seed = 3
[system]
name = "double_well"
[system.parameters]
barrier = 5.0
harmonic = 4.0
[engine]
kT = 1.0
time_step = 0.002
workers = 1
[cv.x]
type = "coordinate"
index = 0
[cv.y]
type = "coordinate"
index = 1
[paths]
from = "x < -0.8"
to = "x > 0.8"
n_chains = 2
"""


def edited(text, *changes):
    for old, new in changes:
        assert text.count(old) == 1, (old, text.count(old))
        text = text.replace(old, new)
    return text


def couloir(*arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    return stop.value.code


def start(folder, text):
    (folder / "toy.toml").write_text(text)
    return couloir("run", folder / "toy.toml")
