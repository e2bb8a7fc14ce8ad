"""The comparison with finite networks, on limits computed by hand."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from widelimit import _errors, finite
from widelimit.trace import _declare as declare

n = declare.width("n")
X = np.random.default_rng(0).normal(size=(4, 3))
SMALL: dict[str, Any] = {"widths": (64, 256), "seeds": 12}


def arc_cosine(k):
    """E relu(u) relu(v) for all pairs of a centred Gaussian with covariance k."""
    d = np.sqrt(np.diag(k))
    scale = np.outer(d, d)
    rho = np.clip(k / scale, -1, 1)
    angle = np.arccos(rho)
    return scale * (np.sqrt(1 - rho**2) + (math.pi - angle) * rho) / (2 * math.pi)


def blocks(k, inputs, steps):
    """From a matrix over (input, step) to the shape of a prediction."""
    return k.reshape(inputs, steps, inputs, steps).transpose(0, 2, 1, 3)


MLP = {
    "U": declare.normal((3, n)),
    "W": declare.normal((n, n), std=1.4),
    "b": declare.normal((n,), std=0.1),
    "v": declare.normal((n, 5)),
}


def mlp(params, x):
    h = declare.tap("h1", jax.nn.relu(x @ params["U"] / math.sqrt(3)))
    h = h @ params["W"] / jnp.sqrt(n) + params["b"]
    h = declare.tap("h2", jax.nn.relu(h))
    return h @ params["v"] / jnp.sqrt(h.shape[-1])


def mlp_limit():
    first = arc_cosine(X @ X.T / 3)
    second = arc_cosine(1.4**2 * first + 0.1**2)
    return {"h1": first, "h2": second, "output": second}


def test_a_right_prediction_passes_and_single_networks_converge():
    calls = []
    result = finite.check(
        mlp,
        MLP,
        X,
        mlp_limit(),
        widths=(512, 32, 128),
        progress=lambda done, total: calls.append((done, total)),
    )
    assert result.passed
    assert result.widths == (32, 128, 512)
    assert set(result.slopes) == {"h1", "h2"}
    assert all(abs(s + 0.5) < 0.15 for s in result.slopes.values())
    assert calls == [(i + 1, 48) for i in range(48)]
    # 3 quantities of 4 * 5 / 2 distinct entries; scipy.stats.t.ppf(1 - 0.005/30, 15)
    assert sum(r.entries for r in result.rows if r.width == 512) == 30
    assert result.critical_t == pytest.approx(4.63, abs=0.05)


@pytest.mark.parametrize("name", ["h1", "h2", "output"])
def test_a_wrong_prediction_fails(name):
    factor = 2.0 if name == "output" else 1.1
    limit = mlp_limit()
    limit[name] = limit[name] * factor
    result = finite.check(mlp, MLP, X, limit, widths=(1024,), seeds=48)
    assert result.verdicts == {k: k != name for k in limit}
    assert not result.passed
    assert result.slopes == {}


SHARED = {"U": declare.normal((3, n)), "W": declare.normal((n, n))}


def shared(params, x):
    """One matrix used twice, on h1 and on h2."""
    h1 = x @ params["U"] / math.sqrt(3)
    h2 = h1 @ params["W"] / n**0.5
    h3 = jnp.concatenate([h1, h2]) @ params["W"] / n**0.5
    return declare.tap("sum", h3[: x.shape[0]] + h3[x.shape[0] :])


def test_a_forgotten_shared_matrix_fails():
    k = X @ X.T / 3
    # W (h1 + h2) has twice the covariance, whether or not W is shared inside h2.
    assert finite.check(shared, SHARED, X, {"sum": 2 * k}, **SMALL).passed
    assert not finite.check(shared, SHARED, X, {"sum": k}, **SMALL).passed


def correlated(params, x):
    u = x @ params["U"] / math.sqrt(3)
    y = u @ params["W"] / n**0.5
    z = (2 * u) @ params["W"] / n**0.5
    return declare.tap("sum", y + z)


def test_a_matrix_used_twice_is_not_two_matrices():
    k = X @ X.T / 3
    assert finite.check(correlated, SHARED, X, {"sum": 9 * k}, **SMALL).passed
    assert not finite.check(correlated, SHARED, X, {"sum": 5 * k}, **SMALL).passed


RNN = {
    "U": declare.normal((3, n)),
    "W": declare.normal((n, n)),
    "v": declare.normal((n,)),
}
SEQUENCES = np.random.default_rng(1).normal(size=(2, 3, 3))


def rnn(params, x):
    def step(h, x_t):
        h = declare.tap("h", h @ params["W"] / jnp.sqrt(n) + x_t @ params["U"])
        return h, None

    h, _ = jax.lax.scan(step, jnp.zeros((len(x), n)), jnp.moveaxis(x, 1, 0))
    return h @ params["v"] / jnp.sqrt(n)


def rnn_limit():
    """A linear recurrence: E h_s h_t' = x_s . x_t' + E h_{s-1} h_{t-1}'."""
    k = np.einsum("isd,jtd->ijst", SEQUENCES, SEQUENCES)
    for s in range(1, 3):
        for t in range(1, 3):
            k[:, :, s, t] += k[:, :, s - 1, t - 1]
    return k


