"""The name map: which of a source's arrays make which fleet tensor. A TOML file that the person who imports writes.

    [embedding]
    from = "emb.weight"
    [kernel]
    columns = ["cell.weight_ih", "cell.weight_hh"]       # side by side: the input's columns, then the state's
    order = ["input", "candidate", "output"]             # how the source stacks its gates
    [projection]
    from = "cell.proj.weight"
    transpose = true
    [kernel_bias]
    sum = ["cell.bias_ih", "cell.bias_hh"]               # PyTorch keeps two
    order = ["input", "candidate", "output"]
    [output_bias]
    zeros = true

    [specials]                                           # the source's words for ours, where they differ
    "<unk>" = "[UNK]"

The rules, in the order in which they are applied to each array:
- `slice = [start, stop]` takes rows; `transpose = true` turns a matrix round; then `from`, `sum`, `columns` or `rows`
  (stacked) joins them, or `zeros = true` stands for none; `tensor = "name"` alone is short for `from`;
- `order` names the three row blocks. Ours are forget, output, candidate, with c' = f c + (1 - f) g. A source whose gate
  is the coupled input gate i = 1 - f says `input`: its rows are negated, since 1 - sigmoid(z) = sigmoid(-z);
- a fused kernel of four gates (`nn.LSTM`, `keras.layers.LSTM`) is another cell, and is refused.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model_export.importing.refusal import BadImport
from model_export.network import EMBEDDING, KERNEL, KERNEL_BIAS, OUTPUT_BIAS, PROJECTION, NetworkSize, size_of
from wire_contract.layout import Tensors
from wire_contract.vocabulary import SPECIALS

TENSORS: Final = (EMBEDDING, KERNEL, PROJECTION, KERNEL_BIAS, OUTPUT_BIAS)
MAX_MAP_BYTES: Final = 65_536
_JOINS: Final = ("from", "sum", "columns", "rows", "zeros")
_GATES: Final = ("forget", "output", "candidate")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one fleet tensor is made; `join` is one of `_JOINS`, `order` empty where the rows are no gates."""

    join: str
    sources: tuple[str, ...] = ()
    transpose: bool = False
    rows: tuple[int, int] | None = None
    order: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NameMap:
    """Recipes by fleet tensor, and the source's words for our specials."""

    recipes: Mapping[str, Recipe]
    specials: Mapping[str, str]


OUR_NAMES: Final = NameMap({name: Recipe("from", (name,)) for name in TENSORS}, {})
# What Keras writes of `keras_network.NextWordModel`: variables by the object that holds them, in order of making.
KERAS_NAMES: Final = NameMap(
    {
        EMBEDDING: Recipe("from", ("vars/0",)),
        OUTPUT_BIAS: Recipe("from", ("vars/1",)),
        KERNEL: Recipe("from", ("cell/vars/0",)),
        KERNEL_BIAS: Recipe("from", ("cell/vars/1",)),
        PROJECTION: Recipe("from", ("cell/vars/2",)),
    },
    {},
)


def parse_name_map(data: bytes) -> NameMap:
    """Read a name map. Raises `BadImport`; an unknown key is refused by its name."""
    if len(data) > MAX_MAP_BYTES:
        raise BadImport(f"a name map has at most {MAX_MAP_BYTES} bytes, got {len(data)}")
    try:
        tables = tomllib.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as e:
        raise BadImport(f"a name map is TOML in UTF-8: {e}") from e
    unknown = sorted(set(tables) - set(TENSORS) - {"specials"})
    if unknown:
        raise BadImport(f"a name map has the tables {', '.join(TENSORS)} and specials, got {unknown[:5]}")
    missing = [name for name in TENSORS if name not in tables]
    if missing:
        raise BadImport(f"a name map says where each tensor comes from, and says nothing of {', '.join(missing)}")
    return NameMap({name: _recipe(name, tables[name]) for name in TENSORS}, _specials(tables.get("specials", {})))


