"""The right sides of definitions, read from text."""

import ast
from typing import Any, assert_never

from .._errors import ParseError
from ._lines import (
    Array,
    Constant,
    Elementwise,
    Input,
    LinComb,
    Line,
    Map,
    MatIn,
    MatMul,
    Matrix,
    Moment,
    Nonlin,
    Output,
    Primitive,
    Ratio,
    Readout,
    Ref,
    Regression,
    Tensor,
    TensorArg,
    Term,
    Transpose,
    Type,
    VecIn,
    Vector,
)
from ._literal import parse_array, parse_dim, parse_param
from ._operands import Operands, Scope, bounds
from ._tokens import Tokens

_MAPS = "input(..), constant(..), map(..), ratio(..), primitive(..) or regression(..)"


class Body(Operands):
    """The right side of one definition."""

    def __init__(
        self,
        scope: Scope,
        t: Tokens,
        name: str,
        declared: Type,
        letters: dict[str, int],
    ) -> None:
        super().__init__(scope, t, letters)
        self.name = name
        self.type = declared

    def read(self) -> Line:
        """The line that the definition makes."""
        t, name = self.t, self.name
        match self.type:
            case Matrix() as m:
                if t.take("matin"):
                    std = self.std(self.keywords(("std",)))
                    return MatIn(
                        name=name, shape=m.shape, rows=m.rows, cols=m.cols, std=std
                    )
                matrix = self.scope.ref(t)
                t.expect(".")
                t.expect("T")
                return Transpose(name=name, matrix=matrix)
            case Tensor():
                return self.tensor_line()
            case Vector() | Output():
                return self.vector_line()
            case _:
                assert_never(self.type)

    def vector_line(self) -> Line:
        t = self.t
        if t.take("vecin", "("):
            t.at -= 1
            return self.vecin()
        if t.take("nonlin", "("):
            t.at -= 1
            fn, xs, tensors = self.function(t.group("(", ")"))
            return Nonlin(name=self.name, fn=fn, xs=xs, tensors=tensors)
        start = t.at
        sums = self.sums()
        if t.next == "<":
            return self.readout(sums)
        t.at = start
        product = any(token.text == "@" for token in t.tokens)
        return self.matmul() if product else self.lincomb()

    def tensor_line(self) -> Map | Moment:
        t, name, shape = self.t, self.name, self.type.shape
        if t.take("E"):
            fn, xs, tensors = self.function(t.group("[", "]"))
            return Moment(name=name, fn=fn, xs=xs, tensors=tensors)
        word = t.name(f"E[..], {_MAPS}")
        op, args = self.map_of(word, t.group("(", ")"))
        return Map(name=name, op=op, args=args, shape=shape)

    def map_of(self, word: str, inside: Tokens) -> tuple[Any, tuple[Ref, ...]]:
        """What a map does, by its name, and the tensors it takes."""
        match word:
            case "input":
                key = ast.literal_eval(inside.string("the key of the input in quotes"))
                inside.end()
                return Input(key), ()
            case "constant":
                value = parse_array(inside.text)
                if not isinstance(value, Array):
                    raise ParseError("expected an array: a list, or float64(number)")
                return Constant(value), ()
            case "map":
                fn, xs, tensors = self.function(inside)
                if xs:
                    raise ParseError("a map takes tensors; expected E[..] for a vector")
                op = Elementwise(fn, tuple(a.letters for a in tensors))
                return op, tuple(a.ref for a in tensors)
            case "ratio":
                dims = [parse_dim(part.text) for part in inside.split()]
                if len(dims) != 2:
                    raise ParseError("expected two widths in `ratio(..)`")
                return Ratio(*dims), ()
            case "primitive":
                return self.primitive(inside)
            case "regression":
                return self.regression(inside)
        raise ParseError(f"expected E[..], {_MAPS}, found `{word}`")

    def primitive(self, t: Tokens) -> tuple[Primitive, tuple[Ref, ...]]:
        first, *rest = t.until(";").split() or [Tokens("", [])]
        name = ast.literal_eval(first.string("the name of the primitive in quotes"))
        args = tuple(self.scope.only_ref(p) for p in rest)
        params = []
        if t.take(";"):
            for part in t.split():
                key = part.name("the name of a parameter")
                part.expect("=")
                params.append((key, parse_param(part.until().text)))
        return Primitive(name, tuple(params)), args

    def regression(self, t: Tokens) -> tuple[Regression, tuple[Ref, ...]]:
        part = t.size()
        groups = []
        for _ in range(2):
            t.expect(";")
            groups.append([self.scope.only_ref(p) for p in t.until(";").split()])
        t.end()
        return Regression(part, len(groups[1])), (*groups[0], *groups[1])

    def vecin(self) -> VecIn:
        given = self.keywords(("mean", "std", "cov", "per_example"))
        dim = self.type.dim if isinstance(self.type, Vector) else None
        cov = parse_array(given["cov"].text) if "cov" in given else None
        if cov is not None and not isinstance(cov, Array):
            raise ParseError("expected an array for `cov`, a list or float64(number)")
        flag = given["per_example"].text if "per_example" in given else "False"
        if flag not in ("True", "False"):
            raise ParseError(
                f"expected True or False for `per_example`, found `{flag}`"
            )
        return VecIn(
            name=self.name,
            shape=self.type.shape,
            dim=dim,
            mean=parse_array(given["mean"].text) if "mean" in given else 0.0,
            std=self.std(given),
            cov=cov,
            per_example=flag == "True",
        )

    def std(self, given: dict[str, Tokens]) -> float | TensorArg:
        if "std" not in given:
            return 1.0
        t = given["std"]
        if t.tokens and t.tokens[0].is_name:
            arg = self.tensor_arg(t, self.scope.ref(t), list(self.sizes))
            t.end()
            return arg
        value = t.number("a number or a scalar for `std`")
        t.end()
        return value

    def keywords(self, known: tuple[str, ...]) -> dict[str, Tokens]:
        given: dict[str, Tokens] = {}
        for part in self.t.group("(", ")").split():
            key = part.name(f"one of {', '.join(known)}")
            if key not in known or key in given:
                raise ParseError(f"expected one of {', '.join(known)}, found `{key}`")
            part.expect("=")
            given[key] = part.until()
        return given

    def sums(self) -> dict[str, int]:
        if not self.t.take("sum_"):
            return {}
        sizes = bounds(self.t.group("{", "}"))
        if set(sizes) & set(self.sizes):
            raise ParseError("a summed letter is one of the letters on the left")
        return sizes

    def matmul(self) -> MatMul:
        sums = self.sums()
        letters = self.sizes | sums
        matrix = self.scope.ref(self.t)
        at = self.tensor_arg(self.t, matrix, list(letters)).letters
        self.t.expect("@")
        x, maps = self.operand(letters)
        return MatMul(
            name=self.name,
            matrix=matrix,
            letters=at,
            x=x,
            maps=maps,
            shape=self.type.shape,
            sums=tuple(sums.values()),
        )

    def readout(self, sums: dict[str, int]) -> Readout:
        letters = self.sizes | sums
        self.t.expect("<")
        v = self.scope.ref(self.t)
        at = self.tensor_arg(self.t, v, list(letters)).letters
        self.t.expect(",")
        x, maps = self.operand(letters)
        for text in (">", "/", "sqrt"):
            self.t.expect(text)
        dim = parse_dim(self.t.group("(", ")").text)
        expected = self.scope.types[v]
        if not isinstance(expected, Vector) or expected.dim != dim:
            raise ParseError("expected the width of the two vectors inside sqrt(..)")
        return Readout(
            name=self.name,
            v=v,
            letters=at,
            x=x,
            maps=maps,
            shape=self.type.shape,
            sums=tuple(sums.values()),
        )

    def lincomb(self) -> LinComb:
        terms, sign = [], -1.0 if self.t.take("-") else 1.0
        while True:
            terms.append(self.term(sign))
            if self.t.take("+"):
                sign = 1.0
            elif self.t.take("-"):
                sign = -1.0
            elif self.t.next:
                raise ParseError(
                    f"expected `+`, `-` or the end of a linear combination, found "
                    f"{self.t.found()}; a function is written nonlin(..)"
                )
            else:
                return LinComb(
                    name=self.name, terms=tuple(terms), shape=self.type.shape
                )

    def term(self, sign: float) -> Term:
        sums = self.sums()
        letters = self.sizes | sums
        scale, tensors = sign, []
        at = (tuple(sums.values()),)
        if self.t.next and self.t.tokens[self.t.at].kind == "number":
            if self.t.next == "1" and self.t.after != "*":
                self.t.take("1")
                return Term(None, scale, (), (), *at)
            scale = sign * self.t.number("a number")
            self.t.expect("*")
        while True:
            if self.t.take("1"):
                return Term(None, scale, tuple(tensors), (), *at)
            start = self.t.at
            ref = self.scope.ref(self.t)
            if isinstance(self.scope.types[ref], Vector | Output):
                self.t.at = start
                x, maps = self.operand(letters)
                return Term(x, scale, tuple(tensors), maps, *at)
            tensors.append(self.tensor_arg(self.t, ref, list(letters)))
            if not self.t.take("*"):
                raise ParseError(
                    "expected `*` and a vector, or 1 for the vector of ones, at the "
                    "end "
                    f"of a term, found {self.t.found()}"
                )