def test_taps_inside_scan_have_a_time_axis_after_the_batch():
    k = rnn_limit()
    limit = {"h": k, "output": k[:, :, 2, 2]}
    result = finite.check(rnn, RNN, SEQUENCES, limit, **SMALL)
    assert result.passed
    assert {r.quantity: r.entries for r in result.rows} == {"h": 21, "output": 3}
    assert not finite.check(
        rnn, RNN, SEQUENCES, {"h": k[:, :, ::-1, ::-1]}, **SMALL
    ).passed


def test_a_loop_inside_a_mapped_function():
    def one(params, x):
        return rnn(params, x[None])[0]

    def f(params, x):
        return jax.vmap(lambda y: one(params, y))(x)

    # The tap has an axis of size one for the batch that `rnn` itself sees.
    k = rnn_limit()[:, :, :, None, :, None]
    assert finite.check(f, RNN, SEQUENCES, {"h": k}, **SMALL).passed


def test_the_batch_axis_is_found_wherever_it_is():
    def f(params, x):
        h = jax.vmap(lambda y: declare.tap("h", params["U"].T @ y), out_axes=1)(x)
        return h.T @ params["v"] / n**0.5

    result = finite.check(f, RNN, X, {"h": X @ X.T, "output": X @ X.T}, **SMALL)
    assert result.passed
    assert result.notes == ()


def test_an_output_with_positions():
    params = {"U": declare.normal((3, n)), "v": declare.normal((n, 2))}

    def f(params, x):
        return (x @ params["U"] / 3**0.5) @ params["v"] / n**0.5

    k = np.einsum("isd,jtd->ijst", SEQUENCES, SEQUENCES) / 3
    assert finite.check(f, params, SEQUENCES, {"output": k}, **SMALL).passed
    wrong = {"output": 3 * k}
    assert not finite.check(f, params, SEQUENCES, wrong, **SMALL).passed
    pooled = {"output": np.einsum("ijss->ij", k) / 3}
    options = {**SMALL, "trace_axes": (-1, 1)}
    assert finite.check(f, params, SEQUENCES, pooled, **options).passed
    full = np.einsum("ijst,op->ijsotp", k, np.eye(2))
    assert finite.check(
        f, params, SEQUENCES, {"output": full}, trace_axes=(), **SMALL
    ).passed


def test_an_output_with_a_mean():
    params = {"v": declare.normal((n, 2)), "shift": np.array([1.0, -2.0])}

    def f(params, x):
        ones = jnp.ones((len(x), n)) * x[:, :1]
        return ones @ params["v"] / n**0.5 + params["shift"]

    cov = np.outer(X[:, 0], X[:, 0])
    mean = np.broadcast_to([1.0, -2.0], (4, 2))
    limit = {"output": cov, "output:mean": mean}
    result = finite.check(f, params, X, limit, **SMALL)
    assert result.passed
    assert result.quantities == ("output", "output:mean")
    assert not finite.check(f, params, X, {"output": cov}, **SMALL).passed
    wrong = {"output": cov, "output:mean": -mean}
    assert finite.check(f, params, X, wrong, **SMALL).verdicts == {
        "output": True,
        "output:mean": False,
    }


