"""Training of every generative model: one loop that is seeded, resumable, and stops when held-out loss stops falling.

Step *s* draws its rows and its noise from a generator that is a function of (seed, s) alone.  A run that was killed
and continues from its checkpoint therefore takes the very steps that the uninterrupted run would have taken.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from couloir.errors import DataError, ModelError
from couloir.generative.checkpoint import load_tensors, save_tensors
from couloir.generative.denoiser import single_precision
from couloir.streams import integer_seed
from couloir.trajectory import Array

Loss = Callable[[nn.Module, tuple[Tensor, ...], torch.Generator], Tensor]
Progress = Callable[[int, float, float], None]
StopReason = Literal["steps", "patience", "time"]

_FILE = "training.safetensors"


@dataclass(frozen=True)
class TrainingPlan:
    """How long and how fast to train.

    Attributes
    ----------
    steps : gradient steps at most.
    epochs : passes over the data instead of ``steps``, or None.
    batch_size : rows per step, drawn with replacement in proportion to their weights.
    learning_rate : peak rate of AdamW; linear warm-up over ``warmup`` (a fraction of all steps), then ``decay``.
    decay : ``"cosine"`` to zero, or ``"step"``: a hundredth of the rate in the last quarter.
    weight_decay : of AdamW.
    ema_decay : decay of the moving average of the parameters, which is the model that is kept; it warms up with the step.
    ema_every : steps between updates of the average.
    clip : largest gradient norm.
    validation_fraction : share of the rows held out, in contiguous blocks because neighbouring frames resemble each other.
    held_out_rows : held-out rows that are used at most, spread over all of them.
    evaluations : how many times the held-out loss is measured over the full number of steps.
    patience : evaluations without a new best held-out loss before stopping; None never stops early.
    max_minutes : wall-clock limit, or None.
    device : ``"auto"`` (a GPU when there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"`` ...
    precision : ``"auto"`` (bfloat16 autocast and TF32 on a GPU, float32 on a CPU), ``"float32"`` (everywhere, without TF32) or
        ``"bf16"``.  Models of snippets take ``"auto"`` for ``"float32"``.
    """

    steps: int = 1200
    epochs: float | None = None
    batch_size: int = 512
    learning_rate: float = 2e-3
    warmup: float = 0.03
    weight_decay: float = 0.0
    decay: Literal["cosine", "step"] = "cosine"
    ema_decay: float = 0.998
    ema_every: int = 1
    clip: float = 1.0
    validation_fraction: float = 0.1
    held_out_rows: int = 50_000
    evaluations: int = 20
    patience: int | None = 8
    max_minutes: float | None = None
    device: str = "auto"
    precision: Literal["auto", "float32", "bf16"] = "auto"

    def __post_init__(self) -> None:
        checks = {
            "steps": self.steps >= 1, "batch_size": self.batch_size >= 1, "learning_rate": self.learning_rate > 0,
            "warmup": 0 <= self.warmup < 1, "ema_decay": 0 <= self.ema_decay < 1, "clip": self.clip > 0,
            "validation_fraction": 0 <= self.validation_fraction < 1, "evaluations": self.evaluations >= 1,
            "epochs": self.epochs is None or self.epochs > 0, "patience": self.patience is None or self.patience >= 1,
            "ema_every": self.ema_every >= 1, "held_out_rows": self.held_out_rows >= 1, "decay": self.decay in ("cosine", "step"),
            "precision": self.precision in ("auto", "float32", "bf16"),
        }  # fmt: skip
        for name, good in checks.items():
            if not good:
                raise DataError(f"TrainingPlan({name}={getattr(self, name)!r}) makes no sense", "see the docstring of TrainingPlan")

    def n_steps(self, n_rows: int) -> int:
        """Return the number of gradient steps for ``n_rows`` training rows."""
        return self.steps if self.epochs is None else max(1, math.ceil(self.epochs * n_rows / self.batch_size))

    def rate(self, step: int, total: int) -> float:
        """Return the learning rate of gradient step ``step`` (counted from 0) of ``total``."""
        warm = max(1, round(self.warmup * total))
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        if self.decay == "step":
            return self.learning_rate * (1.0 if step < 0.75 * total else 0.01)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


@dataclass(frozen=True, eq=False)
class TrainingResult:
    """What a training did.

    Attributes
    ----------
    history : (n_evaluations, 3) columns step, mean training loss since the last row, held-out loss (NaN without held-out rows).
    best_step : the step whose averaged parameters the network now holds.
    stopped_because : ``"steps"``, ``"patience"`` or ``"time"``.
    seconds : wall-clock time of the training, interruptions left out.
    """

    history: Array
    best_step: int
    stopped_because: StopReason
    seconds: float

    @property
    def held_out_loss(self) -> float:
        """Held-out loss of the parameters that were kept (the training loss when nothing was held out)."""
        row = self.history[self.history[:, 0] == self.best_step][0]
        return float(row[1] if np.isnan(row[2]) else row[2])

    def __str__(self) -> str:
        return (
            f"trained {int(self.history[-1, 0])} steps in {self.seconds:.0f} s, stopped by {self.stopped_because}; "
            f"best held-out loss {self.held_out_loss:.4g} at step {self.best_step}"
        )


def train(
    network: nn.Module,
    loss: Loss,
    data: Sequence[Tensor],
    plan: TrainingPlan | None = None,
    *,
    seed: int,
    weights: Array | None = None,
    context: Sequence[Tensor] = (),
    gap: int = 0,
    companions: int = 0,
    settings: Any = None,
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
) -> TrainingResult:
    """Train ``network`` in place; it ends up on the CPU, in eval mode, with the averaged parameters of the best evaluation.

    Parameters
    ----------
    loss : ``loss(network, rows, generator)`` returns one loss per row; all its noise comes from ``generator``.
    data : tensors (n_rows, ...) that are indexed together; ``rows`` above is one batch of each.
    weights : (n_rows,) non-negative weights of the rows, e.g. of a reweighted union; None counts every row once.
    context : tensors that every batch gets whole, after its rows, such as the frames that rows point into.
    gap : rows next to held-out ones that are not trained on, because they overlap with them.
    companions : rows drawn like those of a batch that follow them; the loss returns none for these.  Held-out rows have none.
    settings : what else a resumed training must agree on, such as the noise schedule of the loss; plain data.
    checkpoint : folder for a resumable state; a call with the same data, plan and seed continues from it.
    progress : called as ``progress(step, training_loss, held_out_loss)`` at every evaluation.

    Raises
    ------
    DataError : no rows, rows that are not finite, or weights that do not fit.
    ModelError : the loss is not finite, or the checkpoint belongs to another training.
    """
    plan = plan or TrainingPlan()
    probabilities = _checked(data, weights, plan.validation_fraction)
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if plan.device == "auto" else plan.device)
    fingerprint = _fingerprint(network, [*data, *context], probabilities, plan, seed, [settings, companions])
    parts = [d.to(device) for d in data], [c.to(device) for c in context]
    run = _Run(network.to(device), loss, parts, probabilities, (gap, companions), plan, seed, device)
    file = None if checkpoint is None else Path(checkpoint) / _FILE
    if file is not None and file.exists():
        run.restore(*load_tensors(file), fingerprint, file)
    with single_precision() if plan.precision == "float32" else _fast_products(device):
        while run.stopped_because is None:
            run.advance()
            if progress is not None:
                progress(run.step, *run.history[-1][1:])
            if file is not None:
                save_tensors(file, run.tensors(), run.note(fingerprint))
    network.load_state_dict(run.best)
    network.to("cpu").eval()
    return TrainingResult(np.array(run.history), run.best_step, run.stopped_because, run.seconds)


class _Run:
    """The state of one training between two evaluations: everything a checkpoint has to hold."""

    def __init__(
        self, network: nn.Module, loss: Loss, parts: tuple[list[Tensor], list[Tensor]], probabilities: Array,
        rows: tuple[int, int], plan: TrainingPlan, seed: int, device: torch.device,
    ) -> None:  # fmt: skip
        self.network, self.loss, self.plan, self.seed, self.device = network, loss, plan, seed, device
        (self.data, self.context), (gap, self.companions) = parts, rows
        kept, held = split_blocks(len(probabilities), plan.validation_fraction, gap=gap)
        if len(held) > plan.held_out_rows:
            held = held[np.linspace(0, len(held) - 1, plan.held_out_rows).astype(np.int64)]
        self.kept, self.held = torch.from_numpy(kept).to(device), torch.from_numpy(held).to(device)
        self.cumulative = torch.from_numpy(np.cumsum(probabilities[kept] / probabilities[kept].sum())).to(device)
        self.held_weights = torch.from_numpy(probabilities[held]).to(device, torch.float32)
        self.average = copy.deepcopy(network).eval()
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay)
        self.total = plan.n_steps(len(kept))
        self.every = max(1, self.total // plan.evaluations)
        self.step, self.best_step, self.best_loss, self.seconds = 0, 0, math.inf, 0.0
        self.best: dict[str, Tensor] = {}
        self.history: list[tuple[float, float, float]] = []
        self.stopped_because: StopReason | None = None

    def generator(self, *key: int | str) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(integer_seed(self.seed, "train", *key))

    def advance(self) -> None:
        """Train up to the next evaluation, evaluate, and decide whether to stop."""
        start = time.monotonic()
        losses = [self.gradient_step() for _ in range(min(self.every, self.total - self.step))]
        mean = float(torch.stack(losses).mean())
        held_out = self.evaluate() if len(self.held) else math.nan
        if not math.isfinite(mean) or math.isinf(held_out) or (len(self.held) > 0 and math.isnan(held_out)):
            raise ModelError(
                f"the loss is not finite (training {mean}, held-out {held_out}) near step {self.step}",
                "lower TrainingPlan.learning_rate, and look for outliers in the data",
            )
        self.history.append((float(self.step), mean, held_out))
        # Without held-out rows the latest parameters count as the best: training loss alone cannot show overfitting.
        if math.isnan(held_out) or held_out < self.best_loss:
            self.best_loss, self.best_step = held_out, self.step
            self.best = {name: value.detach().cpu().clone() for name, value in self.average.state_dict().items()}
        self.seconds += time.monotonic() - start
        self.stopped_because = self.verdict()

    def verdict(self) -> StopReason | None:
        if self.step >= self.total:
            return "steps"
        if self.plan.patience is not None and len(self.held) and self.step - self.best_step >= self.plan.patience * self.every:
            return "patience"
        if self.plan.max_minutes is not None and self.seconds >= 60 * self.plan.max_minutes:
            return "time"
        return None

    def gradient_step(self) -> Tensor:
        generator = self.generator("step", self.step)
        draws = torch.rand(self.plan.batch_size + self.companions, generator=generator, device=self.device, dtype=torch.float64)
        rows = self.kept[torch.searchsorted(self.cumulative, draws).clamp_(max=len(self.kept) - 1)]
        self.network.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.rate(self.step, self.total)
        with self.autocast():
            value = self.loss(self.network, self.batch(rows), generator).float().mean()
        self.optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), self.plan.clip)
        self.optimizer.step()
        if self.step % self.plan.ema_every == 0:
            updates = self.step // self.plan.ema_every
            decay = min(self.plan.ema_decay, (1 + updates) / (10 + updates))
            with torch.no_grad():
                now: list[Tensor] = list(self.network.parameters())
                old: list[Tensor] = list(self.average.parameters())
                torch._foreach_lerp_(old, now, 1 - decay)
        self.step += 1
        return value.detach()

    def batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        return (*(d[rows] for d in self.data), *self.context)

    @torch.no_grad()
    def evaluate(self) -> float:
        """Return the held-out loss of the averaged parameters, with the same noise at every evaluation."""
        generator = self.generator("held-out")
        total, size = 0.0, 4096 if not self.context else self.plan.batch_size
        # Few rows: average over more noise, or the comparison is about noise.  Rows that point into frames stand for many numbers.
        repeats = max(1, (200 if self.context else 2000) // len(self.held))
        for _ in range(repeats):
            for rows, share in zip(torch.split(self.held, size), torch.split(self.held_weights, size), strict=True):
                with self.autocast():
                    values = self.loss(self.average, self.batch(rows), generator).float()
                total += float((values * share).sum())
        return total / (repeats * float(self.held_weights.sum()))

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        wanted = self.plan.precision == "bf16" or (self.plan.precision == "auto" and self.device.type == "cuda")
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if wanted else contextlib.nullcontext()

    def tensors(self) -> dict[str, Tensor]:
        moments = {f"adam/{i}/{name}": value for i, state in self.optimizer.state_dict()["state"].items() for name, value in state.items()}
        parts = {"network": self.network.state_dict(), "average": self.average.state_dict(), "best": self.best}
        return moments | {f"{part}/{name}": value for part, state in parts.items() for name, value in state.items()}

    def note(self, fingerprint: str) -> dict[str, Any]:
        names = ("step", "best_step", "best_loss", "seconds", "history")
        return {"fingerprint": fingerprint, **{name: getattr(self, name) for name in names}}

    def restore(self, tensors: dict[str, Tensor], note: dict[str, Any], fingerprint: str, file: Path) -> None:
        if note.get("fingerprint") != fingerprint:
            raise ModelError(
                f"{file} belongs to a training with other data, network, plan, seed or settings",
                "name another checkpoint folder, or delete this one",
            )
        part: dict[str, dict[str, Tensor]] = {"network": {}, "average": {}, "best": {}}
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            kind, _, name = key.partition("/")
            if kind == "adam":
                index, _, name = name.partition("/")
                state.setdefault(int(index), {})[name] = value
            else:
                part[kind][name] = value
        self.network.load_state_dict(part["network"])
        self.average.load_state_dict(part["average"])
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        self.best = part["best"]
        self.step, self.best_step, self.best_loss, self.seconds = (note[k] for k in ("step", "best_step", "best_loss", "seconds"))
        self.history = [tuple(row) for row in note["history"]]
        self.stopped_because = self.verdict()


def split_blocks(n_rows: int, fraction: float, n_blocks: int = 10, gap: int = 0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return training and held-out rows: the end of each of at most ``n_blocks`` equal stretches is held out.

    Neighbouring frames of a simulation are nearly copies; rows held out at random would measure memory, not learning.
    Rows closer than ``gap`` to a held-out one are neither.  With fewer than 50 rows, or when less than half of them would
    be left, nothing is held out.
    """
    rows = np.arange(n_rows)
    if gap:  # every block costs two gaps, so take no more blocks than leave half of the rows to train on
        n_blocks = min(n_blocks, int((0.5 - fraction) * n_rows / (2 * gap)))
    if fraction == 0 or n_rows < 50 or n_blocks < 1:
        return rows, rows[:0]
    blocks = [part[len(part) - max(1, round(fraction * len(part))) :] for part in np.array_split(rows, n_blocks)]
    kept = np.ones(n_rows, dtype=bool)
    for block in blocks:
        kept[max(0, int(block[0]) - gap) : int(block[-1]) + 1 + gap] = False
    return rows[kept], np.concatenate(blocks)


def _checked(data: Sequence[Tensor], weights: Array | None, held_out: float) -> Array:
    n = len(data[0]) if data else 0
    if n == 0:
        raise DataError("there are no rows to train on")
    for tensor in data:
        if len(tensor) != n:
            raise DataError(f"data tensors have {n} and {len(tensor)} rows; they are indexed together and must agree")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            row = int((~torch.isfinite(tensor.reshape(n, -1)).all(dim=1)).nonzero()[0])
            raise DataError(f"row {row} of the training data is not finite", "remove the damaged frames, or find out why they are there")
    if weights is None:
        return np.full(n, 1.0 / n)
    values = np.asarray(weights, dtype=np.float64)
    if values.shape != (n,) or not np.isfinite(values).all() or (values < 0).any() or values.sum() <= 0:
        raise DataError(f"weights have shape {values.shape}; expected ({n},) finite, non-negative numbers that are not all zero")
    kept, held = split_blocks(n, held_out)
    if values[kept].sum() <= 0 or (len(held) and values[held].sum() <= 0):
        raise DataError("all weight sits in too few stretches of the data to train on some and check on others")
    return np.asarray(values / values.sum())


def _fingerprint(network: nn.Module, data: Sequence[Tensor], probabilities: Array, plan: TrainingPlan, seed: int, settings: Any) -> str:
    # The limits on patience and time may change on resuming: they decide when to stop, not what a step does.
    fixed = asdict(replace(plan, patience=None, max_minutes=None))
    shapes = {name: tuple(p.shape) for name, p in network.named_parameters()}
    described = [fixed, seed, shapes] if settings is None else [fixed, seed, shapes, settings]
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for tensor in data:
        digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
    digest.update(probabilities.tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def _fast_products(device: torch.device) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
