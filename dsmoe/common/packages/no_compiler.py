"""Eager programs without the import of torch's compiler: two seconds a process less.

torch 2 keeps torch.compile out of some methods, as those of its optimizers, by a wrapper whose
first call imports torch._dynamo, also where nothing is ever compiled (torch/_compile.py). The
wrapper keeps what it calls from then on in an attribute of the method inside, and imports nothing
where that is set already. The ``step`` of torch's own AdamW, SGD and others imports it all the
same, by a decorator that has no such attribute; AdaFactor's does not.
"""

from __future__ import annotations

import gc
from types import FunctionType
from typing import Any, Iterable, Iterator

#: That attribute. A torch that does not read it imports its compiler as ever.
KEPT = "__dynamo_disable"


def without_compiler(kind: type) -> None:
    """Let the wrapped methods of class ``kind`` be called as they are, and import nothing.

    For programs that compile nothing: torch.compile would trace into these methods.
    """
    for method in wrapped_methods(kind):
        method.__dict__.setdefault(KEPT, method)


def without_compiler_anywhere() -> None:
    """The same of every wrapper that exists now: call it after all imports.

    torch's Python kernels for tensors without values are in such wrappers, and so are the methods
    of dispatch modes.
    """
    functions = [found for found in gc.get_objects() if type(found) is FunctionType]
    for method in _insides(functions):
        method.__dict__.setdefault(KEPT, method)


def wrapped_methods(kind: type) -> Iterator[Any]:
    """The methods of ``kind`` itself inside such a wrapper; none with torch 1."""
    return _insides(vars(kind).values())


def _insides(functions: Iterable[Any]) -> Iterator[Any]:
    """What those of ``functions`` call that are such wrappers."""
    for function in functions:
        if getattr(function, "__globals__", {}).get("__name__") == "torch._compile":
            # not __wrapped__, which some of torch's own decorators set to something else
            cells = dict(zip(function.__code__.co_freevars, function.__closure__ or ()))
            if "fn" in cells:
                yield cells["fn"].cell_contents
