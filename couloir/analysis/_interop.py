"""What the views in xarray share."""

from __future__ import annotations

from typing import Any

from couloir.errors import ConfigError


def xarray() -> Any:
    """Return the xarray package; raises ConfigError when it is not installed."""
    try:
        import xarray as package
    except ImportError as error:
        raise ConfigError("to_xarray needs xarray, which is not installed", 'pip install "couloir[interop]"') from error
    return package


def quantity(dims: Any, data: Any, unit: str = "", period: float | None = None) -> tuple[Any, Any, dict[str, Any]]:
    """Return a variable with its unit and period as attributes, as far as it has them (netCDF has no None)."""
    return dims, data, {k: v for k, v in (("units", unit), ("period", period)) if v}
