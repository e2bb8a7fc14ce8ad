"""The commands and their help; the work is in the files beside this one.

Nothing here imports JAX before a command runs, so that `--help` comes at once.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import cyclopts
from cyclopts import Parameter

from .._version import __version__
from ._failure import explain

ADDRESS = """
The network is addressed as `model.py:function`, or as `package.module:function` for an
installed module. The file declares, beside `def function(params, x)`, its parameters as
`params_function` (or `params`, if it is the only network there) and a small batch of
inputs as `x_function` (or `x`): an array, or a function without arguments that returns
one. Try `widelimit.examples.digits:mlp`.
"""

app = cyclopts.App(
    name="widelimit",
    version=__version__,
    help="The infinite-width limit of any JAX network, checked against real networks.",
    help_epilogue="Exit codes: 0 all well, 1 a check failed, 2 bad input.",
    help_format="markdown",
)

Target = Annotated[str, Parameter(help="The network, as `model.py:function`.")]
Input = Annotated[
    Path | None,
    Parameter(
        name=["--input", "-i"],
        help="Inputs (.npy, .npz, file.npz:name) in place of the declared ones.",
    ),
]


@app.command
def demo() -> int:
    """Read digits with an MLP, a CNN and an RNN of infinite width.

    For each: its tensor program, the check against real networks, the time of its
    kernel on 1,797 images, and the accuracy of the Gaussian process. About 3 minutes
    on 2 cores; the data come with scikit-learn.
    """
    from ._demo import demo

    return demo()


@app.command(help_epilogue=ADDRESS)
def show(
    target: Target,
    /,
    *,
    input: Input = None,
    after: Annotated[
        Literal["trace", "plan"],
        Parameter(
            help="The step of the compiler: the program as `trace`d, or the `plan` of "
            "its kernels for these inputs."
        ),
    ] = "trace",
) -> int:
    """Print the tensor program of a network, or how its kernels are computed."""
    from ._network import load

    network = load(target, input)
    with network.blame():
        limit = network.limit
        step = limit.program if after == "trace" else limit.plan
        text = step(network.x)
    print(text)
    return 0


@app.command(help_epilogue=ADDRESS)
def formula(
    target: Target,
    /,
    *,
    input: Input = None,
    latex: Annotated[bool, Parameter(negative="", help="Print LaTeX.")] = False,
) -> int:
    """Print the recursion that computes the kernel of a network."""
    from ._network import load

    network = load(target, input)
    with network.blame():
        text = network.limit.formula(network.x)
    print(text.latex() if latex else text)
    return 0


@app.command(help_epilogue=ADDRESS)
def check(
    target: Target,
    /,
    *,
    input: Input = None,
    widths: Annotated[
        str, Parameter(help="Widths of the real networks, with commas between.")
    ] = "128,512,2048",
    seeds: Annotated[int, Parameter(help="Networks drawn at each width.")] = 16,
    plot: Annotated[
        Path | None, Parameter(help="Also plot the deviations (.png, .svg or .pdf).")
    ] = None,
) -> int:
    """Compare the limit with real networks; exit code 1 if they disagree."""
    from ._check import check

    return check(target, input, widths, seeds, plot)


@app.command(help_epilogue=ADDRESS)
def kernel(
    target: Target,
    x1: Annotated[str, Parameter(help="Inputs: .npy, .npz or file.npz:name.")],
    x2: Annotated[
        str | None, Parameter(help="Other inputs; without them, `x1` with itself.")
    ] = None,
    /,
    *,
    output: Annotated[
        Path,
        Parameter(
            name=["--output", "-o"],
            help="Where to write: .npy, or .npz (the array is called `kernel`).",
        ),
    ],
    dtype: Annotated[
        Literal["float32", "float64"], Parameter(help="Precision of the work.")
    ] = "float64",
) -> int:
    """Compute the kernel of a network on arrays from files, and write it to a file."""
    from ._kernel import kernel

    return kernel(target, x1, x2, output, dtype)


@app.command
def coverage() -> int:
    """List the JAX primitives that a network may use, and the rule for each."""
    from ..trace import RULES

    column = max(map(len, RULES))
    for name in sorted(RULES):
        print(f"{name:<{column}}  {RULES[name].summary}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the words after `widelimit`; those of this process if None.

    Returns:
        The exit code: 0 all well, 1 a check failed, 2 bad input (one line on standard
        error says what is wrong and what to do).
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        result = app(
            words,
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (`| head`) has left; Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        print(f"widelimit: {message}", file=sys.stderr)
        return 2
    return result if isinstance(result, int) else 0
