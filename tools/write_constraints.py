"""Pin everything that is installed: ``python tools/write_constraints.py > constraints.txt``.

Run it in an environment in which all tests pass.  What is written is the closure of Couloir with all its extras and of
the build backend, without local version labels (``+cpu``): which build of a version fits a machine is pip's business.
"""

from __future__ import annotations

from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HEADER = """\
# Every dependency, direct or not, at the version the tests were last run with.  Use: pip install -c constraints.txt -e ".[dev]"
# Written by tools/write_constraints.py.
"""


def closure(roots: list[str]) -> dict[str, str]:
    """Return name and version of everything that the requirements need in this environment, themselves included."""
    pins: dict[str, str] = {}
    seen: set[str] = set()
    waiting = [Requirement(text) for text in roots]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        pins[name] = metadata.version(name).partition("+")[0]
        for extra in ("", *requirement.extras):
            if f"{name}[{extra}]" in seen:
                continue
            seen.add(f"{name}[{extra}]")
            for text in metadata.requires(name) or []:
                needed = Requirement(text)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    waiting.append(needed)
    return pins


def main() -> None:
    """Print the constraints."""
    pins = closure(["couloir[dev,docs,tutorials]", "hatchling"])
    del pins["couloir"]
    print(HEADER, end="")
    for name in sorted(pins):
        print(f"{name}=={pins[name]}")


if __name__ == "__main__":
    main()