def test_deterministic_entries_agree_to_rounding():
    params = {"c": declare.constant((n,), 2.0)}

    def f(params, x):
        return declare.tap("h", x[:, :1] * params["c"])

    k = 4 * np.outer(X[:, 0], X[:, 0])
    for dtype, step in ((np.float64, 1e-12), (np.float32, 1e-3)):
        x = X.astype(dtype)
        exact = 4 * np.outer(x[:, 0].astype(float), x[:, 0].astype(float))
        assert finite.check(f, params, x, {"h": exact}, **SMALL).passed
        wrong = {"h": exact * (1 + step)}
        assert not finite.check(f, params, x, wrong, **SMALL).passed
    zero = finite.check(f, params, 0 * X, {"h": 0 * k}, **SMALL)
    assert zero.passed
    assert zero.slopes == {}


def test_random_bits_of_the_network_are_fresh_for_every_seed():
    params = {"c": declare.constant((n,), 1.0)}

    def f(params, x):
        keep = jax.random.bernoulli(jax.random.key(0), 0.5, (len(x), n))
        again = jax.random.bernoulli(jax.random.key(0), 0.5, (len(x), n))
        return declare.tap("h", keep * again * params["c"] * 2.0)

    # One mask for both draws of the same key: E = 2 on the diagonal, 1 off it.
    result = finite.check(f, params, X, {"h": np.ones((4, 4)) + np.eye(4)}, **SMALL)
    assert result.passed
    assert all(r.deviation > 0 for r in result.rows)


def test_several_networks_at_once_are_the_same_networks(monkeypatch):
    one = finite.check(mlp, MLP, X, mlp_limit(), **SMALL)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    many = finite.check(mlp, MLP, X, mlp_limit(), **SMALL)
    for a, b in zip(one.rows, many.rows, strict=True):
        assert a.deviation == pytest.approx(b.deviation, rel=1e-10)
        assert a.largest_t == pytest.approx(b.largest_t, rel=1e-8)


def test_false_alarms_of_a_scalar_output_are_rare():
    params = {"U": declare.normal((3, n)), "v": declare.normal((n,))}

    def f(params, x):
        return x @ params["U"] @ params["v"] / n**0.5

    passed = [
        finite.check(
            f, params, X, {"output": X @ X.T}, (256,), 16, jax.random.key(i)
        ).passed
        for i in range(8)
    ]
    # At level 1 %, two failures of 8 have probability below 1 %.
    assert sum(passed) >= 7


def test_networks_that_overflow_fail():
    def f(params, x):
        return declare.tap("h", jnp.exp(1000 * jnp.abs(x @ params["U"])))

    result = finite.check(f, SHARED, X, {"h": np.ones((4, 4))}, **SMALL)
    assert not result.passed
    assert "inf" in result.table()


def test_the_table_and_the_plot(tmp_path):
    limit = mlp_limit()
    del limit["h1"]
    result = finite.check(mlp, MLP, X, limit, **SMALL)
    text = str(result)
    assert text == result.table()
    lines = text.splitlines()
    assert lines[0].split()[:4] == ["quantity", "width", "deviation", "slope"]
    assert len(lines) == 1 + 4 + 2
    assert lines[2].startswith("h2")
    assert lines[2].endswith("agrees")
    assert lines[4].split()[3] == "-"
    assert "agrees with 12 networks at width 256" in lines[5]
    assert lines[6] == "Note: h1 is left out: nothing was predicted."
    result.plot(tmp_path / "check.png")
    assert (tmp_path / "check.png").read_bytes().startswith(b"\x89PNG")