def _recipe(name: str, table: Any) -> Recipe:
    if isinstance(table, str):
        return Recipe("from", (table,))
    if not isinstance(table, dict):
        raise BadImport(f"{name} is a name or a table, got {table!r:.60}")
    unknown = sorted(set(table) - {*_JOINS, "transpose", "slice", "order"})
    if unknown:
        raise BadImport(f"{name} takes {', '.join(_JOINS)}, transpose, slice and order, got {unknown[:5]}")
    joins = [join for join in _JOINS if join in table]
    if len(joins) != 1:
        raise BadImport(f"{name} takes one of {', '.join(_JOINS)}, got {joins}")
    (join,) = joins
    value, transpose = table[join], table.get("transpose", False)
    if join == "zeros":
        if value is not True or len(table) > 1 or name not in (KERNEL_BIAS, OUTPUT_BIAS):
            raise BadImport(f"zeros = true stands alone and for a bias, got {name}: {table!r:.80}")
        return Recipe("zeros")
    sources = [value] if join == "from" else value
    if (
        not isinstance(sources, list)
        or not sources
        or len(sources) > 16
        or not all(isinstance(s, str) for s in sources)
    ):
        raise BadImport(
            f"{name}.{join} is {'a name' if join == 'from' else 'a list of 1 to 16 names'}, got {value!r:.60}"
        )
    if not isinstance(transpose, bool):
        raise BadImport(f"{name}.transpose is true or false, got {transpose!r:.40}")
    return Recipe(join, tuple(sources), transpose, _slice(name, table.get("slice")), _order(name, table.get("order")))


