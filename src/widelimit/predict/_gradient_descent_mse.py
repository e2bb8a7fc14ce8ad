"""Gradient descent of one function on the mean squared error, in closed form."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from .._errors import InputError
from ._factorised import FactorisedKernel, factorised
from ._flow import flow, times
from ._interleaved import as_matrix, outputs_of
from ._namespace import broadcast, namespace, positive, real


class GradientDescentMSE:
    """The course of training; made by `gradient_descent_mse`, which says all.

    Attributes:
        kernel: the kernel of the training inputs with its factorisations.
    """

    def __init__(
        self,
        kernel: FactorisedKernel,
        y_train: Any,
        learning_rate: Any,
        trace_axes: Any,
    ) -> None:
        self.kernel = kernel
        self._outputs = outputs_of(jnp.shape(y_train), trace_axes)
        self._outputs.check_train(kernel.name, kernel)
        self._y = y_train
        self._learning_rate = positive("learning_rate", learning_rate)
        real(namespace(y_train), "y_train", y_train)

    def __call__(
        self,
        t: Any = None,
        fx_train_0: Any = 0.0,
        fx_test_0: Any = None,
        k_test_train: Any = None,
    ) -> Any:
        """The outputs at time[s] `t`.

        Args:
            t: number of steps, or an array of them of any shape; fractions and
                infinity are numbers. None is infinity, without eigenvectors.
            fx_train_0: outputs for the training inputs at time 0, of the shape of the
                targets, or one number for all. None for no prediction there; the
                outputs at time 0 are then 0.
            fx_test_0: the same for test inputs; None for no prediction there.
            k_test_train: kernel of test inputs with training inputs, shape
                (M, N, a', a, ..).

        Returns:
            Outputs for the training inputs, for the test inputs, or both in a tuple:
            those for which there are outputs at time 0. The axes of `t` come first.

        Raises:
            ShapeMismatchError: the arrays disagree.
            InputError: no prediction is asked for; `k_test_train` is missing; an array
                is not finite; the kernel is singular and `t` is None.
        """
        check_wanted(fx_train_0, fx_test_0, k_test_train)
        kernel, outputs = self.kernel, self._outputs
        xp = namespace(
            kernel.matrix, self._y, self._learning_rate,
            t, fx_train_0, fx_test_0, k_test_train,
        )  # fmt: skip
        y = real(xp, "y_train", self._y)
        error = y
        if fx_train_0 is not None:
            error = y - broadcast(xp, "fx_train_0", fx_train_0, outputs.shape)
        error = outputs.columns(xp, error)
        if t is None:
            weights, shape = kernel.solve(error)[None], ()
            gap = xp.zeros_like(weights)
        else:
            s, shape = times(xp, t, self._learning_rate, outputs.size)
            left, weight = flow(xp, kernel, s)
            vectors = kernel.eigen[1]
            along = xp.matmul(vectors.T, error)[None]
            gap = xp.matmul(vectors, left[..., None] * along)
            weights = xp.matmul(vectors, weight[..., None] * along)

        found = []
        if fx_train_0 is not None:
            found.append(y[None] - outputs.arrays(xp, gap, outputs.rows))
        if fx_test_0 is not None:
            k = real(xp, "k_test_train", k_test_train)
            rows = outputs.check_test("k_test_train", k)
            start = broadcast(xp, "fx_test_0", fx_test_0, outputs.of(rows))
            moved = xp.matmul(as_matrix(k), weights)
            found.append(start[None] + outputs.arrays(xp, moved, rows))
        found = [
            jnp.asarray(f.reshape((*shape, *f.shape[1:])), kernel.dtype) for f in found
        ]
        return found[0] if len(found) == 1 else tuple(found)


def gradient_descent_mse(
    k_train_train: Any,
    y_train: Any,
    learning_rate: Any = 1.0,
    diag_reg: Any = 0.0,
    diag_reg_absolute_scale: bool = False,
    trace_axes: int | Sequence[int] = (-1,),
) -> GradientDescentMSE:
    r"""Predict gradient flow of one function on the mean squared error.

    The loss is half the mean of the squared errors over all m = `y_train.size` entries.
    With the tangent kernel $\Theta$, regularised, and $E_t = \exp(-\eta \Theta t/m)$

    $$ f_t(X) = y + E_t (f_0(X) - y), \qquad
       f_t(x) = f_0(x) + \Theta(x, X) \Theta^{-1} (I - E_t) (y - f_0(X)). $$

    At the training inputs this takes $\Theta(X, X) \Theta^{-1}$ to be I, also with
    `diag_reg`; for the training inputs as regularised ones, give them as test inputs.

    A kernel that is singular to the precision of its numbers has no inverse, and
    `t=None` is an error that says so. Any other time, `t=inf` too, is found among the
    eigenvectors, where nothing is inverted: what targets there are along those whose
    eigenvalue cannot be told from 0 (`FactorisedKernel.tolerance`) is not learned.

    Results are differentiable and can be compiled, in the outputs at time 0, the time
    and the kernels; what is traced can not be checked, and a singular kernel that is
    traced gives NaN for `t=None`. Derivatives in a kernel that has equal eigenvalues
    exist for `t=None` only.

    Args:
        k_train_train: kernel of the training inputs, shape (N, N, a, a, b, b, ..), or
            a `FactorisedKernel`.
        y_train: targets, shape (N, a, b, .., O) for `trace_axes=(-1,)`.
        learning_rate: $\eta$. A step is one unit of time.
        diag_reg: added to the diagonal of the kernel.
        diag_reg_absolute_scale: False for `diag_reg` in units of the mean of the
            diagonal.
        trace_axes: axes of the targets of which the kernel has no pair, and is the
            same for all entries.

    Returns:
        A function of `(t, fx_train_0, fx_test_0, k_test_train)`, whose attribute
        `kernel` holds the factorisations.

    Raises:
        ShapeMismatchError: the shapes of kernel and targets disagree.
        InputError: an array is not finite, or the kernel is not symmetric or has a
            negative eigenvalue beyond rounding; a number is out of range.

    References:
        Lee et al. (2019), https://arxiv.org/abs/1902.06720, equations 8 to 11; Jacot et
        al. (2018), https://arxiv.org/abs/1806.07572. Names and conventions are those of
        `neural_tangents.predict.gradient_descent_mse`.
    """
    kernel = factorised(k_train_train, diag_reg, diag_reg_absolute_scale)
    return GradientDescentMSE(kernel, y_train, learning_rate, trace_axes)


def check_wanted(fx_train_0: Any, fx_test_0: Any, k_test_train: Any) -> None:
    """Refuse to predict nothing, or test outputs without their kernel."""
    if fx_train_0 is None and fx_test_0 is None:
        raise InputError(
            "`fx_train_0` and `fx_test_0` are both None, so there is nothing to "
            "predict. Give the outputs at time 0 (0.0 for none) for the inputs wanted."
        )
    if fx_test_0 is not None and k_test_train is None:
        raise InputError(
            "For predictions at test inputs (`fx_test_0`), give `k_test_train`, their "
            "kernel with the training inputs."
        )
