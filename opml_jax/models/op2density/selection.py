"""What validation chooses of the kernels: their length, and the penalty of their weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from ...errors import ConvergenceError
from ...learn.run import Run
from ..base import Params
from .closed_form import held_out_problem, problem_of
from .config import Op2DensityFit
from .functions import Op2Density
from .labels import Labelled
from .problem import Problem, Solution, Weights, conjugate_gradients

LENGTHS = (3.0, 10.0, 30.0)
"""Candidates for the length, in units of the spread of an element's scalars."""

PENALTIES = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10)
"""Candidates for the penalty, each beginning with the weights of the one before."""

COARSE = 1e-4
"""Tolerance of the conjugate gradients while lengths and penalties are compared."""

PATIENCE = 2
"""After so many penalties in a row that are worse than the best, smaller ones are not tried."""

PRECISION = 0.02
"""Of penalties whose errors differ by less than this part, the strongest is taken."""

CHOICE, KERNELS = "choice", "chosen_kernels"
"""Names of the states that keep what was chosen, and its weights."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """Kernels of one length with the best penalty.

    Attributes:
      definition: with the length.
      problem: the loss, with the penalty.
      bases: of :func:`~.closed_form.problem_of`.
      judge: error of weights on the validation set, in the metric's norm.
      solution: of the problem.
      error: of that solution.
    """

    definition: Op2Density
    problem: Problem
    bases: dict[str, Params]
    judge: Callable[[Weights], float]
    solution: Solution
    error: float

    @property
    def facts(self) -> dict[str, Any]:
        """What the card says."""
        return {
            "length": self.definition.config.length,
            "penalty": float(self.problem.penalty),
            "cg_steps": self.solution.steps,
            "cg_residual": self.solution.residual,
        }


def lengths_of(definition: Op2Density) -> tuple[float | None, ...]:
    """Candidates for the length; a polynomial kernel has none."""
    config = definition.config
    open_length = config.length is None and config.kernel == "gaussian"
    return LENGTHS if open_length else (config.length,)


def is_set(definition: Op2Density, settings: Op2DensityFit) -> bool:
    """Whether length and penalty are given, so that validation has nothing to choose."""
    return settings.penalty is not None and len(lengths_of(definition)) == 1


def with_length(definition: Op2Density, length: float | None) -> Op2Density:
    """The functions with kernels of this length."""
    config = dataclasses.replace(definition.config, length=length)
    return dataclasses.replace(definition, config=config)


Chosen = tuple[Op2Density, Problem, dict[str, Params], Weights, dict[str, Any]]
"""Functions, loss, what is beside it, weights, and what the card says."""


def chosen_kernels(
    definition: Op2Density,
    settings: Op2DensityFit,
    labelled: Mapping[str, Labelled],
    atoms: dict[int, np.ndarray] | None,
    run: Run,
) -> Chosen:
    """Weights with the length and the penalty that have the least error on the validation set.

    All are compared at a coarse tolerance. The best is then solved to that of the settings, and
    with weaker penalties as long as these are better. Where going on only fits the training set,
    what was found at the coarse tolerance stays.

    Args:
      definition: if its ``config.length`` is None, validation chooses that.
      settings: if ``penalty`` is None, validation chooses that; limits of conjugate gradients.
      labelled: ``train`` and ``validation``.
      atoms: of :func:`~.closed_form.problem_of`.
      run: keeps what was chosen, and reports.

    Raises:
      ConvergenceError: conjugate gradients did not reach their tolerance for any penalty.
    """
    if state := run.load(CHOICE, ()):  # there before a kill
        facts = state[1]["chosen"]
        definition = with_length(definition, facts["length"])
        problem, bases = problem_of(definition, facts["penalty"], labelled["train"], atoms)
        if kernels := run.load(KERNELS, problem.right()):
            weights: Weights = {k: np.asarray(v) for k, v in kernels[0].items()}
            return definition, problem, bases, weights, facts
    penalties = PENALTIES if settings.penalty is None else (settings.penalty,)
    best: Choice | None = None
    for length in lengths_of(definition):
        function = with_length(definition, length)
        choice = _best_penalty(function, penalties, settings, labelled, atoms, run)
        best = choice if best is None or choice.error < best.error else best
    assert best is not None
    weaker = [p for p in penalties if p <= best.problem.penalty]
    best = _polished(best, weaker, settings, run)
    run.save(KERNELS, best.solution.weights, {})
    run.save(CHOICE, (), {"chosen": best.facts})
    return best.definition, best.problem, best.bases, best.solution.weights, best.facts


def _best_penalty(
    definition: Op2Density,
    penalties: Iterable[float],
    settings: Op2DensityFit,
    labelled: Mapping[str, Labelled],
    atoms: dict[int, np.ndarray] | None,
    run: Run,
) -> Choice:
    """The best penalty for a length at the coarse tolerance, from strong to weak."""
    penalties, tolerance = list(penalties), max(COARSE, settings.tolerance)
    problem, bases = problem_of(definition, penalties[0], labelled["train"], atoms)
    held_out = held_out_problem(definition, labelled["validation"], bases)
    compiled = jax.jit(held_out.error)

    def judge(weights: Weights) -> float:
        return float(np.sqrt(compiled(weights)))

    tried: list[Choice] = []
    for penalty in penalties:
        problem = dataclasses.replace(problem, penalty=np.float64(penalty))
        start = tried[-1].solution.weights if tried else None
        solution = conjugate_gradients(
            problem, tolerance=tolerance, cycles=settings.cycles, start=start
        )
        error = judge(solution.weights)
        tried.append(Choice(definition, problem, bases, judge, solution, error))
        run.progress("kernels", len(tried), len(penalties), _words(tried[-1]))
        errors = [choice.error for choice in tried]
        if len(errors) - 1 - int(np.argmin(errors)) >= PATIENCE:
            break
    least = min(choice.error for choice in tried)
    return next(choice for choice in tried if choice.error <= (1 + PRECISION) * least)


def _polished(best: Choice, weaker: Iterable[float], settings: Op2DensityFit, run: Run) -> Choice:
    """The choice solved to the settings' tolerance, and with weaker penalties, while that helps."""
    if settings.tolerance >= COARSE:
        return best
    start = best.solution.weights
    for penalty in weaker:
        problem = dataclasses.replace(best.problem, penalty=np.float64(penalty))
        limits = {"tolerance": settings.tolerance, "cycles": settings.cycles}
        try:
            solution = conjugate_gradients(problem, **limits, start=start, run=run)
        except ConvergenceError:
            break
        start, error = solution.weights, best.judge(solution.weights)
        better = dataclasses.replace(best, problem=problem, solution=solution, error=error)
        run.progress("kernels", 1, 1, _words(better))
        if error > (1 - PRECISION) * best.error:
            return better if error < best.error and penalty == best.problem.penalty else best
        best = better
    return best


def _words(choice: Choice) -> str:
    length = choice.definition.config.length
    return (
        f"{'' if length is None else f'length {length:g}, '}penalty {choice.problem.penalty:.0e}: "
        f"validation {choice.error:.2e}"
    )
