"""Interface samples come back from their file bit for bit, and other files are not taken for them."""

from dataclasses import fields, replace

import numpy as np
import pytest
from line_chain import LineChain, draw_samples

from couloir.analysis.interface_samples import InterfaceSamples
from couloir.errors import DataError, Finding
from couloir.streams import stream
from couloir.trajectory import Trajectory

ARRAYS = ("interfaces", "ensemble", "chain", "step", "maximum", "minimum", "length", "ends_in_b")


def full():
    """Samples with everything that samples can have; every other row repeats the path before it."""
    plain = draw_samples(LineChain(), (5, 8), 60, stream(1, "draw"), keep=0.5, n_chains=2)
    one = {v.tobytes(): v for v in plain.series["x"]}
    x = tuple(one[v.tobytes()] for v in plain.series["x"])
    shared = {id(v): Trajectory(np.stack([v, v**2], axis=1)[:, None, :] / 3, 0.5, velocities=np.ones((len(v), 1, 2))) for v in x}
    angle = {id(v): np.sin(v).astype(np.float32) for v in x}
    return replace(
        plain, unit="nm", series={"x": x, "a/b": tuple(angle[id(v)] for v in x)}, paths=tuple(shared[id(v)] for v in x),
        periods={"a/b": np.float64(2 * np.pi)}, units={"x": "nm", "a/b": "rad"}, force_evaluations=np.int64(17),
        findings=(Finding("drifting", "it moves", "sample more"), Finding("paths-cut", "some")),
        outcomes={"accepted": np.array([3, 2, 1]), "ensemble": np.array([0, 5, 2])}, exchanges={"accepted": np.array([4, 1])},
    )  # fmt: skip


def test_what_is_saved_comes_back_bit_for_bit(tmp_path):
    found = full()
    found.save(tmp_path / "interfaces.npz")
    back = InterfaceSamples.load(tmp_path / "interfaces.npz")
    plain = {field.name for field in fields(found)} - {*ARRAYS, "series", "paths", "outcomes", "exchanges"}
    assert {name: getattr(back, name) for name in plain} == {name: getattr(found, name) for name in plain}
    for name in ARRAYS:
        assert getattr(back, name).tolist() == getattr(found, name).tolist()
    for name in ("outcomes", "exchanges"):
        assert {k: v.tolist() for k, v in getattr(back, name).items()} == {k: v.tolist() for k, v in getattr(found, name).items()}
    assert list(back.series) == ["x", "a/b"]
    for name, series in found.series.items():
        assert all(a.dtype == b.dtype and (a == b).all() for a, b in zip(series, back.series[name], strict=True))
    for a, b in zip(found.paths, back.paths, strict=True):
        assert (a.positions == b.positions).all()
        assert (a.velocities == b.velocities).all()
        assert a.stride == b.stride
    assert str(back) == str(found)
    assert str(back.rate) == str(found.rate)
    assert [p.name for p in tmp_path.iterdir()] == ["interfaces.npz"]


def test_a_path_that_was_kept_for_several_steps_is_one_object_again(tmp_path):
    found = full()
    found.save(tmp_path / "interfaces.npz")
    back = InterfaceSamples.load(tmp_path / "interfaces.npz")
    number = {id(path): k for k, path in enumerate(dict.fromkeys(found.paths))}
    again = {id(path): k for k, path in enumerate(dict.fromkeys(back.paths))}
    assert len(number) < len(found)
    assert [again[id(path)] for path in back.paths] == [number[id(path)] for path in found.paths]


def test_samples_without_series_and_paths_are_saved_too(tmp_path):
    found = replace(full(), series={}, paths=(), periods={}, units={}, outcomes={}, exchanges={})
    found.save(tmp_path / "interfaces.npz")
    back = InterfaceSamples.load(tmp_path / "interfaces.npz")
    assert (back.series, back.paths, back.outcomes) == ({}, (), {})
    assert back.length.tolist() == found.length.tolist()


def test_other_and_damaged_files_are_refused(tmp_path):
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    (tmp_path / "text.npz").write_text("paths")
    full().save(tmp_path / "whole.npz")
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    middle = len(whole) // 2
    (tmp_path / "spoilt.npz").write_bytes(whole[:middle] + bytes(200) + whole[middle + 200 :])
    for name in ("other.npz", "text.npz", "missing.npz", "half.npz", "spoilt.npz"):
        with pytest.raises(DataError, match="does not hold saved interface samples"):
            InterfaceSamples.load(tmp_path / name)
    with np.load(tmp_path / "whole.npz") as data:
        arrays = dict(data)
    np.savez(tmp_path / "newer.npz", **arrays | {"meta": np.array('{"format": "couloir-interfaces-9"}')})
    with pytest.raises(DataError, match="holds 'couloir-interfaces-9'"):
        InterfaceSamples.load(tmp_path / "newer.npz")