def _slice(name: str, value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    if not (isinstance(value, list) and len(value) == 2 and all(type(n) is int for n in value)):
        raise BadImport(f"{name}.slice is [start, stop], got {value!r:.60}")
    start, stop = value
    if not 0 <= start < stop:
        raise BadImport(f"{name}.slice begins before it ends, got {value!r:.60}")
    return start, stop


def _order(name: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if name not in (KERNEL, KERNEL_BIAS):
        raise BadImport(f"order says how gates are stacked in {KERNEL} and {KERNEL_BIAS}, got it for {name}")
    if isinstance(value, list) and "input" in value and "forget" in value:
        raise BadImport(
            f"{name}.order has three gates, forget and input being coupled, got {value!r:.60}: an LSTM with separate "
            "gates is another cell and cannot be imported"
        )
    if not isinstance(value, list) or sorted("forget" if g == "input" else str(g) for g in value) != sorted(_GATES):
        raise BadImport(f"{name}.order names forget (or input), output and candidate once each, got {value!r:.60}")
    return tuple(value)


def _specials(table: Any) -> dict[str, str]:
    if not isinstance(table, dict) or any(
        ours not in SPECIALS or not isinstance(theirs, str) for ours, theirs in table.items()
    ):
        raise BadImport(f"specials name the source's words for {', '.join(SPECIALS)}, got {table!r:.80}")
    if len(set(table.values())) != len(table):
        raise BadImport(f"specials are different words, got {table!r:.80}")
    return dict(table)


def default_map(arrays: Mapping[str, NDArray[np.generic]]) -> NameMap:
    """Return the map for arrays that carry our own names, or Keras's for our model. Raises `BadImport`."""
    for known in (OUR_NAMES, KERAS_NAMES):
        if all(recipe.sources[0] in arrays for recipe in known.recipes.values()):
            return known
    raise BadImport(f"without a name map the source's arrays are called {', '.join(TENSORS)}, got {sorted(arrays)[:8]}")


def assemble(arrays: Mapping[str, NDArray[np.generic]], names: NameMap) -> tuple[NetworkSize, Tensors]:
    """Return the network's size and float32 tensors, the embedding's rows still in the source's order.

    Raises `BadImport` where an array is missing, of another type or shape, or not finite.
    """
    made = {name: _made(name, recipe, arrays) for name, recipe in names.recipes.items() if recipe.join != "zeros"}
    for name in (EMBEDDING, PROJECTION):
        if made[name].ndim != 2:
            raise BadImport(f"{name} is a matrix, got shape {made[name].shape}")
    words, width = made[EMBEDDING].shape
    if made[PROJECTION].shape[0] != width:
        raise BadImport(
            f"projection is [{width}, cells] beside an embedding of width {width}, got {made[PROJECTION].shape}"
            " (transpose = true turns it round)"
        )
    cells = made[PROJECTION].shape[1]
    if made[KERNEL].shape[:1] == (4 * cells,):
        raise BadImport(
            f"kernel has three gates of {cells} rows (forget, output, candidate), got {4 * cells} rows: a fused kernel "
            "of four gates belongs to an LSTM with separate input and forget gates, which is another cell"
        )
    if names.recipes[KERNEL_BIAS].join == "zeros":
        made[KERNEL_BIAS] = np.zeros(3 * cells, np.float32)
    if names.recipes[OUTPUT_BIAS].join == "zeros":
        made[OUTPUT_BIAS] = np.zeros(words, np.float32)
    for name in (KERNEL, KERNEL_BIAS):
        made[name] = _gates(name, made[name], names.recipes[name].order, cells)
    tensors = {name: np.ascontiguousarray(made[name], np.float32) for name in TENSORS}
    try:
        return size_of(tensors), tensors
    except ValueError as e:
        raise BadImport(str(e)) from e


def unused(arrays: Mapping[str, NDArray[np.generic]], names: NameMap) -> list[str]:
    """Return the names of floating-point arrays that the map does not take, in order."""
    taken = {id(arrays[source]) for recipe in names.recipes.values() for source in recipe.sources if source in arrays}
    return sorted(n for n, value in arrays.items() if value.dtype.kind == "f" and id(value) not in taken)


def _made(name: str, recipe: Recipe, arrays: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float32]:
    parts = [_part(name, source, recipe, arrays) for source in recipe.sources]
    try:
        if recipe.join == "sum":
            if len({part.shape for part in parts}) != 1:
                raise ValueError(f"shapes differ: {[part.shape for part in parts]}")
            return np.asarray(np.sum(parts, axis=0), np.float32)
        if recipe.join == "columns":
            return np.asarray(np.concatenate(parts, axis=1), np.float32)
        if recipe.join == "rows":
            return np.asarray(np.concatenate(parts, axis=0), np.float32)
    except ValueError as e:
        raise BadImport(f"{name} is {recipe.join} of {', '.join(recipe.sources)}, which do not fit: {e}") from e
    return np.asarray(parts[0], np.float32)


def _part(name: str, source: str, recipe: Recipe, arrays: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float64]:
    value = arrays.get(source)
    if value is None:
        raise BadImport(f"{name} comes from {source!r}, and the source has {sorted(arrays)[:12]}")
    if value.dtype.kind != "f" or value.ndim not in (1, 2):
        raise BadImport(
            f"{name} is a vector or a matrix of floats, got {value.dtype} of shape {value.shape} in {source!r}"
        )
    exact = value.astype(np.float64)
    if not np.isfinite(exact).all() or (np.abs(exact) > np.finfo(np.float32).max).any():
        raise BadImport(f"weights are finite, got NaN or Inf in {source!r}")
    if recipe.rows is not None:
        start, stop = recipe.rows
        if stop > len(exact):
            raise BadImport(f"{name}.slice lies inside {source!r} of {len(exact)} rows, got {start}..{stop}")
        exact = exact[start:stop]
    if recipe.transpose:
        if exact.ndim != 2:
            raise BadImport(f"only a matrix is transposed, got shape {exact.shape} in {source!r}")
        exact = exact.T
    return exact


def _gates(name: str, value: NDArray[np.float32], order: tuple[str, ...], cells: int) -> NDArray[np.float32]:
    if value.shape[0] != 3 * cells:
        raise BadImport(f"{name} has three gates of {cells} rows, got shape {value.shape}")
    if not order:
        return value
    blocks = {gate: value[i * cells : (i + 1) * cells] for i, gate in enumerate(order)}
    if "input" in blocks:
        blocks["forget"] = -blocks["input"]
    return np.concatenate([blocks[gate] for gate in _GATES])
