"""Units are converted once, at the edge, and never guessed; errors say what to do."""

from __future__ import annotations

import math
import pickle
from typing import Any

import openmm.unit as u
import pytest

from couloir.errors import ConfigError, CouloirError, Finding, UnitError, nearest
from couloir.units import GAS_CONSTANT, convert, kt, parse_unit


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (2.5, "ps", 2.5),
        ("2.5", "ps", 2.5),
        ("20 ns", "ps", 20_000.0),
        ("2fs", "ps", 0.002),
        ("1e-3 us", "ps", 1000.0),
        ("-.5 deg", "rad", -0.5 * math.pi / 180),
        ("3 Å", "nm", 0.3),
        ("1 kcal/mol", "kJ/mol", 4.184),
        ("1 kcal/mol/A^2", "kJ/mol/nm^2", 418.4),
        ("1 kcal/mol/A**2", "kJ/mol/nm^2", 418.4),
        ("100 kJ/mol/rad^2", "kJ/mol/rad^2", 100.0),
        ("1 kJ/mol/deg^2", "kJ/mol/rad^2", (180 / math.pi) ** 2),
        ("5 /ps", "1/ps", 5.0),
        ("1/ns", "1/ps", 1e-3),
        ("91 1/ps", "1/ps", 91.0),
        ("0.25 kT", "kT", 0.25),
        ("7", "", 7.0),
        (300 * u.kelvin, "K", 300.0),
        (20 * u.nanosecond, "ps", 20_000.0),
        (1 / u.picosecond, "1/ps", 1.0),
        (1.0 * u.kilocalorie_per_mole / u.angstrom**2, "kJ/mol/nm^2", 418.4),
        (90 * u.degree, "deg", 90.0),
    ],
)
def test_numbers_text_and_quantities_mean_the_same(value: Any, unit: str, expected: float) -> None:
    assert convert(value, unit) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("value", "unit", "message"),
    [
        ("20 kK", "K", "unknown unit 'kK'"),
        ("20 pss", "ps", "did you mean 'ps'"),
        ("20 nm", "ps", "does not fit"),
        ("1 kJ/mol", "kJ/mol/nm^2", "does not fit"),
        (20 * u.nanometer, "ps", "does not fit"),
        ("twenty", "ps", "not a number with a unit"),
        ("1 kJ//mol", "kJ/mol", "cannot read the unit"),
        ("1 kJ/", "kJ", "cannot read the unit"),
        ("1 µ2", "nm", "unknown unit"),
        (float("nan"), "ps", "not finite"),
        (float("inf"), "K", "not finite"),
        (None, "K", "is not a number"),
        ([1.0, 2.0], "K", "is not a number"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(value: Any, unit: str, message: str) -> None:
    with pytest.raises(UnitError, match=message):
        convert(value, unit, "duration")


def test_thermal_energy_is_that_of_the_gas_constant() -> None:
    assert kt(300.0) == pytest.approx(2.4943387854, rel=1e-9)
    assert pytest.approx((u.MOLAR_GAS_CONSTANT_R * u.kelvin).value_in_unit(u.kilojoule_per_mole), rel=1e-6) == GAS_CONSTANT


def test_a_unit_divided_by_itself_has_no_dimension() -> None:
    assert parse_unit("nm/nm") == ((), 1.0)


def test_errors_carry_the_fix_and_survive_pickling() -> None:
    error = ConfigError("system.name is unknown", "use one of ...")
    error.partial = 3  # type: ignore[attr-defined]
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == "system.name is unknown\n  -> use one of ..."
    assert (type(copy), copy.fix, copy.partial) == (ConfigError, "use one of ...", 3)
    assert isinstance(copy, CouloirError)


def test_a_finding_reads_as_code_message_and_fix() -> None:
    assert str(Finding("low-overlap", "windows 3 and 4", "add one")) == "[low-overlap] windows 3 and 4 -> add one"
    assert str(Finding("low-overlap", "windows 3 and 4")) == "[low-overlap] windows 3 and 4"


def test_nearest_suggests_a_close_name_and_lists_the_choices_otherwise() -> None:
    assert nearest("sovlent", ["solvent", "name"]) == "; did you mean 'solvent'?"
    assert nearest("zzz", ["solvent", "name"]) == "; choices are name, solvent"
    assert nearest("zzz", []) == ""
