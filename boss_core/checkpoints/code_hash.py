"""What a callable of the user's own computes, as a hash: its source, that of the modules beside it
which it imports, and the weights and settings that it holds.

A search is known again by it: costs of other code are not gone on from.
"""

import ast
import hashlib
import sys
import sysconfig
from argparse import Namespace
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from decimal import Decimal
from fractions import Fraction
from functools import _lru_cache_wrapper, cache, cached_property, partial, partialmethod
from pathlib import Path, PurePath
from types import CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from boss_core.io.weights import add_content

_PYTHON = tuple(sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib"))
_OF_PACKAGES = ("site-packages", "dist-packages")  # the second is Debian's
_OURS = Path(__file__).resolve().parents[1]  # all of this library
_SCALARS = (
    bool, int, float, complex, str, bytes, type(None), np.generic, torch.dtype, torch.device,
    bytearray, range, slice, Decimal, Fraction, PurePath,
)  # fmt: skip
# What every module of torch has: weights and layers, which are taken by their names, and whether
# it trains, which is no setting: `import_velocity` changes that. And what `compile()` adds.
_OF_EVERY_MODULE = frozenset(vars(nn.Module())) | {"_compiled_call_impl"}


def code_hash(velocity: Any, module: ModuleType, attribute: str) -> str | None:
    """The SHA-256 of what a callable depends on; None where its module has no source.

    module: where it was imported from. attribute: its name there.

    Source: the module's file and, of what it imports, also inside functions, all that lies in the
    same folder or is no installed package. Weights and settings: modules, tensors, arrays, numbers
    and texts that the callable reaches through closures, defaults, attributes, also of its class,
    and the global names that its functions use. Not seen: files that it reads at each call, what
    it imports by a computed name, and what objects of installed packages hold that are neither
    modules of torch nor plain data.
    """
    files = source_files(module)
    if not files:
        return None
    digest = hashlib.sha256(attribute.encode())
    for path in files:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    _Held(digest, {str(path) for path in files}).add(velocity)
    return digest.hexdigest()


def source_files(module: ModuleType) -> list[Path]:
    """The Python files behind a module: its own first, then those of the user's that it imports,
    in the order in which they come. Empty where the module has no source."""
    first = _file(module)
    if first is None:
        return []
    depth = len(module.__name__.split(".")) + (first.name == "__init__.py")
    root = first.parents[depth - 1]
    installed = _is_installed(first)
    top = module.__name__.split(".")[0]
    found, waiting = [first], [(module.__name__, first)]
    while waiting:
        name, path = waiting.pop(0)
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for imported in _imports(path, package):
            if installed and imported.split(".")[0] != top:
                continue
            other = _find(imported, root)
            if other is None or other in found or other.is_relative_to(_OURS):
                continue
            if installed or not _is_installed(other):
                found.append(other)
                waiting.append((imported, other))
    return found


class _Held:
    """Feeds a digest with what a value holds. files: of the user's source; values of other code
    are taken as they are named there."""

    def __init__(self, digest: Any, files: set[str]) -> None:
        self.digest, self.files = digest, files
        self.seen: dict[int, Any] = {}  # keeps what was seen alive, so that no id comes again

    def add(self, value: Any, *, name: str = "") -> None:
        if isinstance(value, _SCALARS):
            self.digest.update(f"{name}={value!r};".encode())
            return
        if isinstance(value, type):
            self._class(value)
            return
        # Equal tuples of a file are one object or several, as it was compiled or read again.
        if id(value) in self.seen and not isinstance(value, tuple):
            return
        self.seen[id(value)] = value
        match value:
            case nn.Module():
                self._module(value)
            case np.ndarray() if value.dtype == object:
                self.add(value.tolist())
            case np.ndarray():
                self.digest.update(f"{name} {value.dtype} {value.shape}".encode())
                self.digest.update(value.tobytes())
            case Tensor() if value.is_meta:
                self.digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            case Tensor():
                add_content(self.digest, name, value)
            case partial() | partialmethod():
                self.each([("func", value.func), ("args", value.args)])
                self.add(value.keywords)
            case MethodType():
                self.each([("self", value.__self__), ("func", value.__func__)])
            case FunctionType():
                self._function(value)
            case staticmethod() | classmethod():
                self.add(value.__func__)
            case property():
                self.add(value.fget)
            case cached_property():
                self.add(value.func)
            case Mapping():
                self.each([(str(key), held) for key, held in value.items()])
            case list() | tuple() | deque():
                self.each([(str(i), held) for i, held in enumerate(value)])
            case set() | frozenset():  # in an order that is the same in every process
                self.each([("in", v) for v in sorted(value, key=repr) if isinstance(v, _SCALARS)])
            case ModuleType() if str(_file(value)) in self.files:
                self.each([(k, v) for k, v in vars(value).items() if not k.startswith("__")])
            case _lru_cache_wrapper():
                self.add(value.__wrapped__)
        kind = type(value)
        self._class(kind)
        plain = isinstance(value, SimpleNamespace | Namespace) or is_dataclass(kind)
        if plain or (self._is_users(kind) and not isinstance(value, nn.Module)):
            self.each(list(_attributes(value)))

    def each(self, items: list[tuple[str, Any]]) -> None:
        for name, value in items:
            self.add(value, name=name)

    def _class(self, kind: type) -> None:
        """What classes of the user's hold: settings, and the functions by which it computes."""
        for base in kind.__mro__:
            if id(base) not in self.seen and self._is_users(base):
                self.seen[id(base)] = base
                held = vars(base).items()
                self.each([(k, v) for k, v in held if k[:2] != "__" or _has_code(v)])

    def _module(self, network: nn.Module) -> None:
        for name, held in [*network.state_dict().items(), *network.named_buffers()]:
            self.digest.update(f"{name.replace('_orig_mod.', '')}:".encode())
            self.seen.pop(id(held), None)  # a weight that is used twice is named twice
            self.add(held)
        for layer in network.modules():
            self.seen[id(layer)] = layer
        for layer in network.modules():
            self._class(type(layer))
            if "_orig_mod" in layer._modules:  # a compiled one computes what the layer in it does
                continue
            own = vars(layer)
            self.each([(k, v) for k, v in own.items() if k not in _OF_EVERY_MODULE])
            for hooks in ("_forward_pre_hooks", "_forward_hooks"):
                self.add(list(own.get(hooks, {}).values()))
            # Networks that bring their own code: exported, scripted and traced ones.
            if isinstance(code := getattr(layer, "code", None), str):
                self.digest.update(code.encode())
            if isinstance(layer, torch.jit.ScriptModule) and code is not None:
                self.add(dict(layer.code_with_constants[1].const_mapping))

    def _function(self, function: FunctionType) -> None:
        self.each([("defaults", function.__defaults__), ("keywords", function.__kwdefaults__)])
        for cell in function.__closure__ or ():
            try:
                self.add(cell.cell_contents, name="cell")
            except ValueError:  # of a name that has no value yet
                continue
        # By its globals: a wrapper of others has the module's name of what it wraps, and its
        # closure leads there.
        module = sys.modules.get(function.__globals__.get("__name__", ""))
        if module is None or str(_file(module)) not in self.files:
            return
        self.add(vars(function))
        names = dict.fromkeys(_names(function.__code__))
        self.each([(n, function.__globals__[n]) for n in names if n in function.__globals__])

    def _is_users(self, value: Any) -> bool:
        module = sys.modules.get(getattr(value, "__module__", None) or "")
        return module is not None and str(_file(module)) in self.files


def _has_code(value: Any) -> bool:
    return isinstance(value, FunctionType | staticmethod | classmethod | property)


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """What an object holds, in its dictionary and in slots."""
    yield from getattr(value, "__dict__", {}).items()
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in [slots] if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                yield name, getattr(value, name)


def _names(code: CodeType) -> Iterator[str]:
    """The global names in a function and in those inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _imports(path: Path, package: str) -> Iterator[str]:
    """The full names of all modules that a file may import."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # one that is imported in some case only
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _prefixes(alias.name)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(parents if node.level else []), *filter(None, [node.module])])
            yield from _prefixes(base)
            yield from (f"{base}.{alias.name}" for alias in node.names if base)


