"""An adaptive solver of ordinary differential equations, by diffrax."""

from typing import Any

import jax
import jax.numpy as jnp

from .._errors import InputError
from .._jax import is_concrete

_DOUBLINGS = 60
"""Of the time, while infinite time is looked for."""


class Solver:
    """An adaptive solver of one equation.

    Args:
        slope: the derivative, a function of time, state and `args`.
        args: of it.
        options: rtol, atol, max_steps, solver.
    """

    def __init__(self, slope: Any, args: Any, options: dict[str, Any]) -> None:
        self._slope, self._args, self._options = slope, args, options

    def at(self, when: Any, infinite: int, state: Any) -> Any:
        """The states at ascending times, (T, ..) in each of their arrays.

        Args:
            when: shape (T,).
            infinite: how many of the times are, at the end.
            state: at time 0.

        Raises:
            InputError: the solver gives up, or looks for infinite time under a trace.
        """
        finite = when[: len(when) - infinite]
        parts = []
        if len(finite):
            parts.append(self._run(jnp.zeros_like(finite[0]), finite, state))
        if infinite:
            end = self._end(state)
            parts.append(
                jax.tree_util.tree_map(
                    lambda a: jnp.broadcast_to(a[None], (infinite, *a.shape)), end
                )
            )
        return jax.tree_util.tree_map(lambda *a: jnp.concatenate(a), *parts)

    def _end(self, state: Any) -> Any:
        """Where the state stays: the time is doubled until that changes nothing."""
        if not all(
            is_concrete(x) for x in jax.tree_util.tree_leaves((state, self._args))
        ):
            raise InputError(
                "Infinite time (t=None) is looked for among longer and longer times, "
                "which can not be compiled: call the prediction outside jit, grad and "
                "vmap, or give a time."
            )
        k, y, _, unit = self._args
        start = jnp.zeros((), k.dtype)
        stop, change = y.size / unit, jnp.inf
        for _ in range(_DOUBLINGS):
            after = self._run(start, stop[None], state)
            after = jax.tree_util.tree_map(lambda a: a[0], after)
            change = jnp.abs(after[0] - state[0]).max()
            if float(change) <= 10 * self._tolerance() * float(jnp.abs(after[0]).max()):
                return after
            start, stop, state = stop, 2 * stop, after
        raise InputError(
            f"The outputs still change by {float(change):.3g} between the times "
            f"{float(start):.3g} and {float(stop):.3g}, in units of learning_rate, so "
            "there is no end of training to predict. Give a time."
        )

    def _tolerance(self) -> float:
        eps = float(jnp.finfo(self._args[0].dtype).eps)
        return max(1e-9, 10 * eps)

    def _run(self, start: Any, when: Any, state: Any) -> Any:
        """The states at ascending times."""
        try:
            import diffrax
        except ImportError:
            raise InputError(
                "Gradient descent on any loss is solved by diffrax, which is not "
                "installed: pip install diffrax."
            ) from None

        options = self._options
        rtol, atol = (
            self._tolerance() if options[name] is None else options[name]
            for name in ("rtol", "atol")
        )
        known = all(
            is_concrete(x)
            for x in jax.tree_util.tree_leaves((start, when, state, self._args))
        )
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(self._slope),
            diffrax.Dopri8() if options["solver"] is None else options["solver"],
            t0=start,
            t1=when[-1],
            dt0=None,
            y0=state,
            args=self._args,
            saveat=diffrax.SaveAt(ts=when),
            # Steps end at the times wanted: between them the solver is less precise.
            stepsize_controller=diffrax.ClipStepSizeController(
                diffrax.PIDController(rtol=rtol, atol=atol), step_ts=when
            ),
            max_steps=options["max_steps"],
            throw=not known,
        )
        if known and not bool(solution.result == diffrax.RESULTS.successful):
            raise InputError(
                f"The solver gives up after {int(solution.stats['num_steps'])} steps "
                f"(max_steps={options['max_steps']}) on the way from time "
                f"{float(start):.4g} to {float(when[-1]):.4g}, in units of "
                "learning_rate (of its square root with momentum). Take shorter times, "
                "more max_steps, or for a stiff equation solver=diffrax.Kvaerno5()."
            )
        return solution.ys
