"""Libraries loaded and used once in a zygote, so that no clone pays for a first use; and what clones must forget.

Runs with the Python of the cells: standard library only, and whatever of the named modules is there.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import ModuleType
    from typing import Any

MADV_COLLAPSE = 25
HUGE_PAGE = 2 << 20
STATEMENT = re.compile(r"import |[\w, ]+ = ")
NUMPY = """
import numpy as np, numpy.fft, numpy.linalg, numpy.random
m = np.array([[2.0, 1.0], [1.0, 3.0]])
np.linalg.solve(m, np.linalg.eigh(m)[0])
np.linalg.svd(m), np.linalg.eig(m), np.linalg.det(m), np.linalg.inv(m), np.linalg.lstsq(m, m, rcond=None)
np.fft.ifft(np.fft.fft(m))
np.random.default_rng(0).normal(size=3)
np.random.rand(3), np.random.randint(10, size=3), np.random.choice(3)
np.polyfit([0.0, 1.0, 2.0], [0.0, 1.0, 4.0], 2), np.roots([1, 0, -1])
m.astype(int), np.sort(m), np.unique(m), np.einsum("ij,jk", m, m), m[m > 1], np.linspace(0, 1, 3).cumsum()
"""
SYMPY = """
import sympy as sp
x, y, n, f = sp.Symbol("x"), sp.Symbol("y", positive=True), sp.Symbol("n", integer=True), sp.Function("f")
sp.integrate(sp.sin(x) * x**2, x), sp.integrate(1 / (x**2 + 1), (x, 0, 1)), sp.integrate(sp.log(x) * x, x)
sp.integrate(sp.exp(-(x**2)), (x, -sp.oo, sp.oo)), sp.diff(sp.exp(x * y), x, 2)
sp.limit(sp.sin(x) / x, x, 0), sp.series(sp.exp(x), x)
sp.solve(x**3 - 2 * x + 1, x), sp.solve([x + y - 3, x - y - 1], [x, y]), sp.solve(x**2 - y, x)
sp.solveset(sp.sin(x) - 1, x), sp.solveset(x**2 - 1, x, sp.S.Reals)
sp.linsolve([x + y - 2], x, y), sp.nonlinsolve([x**2 - 1, x - y], x, y)
sp.nsolve(sp.cos(x) - x, 1), sp.reduce_inequalities(x**2 < 4, x)
sp.simplify(sp.sin(x) ** 2 + sp.cos(x) ** 2), sp.simplify((x**2 - 1) / (x - 1)), sp.trigsimp(2 * sp.sin(x) * sp.cos(x))
sp.radsimp(1 / sp.sqrt(2)), sp.nsimplify(0.5), sp.sqrtdenest(sp.sqrt(3 + 2 * sp.sqrt(2))), sp.powsimp(x**2 * x)
sp.factor(x**4 - 1), sp.expand((x + y) ** 3), sp.cancel((x**2 - 1) / (x - 1)), sp.apart(1 / (x**2 - 1))
sp.Poly(x**3 + x, x).all_coeffs(), sp.roots(x**2 - 2), sp.groebner([x**2 - y, x - y], x, y)
sp.together(1 / x + 1), sp.resultant(x**2, x - y, x)
m = sp.Matrix([[1, 2], [3, 4]])
m.eigenvals(), m.eigenvects(), m.det(), m.inv(), m.rref(), m.nullspace(), m.charpoly()
sp.summation(n, (n, 1, y)), sp.summation(1 / n**2, (n, 1, sp.oo)), sp.product(n, (n, 1, 4)), sp.binomial(10, 3)
sp.factorint(12345678), sp.isprime(2**31 - 1), sp.divisors(360), sp.totient(100), sp.gcd(12, 18), sp.prime(10)
sp.diophantine(sp.Symbol("a", integer=True) ** 2 - n**2 - 3), sp.discrete_log(41, 15, 7), list(sp.primerange(10))
sp.N(sp.pi, 30), sp.Rational(1, 3).evalf(50), sp.sqrt(2).evalf(), sp.lambdify(x, sp.sin(x) ** 2)(1.0)
sp.parse_expr("2*x + sin(y)/3"), sp.sympify("x**2 + 1/2"), sp.latex(sp.Integral(x**2 / 2, x)), sp.pretty(m)
sp.Piecewise((x, x > 0), (0, True)), sp.FiniteSet(1, 2).intersect(sp.Interval(0, 1))
sp.Line(sp.Point(0, 0), sp.Point(1, 1)).intersection(sp.Circle(sp.Point(0, 0), 1))
sp.Triangle((0, 0), (3, 0), (0, 4)).area
sp.dsolve(f(x).diff(x) - f(x), f(x)), sp.rsolve(f(n + 1) - 2 * f(n), f(n))
"""


def warm(names: Iterable[str]) -> None:
    """Import `names`, but for what this runtime does not have, and use those that load much of themselves late."""
    modules = {name: load(name) for name in names}
    if modules.get("numpy"):
        exercise(NUMPY)
    if modules.get("sympy"):
        exercise_sympy()
    if ssl := sys.modules.get("ssl"):
        ssl.RAND_bytes(1)  # starts OpenSSL's generator, which `forget` then has less to do with


def load(name: str) -> ModuleType | None:
    try:
        return import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name is not None and f"{name}.".startswith(f"{exc.name}."):
            return None
        raise  # it is there, but what it needs is not


def exercise(lines: str) -> None:
    """As cells would: each line on its own, its value shown."""
    namespace: dict[str, Any] = {}
    for line in lines.strip().splitlines():
        # Another version of the library may not have it: then a cell pays for the first use.
        with contextlib.suppress(Exception):
            exec(line if STATEMENT.match(line) else f"repr(({line}))", namespace)


def exercise_sympy() -> None:
    """What is left must not show in results: the cache is emptied, and names of dummies start over."""
    dummy: Any = import_module("sympy.core.symbol").Dummy
    count = dummy._count
    exercise(SYMPY)
    import_module("sympy.core.cache").clear_cache()
    dummy._base_dummy_index += dummy._count - count  # numbers go on: tables of sympy's own keep dummies
    dummy._count = count


def forget() -> None:
    """In a clone: what libraries drew at random, or redraw only in another pid, which is always 1."""
    modules: dict[str, Any] = sys.modules
    if tempfile := modules.get("tempfile"):
        tempfile._name_sequence = None
    if uuid := modules.get("uuid"):
        uuid._node, uuid._last_timestamp = int.from_bytes(os.urandom(6), "big") | 1 << 40, None  # a multicast address
        uuid._generate_time_safe = None  # libuuid keeps a node of its own
    if ssl := modules.get("ssl"):
        ssl.RAND_add(os.urandom(32), 32.0)


def collapse() -> None:
    """Into huge pages, where the kernel can (Linux 6.1): a fork then copies a third less."""
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for start, end in anonymous_mappings():
        start, end = -(-start // HUGE_PAGE) * HUGE_PAGE, end // HUGE_PAGE * HUGE_PAGE
        if start < end:
            madvise(start, end - start, MADV_COLLAPSE)


def anonymous_mappings() -> list[tuple[int, int]]:
    with open("/proc/self/maps") as lines:
        mappings = [line.split() for line in lines]
    anonymous = [words for words in mappings if words[1] == "rw-p" and (len(words) == 5 or words[5] == "[heap]")]
    return [(int(start, 16), int(end, 16)) for start, _, end in (words[0].partition("-") for words in anonymous)]
