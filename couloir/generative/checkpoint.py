"""Model files: tensors as safetensors, everything else as JSON, every write atomic, nothing pickled.

A file is written beside its target, flushed to disk and renamed over it, so a reader (or a process that was killed and
started again) sees the old file or the new one, never half of one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize

from couloir.errors import ModelError

_NOTE = "couloir"  # key of the safetensors header under which our JSON travels with the tensors


def write_atomic(file: Path, content: bytes) -> None:
    """Replace ``file`` by ``content`` in one step that survives a kill at any instant."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    with open(beside, "wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(beside, file)


def save_tensors(file: Path, tensors: Mapping[str, torch.Tensor], note: Mapping[str, Any]) -> str:
    """Write tensors and a JSON note into one safetensors file; returns the SHA-256 of what was written."""
    plain = {name: value.detach().to("cpu").contiguous().clone() for name, value in tensors.items()}
    content = serialize(plain, metadata={_NOTE: json.dumps(note)})
    write_atomic(file, content)
    return hashlib.sha256(content).hexdigest()


def load_tensors(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what :func:`save_tensors` wrote.

    Raises
    ------
    ModelError : the file is missing, damaged or of another origin.
    """
    try:
        with safe_open(str(file), framework="pt", device="cpu") as data:
            note = json.loads((data.metadata() or {})[_NOTE])
            return {name: data.get_tensor(name) for name in data.keys()}, note  # noqa: SIM118  (not a dict)
    except FileNotFoundError as error:
        raise ModelError(f"no such file: {file}") from error
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ModelError(f"{file} does not hold tensors saved by couloir: {error}", "restore the file, or train again") from error


def save_model(folder: str | Path, kind: str, version: int, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Write ``weights.safetensors`` and its ``model.json`` sidecar into ``folder``.

    Parameters
    ----------
    kind, version : name of the model class and number of its file format, checked by :func:`load_model`.
    config : plain data from which the class rebuilds itself.
    """
    folder = Path(folder)
    digest = save_tensors(folder / "weights.safetensors", tensors, {"kind": kind})
    sidecar = {"kind": kind, "version": version, "sha256": digest, "config": config}
    write_atomic(folder / "model.json", json.dumps(sidecar, indent=1).encode())


def load_model(folder: str | Path, kind: str, version: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Read a model folder; returns its configuration and tensors.

    Raises
    ------
    ModelError : the folder holds no model, another kind of model, a newer format, or weights of another save.
    """
    folder = Path(folder)
    try:
        sidecar = json.loads((folder / "model.json").read_text())
        found, number, digest, config = (sidecar[key] for key in ("kind", "version", "sha256", "config"))
    except FileNotFoundError as error:
        raise ModelError(f"{folder} holds no saved model: there is no model.json in it") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / 'model.json'} is damaged: {error}", "save the model again") from error
    if found != kind:
        raise ModelError(f"{folder} holds a {found}, not a {kind}", f"load it with {found}.load")
    if number != version:
        raise ModelError(f"{folder} has format version {number}; this couloir reads version {version}", "use the couloir that saved it")
    weights = folder / "weights.safetensors"
    tensors, _ = load_tensors(weights)
    if hashlib.sha256(weights.read_bytes()).hexdigest() != digest:
        raise ModelError(f"{weights} does not belong to the model.json beside it", "save the model again")
    return config, tensors