def test_a_tap_that_is_no_vector_is_left_out_with_a_note():
    def f(params, x):
        declare.tap("weights", params["W"])
        declare.tap("mean", jnp.mean(x @ params["U"], -1))
        return declare.tap("h", x @ params["U"])

    result = finite.check(f, SHARED, X, {"h": X @ X.T}, **SMALL)
    assert [note.split()[0] for note in result.notes] == ["weights", "mean", "output"]


BAD_CALLS = {
    "no widths": ({"widths": ()}, "different positive whole numbers"),
    "width twice": ({"widths": (64, 64)}, "different positive whole numbers"),
    "negative width": ({"widths": (-64,)}, "different positive whole numbers"),
    "width no number": ({"widths": ("64",)}, "different positive whole numbers"),
    "one seed": ({"seeds": 1}, "seeds should be"),
    "nothing predicted": ({"predicted": {}}, "the network has 'h1', 'h2', 'output'"),
    "unknown": ({"predicted": {"h3": np.eye(4)}}, "the network has 'h1', 'h2'"),
    "shape": ({"predicted": {"h1": np.eye(3)}}, r"should have shape \(4, 4\)"),
    "not finite": ({"predicted": {"h1": np.eye(4) * math.nan}}, "not finite"),
    "mean alone": ({"predicted": {"h1": np.eye(4), "output:mean": X}}, "goes with"),
    "mean of another shape": (
        {"predicted": {"output": np.eye(4), "output:mean": X}},
        "shape of the output",
    ),
    "trace axis": ({"trace_axes": (0,)}, "inputs along axis 0"),
    "trace axis out of range": ({"trace_axes": (2,)}, "inputs along axis 0"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls(name):
    changed, message = BAD_CALLS[name]
    arguments = {"predicted": mlp_limit(), **SMALL, **changed}
    with pytest.raises(_errors.WidelimitError, match=message):
        finite.check(mlp, MLP, X, **arguments)


def test_widths_that_do_not_divide():
    params = {"U": declare.normal((3, n // 3)), "W": declare.normal((n, n))}
    with pytest.raises(_errors.InputError, match="choose widths that divide"):
        finite.check(mlp, params, X, mlp_limit(), widths=(32,))


# ---------------------------------------------------------------------- tangent kernel
@pytest.mark.slow
def test_the_tangent_kernel_is_compared_when_asked():
    params = {"U": wl.normal((3, n)), "W": wl.normal((n, n)), "v": wl.normal((n, 2))}

    def f(p, x):
        h = jnp.tanh(x @ p["U"])
        return jnp.sin(h @ p["W"] / jnp.sqrt(n)) @ p["v"] / jnp.sqrt(n)

    net, x = wl.limit(f, params), np.eye(3)[:2] + 0.3
    result = net.check(x, widths=(32, 128), seeds=16, ntk=True)
    assert result.passed
    assert -0.8 < result.slopes["ntk"] < -0.2
    assert "ntk" in result.table()
    wrong = {"ntk": 1.1 * np.asarray(net.ntk(x))}
    refused = finite.check(f, params, x, wrong, widths=(128,), seeds=16)
    assert not refused.passed


def test_a_key_among_the_parameters():
    """Typed keys are arrays that NumPy does not know; the noise is one draw."""

    def f(params, x):
        h = x @ params["U"] / math.sqrt(3)
        noise = jax.random.normal(params["key"], h.shape[1:])
        return (h + params["gain"] * noise) @ params["v"] / jnp.sqrt(n)

    net = wl.limit(
        f,
        {
            "U": wl.normal((3, n)),
            "v": wl.normal((n, 1)),
            "gain": np.float32(2.0),
            "key": jax.random.key(0),
        },
    )
    kernel = X @ X.T / 3 + 4.0
    np.testing.assert_allclose(net.nngp(X), kernel, rtol=1e-6)
    np.testing.assert_allclose(net.ntk(X), X @ X.T / 3 + kernel, rtol=1e-6)
    assert net.check(X, **SMALL).passed