def _prefixes(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[: i + 1]) for i in range(len(parts)) if parts[0])


def _find(name: str, root: Path) -> Path | None:
    """The file of a module: below the root, or where it was imported from."""
    place = root.joinpath(*name.split("."))
    for path in (place / "__init__.py", place.with_name(f"{place.name}.py")):
        if path.is_file():
            return _located(path)
    module = sys.modules.get(name)
    return None if module is None else _file(module)


def _file(module: ModuleType) -> Path | None:
    file = getattr(module, "__file__", None)
    path = None if file is None else _located(Path(file))
    return path if path is not None and path.suffix == ".py" and path.is_file() else None


def is_users_file(name: str) -> bool:
    """Whether a file is neither Python's, an installed package's nor this library's."""
    path = _located(Path(name))
    return not _is_installed(path) and not path.is_relative_to(_OURS) and path.is_file()


def _located(path: Path) -> Path:
    """Where a file lies, links followed; but one of an installed package where that has it, which
    may be a link into a store that environments share."""
    path = path.absolute()
    return path if _is_installed(path) else path.resolve()


def _is_installed(path: Path) -> bool:
    return any(path.is_relative_to(folder) for folder in _installed(tuple(sys.path)))


@cache
def _installed(places: tuple[str, ...]) -> tuple[Path, ...]:
    """Python's own folders and all of packages that it looks into: an environment may show those of
    the system, or of the user, beside its own."""
    found = {
        Path(name) for name in (*_PYTHON, *(p for p in places if Path(p).name in _OF_PACKAGES))
    }
    return tuple(sorted(found | {folder.resolve() for folder in found}))
