"""Networks in plain JAX; `widelimit show widelimit.examples.digits:cnn` reads one."""
