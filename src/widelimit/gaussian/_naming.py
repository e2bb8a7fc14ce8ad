"""What a closed form is called in reports."""

from ._form import Form


def name_of(form: Form) -> str:
    """A short name of the family, such as `relu`, `erf` or `piecewise polynomial`."""
    if not form:
        return "zero"
    kinks = [a for a in form if a.gate == "step"]
    waves = any(a.omega for a in form)
    exponential = any(a.alpha for a in form)
    bells = any(a.beta for a in form)
    degree = max(len(a.poly) for a in form) - 1
    if kinks:
        inner = "exponential" if exponential or bells else f"degree {degree}"
        if inner == "degree 1" and all(a.t == 0 for a in kinks):
            return "piecewise linear (arc-cosine)"
        if inner == "degree 0" and all(a.t == 0 for a in kinks):
            return "step"
        return f"piecewise {inner if 'exp' in inner else 'polynomial'}"
    if any(a.gate == "erf" for a in form):
        return "erf" if degree == 0 else "gelu"
    names = [
        n
        for n, on in (
            ("sine", waves),
            ("exponential", exponential),
            ("Gaussian", bells),
        )
        if on
    ]
    return " times ".join(names) or "polynomial"
