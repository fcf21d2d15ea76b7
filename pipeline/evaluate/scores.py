"""Scores by tiles: the matrix of all users and all items exists a tile at a time.

Tiles have one fixed shape and are filled up with zeros at the edges, so a score does not depend on
how many users are scored together, or on how many workers.
"""

from typing import Any, Protocol

import torch

# Queries x items of a tile, by kind of device. Part of the result: another shape may round
# otherwise. On a CPU the tile (2 MB) and its slice of the table share the cache.
TILES = {"cpu": (128, 4096), "cuda": (256, 16384)}


class Scores(Protocol):
    """Scores of ``rows`` queries for items 0..``columns - 1`` that are produced by tiles.

    Workers may rank together: then each has the queries of all, equally many rows of each worker,
    of which ``own`` are asked by this one, and the scores of the items ``held`` alone, which lie in
    ``tiles``; a tile is zero elsewhere.

    ``tile(q, i)`` is the tile of queries ``q * shape[0]`` and items ``i * shape[1]`` onwards,
    ``[shape[0], shape[1]]``, zero (or a bias) past the edges; the caller may write on it, and the
    next call may reuse it. ``guess`` is about the score of ``targets[j]`` for query ``at[j]`` of
    row of tiles ``q``; where it is the exact score of the tile, ranking takes one pass, not two.
    """

    rows: int
    columns: int
    shape: tuple[int, int]
    device: torch.device
    dtype: torch.dtype
    together: bool
    own: slice
    held: range
    tiles: range

    def tile(self, q: int, i: int) -> torch.Tensor:
        """One tile of scores."""

    def guess(self, q: int, at: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Scores of pairs (``at``, ``targets``), both int64 ``[p]``; result ``[p]``.

        Zero for targets that are not held here.
        """

    def everyone(self, value: Any) -> list[Any]:
        """The value of each of the workers that rank together, on all of them."""

    def dealt_back(self, tensor: torch.Tensor) -> torch.Tensor:
        """What each of the workers that rank together found of this one's queries.

        tensor: ``[rows, k]``, of all queries; result ``[own, workers, k]``.
        """

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """Summed over the workers that rank together, in place."""


class LocalScores:
    """What is common to scores of all items by one worker alone."""

    together = False

    def __init__(self, rows: int, columns: int, device: torch.device) -> None:
        self.rows, self.columns, self.device = rows, columns, device
        self.shape = TILES[device.type]
        self.own, self.held = slice(0, rows), range(columns)
        self.tiles = range(-(-columns // self.shape[1]))

    def everyone(self, value: Any) -> list[Any]:
        """See ``Scores``."""
        return [value]

    def dealt_back(self, tensor: torch.Tensor) -> torch.Tensor:
        """See ``Scores``."""
        return tensor[:, None]

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """See ``Scores``."""
        return tensor


class TableScores(LocalScores):
    """``hidden @ table.T + bias`` in fp32, on the device of ``hidden``.

    hidden: fp32 ``[n, d]``. table: floating point ``[V + 1, d]``, row 0 is no item.
    bias: floating point ``[V + 1]``, or None.
    """

    def __init__(
        self, hidden: torch.Tensor, table: torch.Tensor, bias: torch.Tensor | None = None
    ) -> None:
        if hidden.dtype != torch.float32:
            raise TypeError(f"hidden states are ranked in float32, not {hidden.dtype}")
        super().__init__(len(hidden), len(table), hidden.device)
        self.dtype = hidden.dtype
        self._hidden, self._table = hidden.detach(), table.detach()
        self._bias = None if bias is None else bias.detach()
        queries, items = self.shape
        # Operands always lie at the start of buffers of their own: BLAS may round by alignment.
        self._queries = hidden.new_zeros(queries, hidden.shape[1])
        self._items = hidden.new_zeros(items, hidden.shape[1])
        self._biases = hidden.new_zeros(items)
        self._tile = hidden.new_empty(queries, items)
        self._loaded = -1  # the row of tiles whose queries are in the buffer

    def tile(self, q: int, i: int) -> torch.Tensor:
        """See ``Scores``."""
        width = self.shape[1]
        first, last = max(i * width, self.held.start), min((i + 1) * width, self.held.stop)
        here = slice(first - i * width, last - i * width)
        part = slice(first - self.held.start, last - self.held.start)
        for buffer, values in ((self._items, self._table), (self._biases, self._bias)):
            if values is not None:
                buffer[: here.start] = 0
                buffer[here] = values[part]
                buffer[here.stop :] = 0
        return self._product(q)

    def guess(self, q: int, at: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """See ``Scores``: exact wherever the product rounds alike in every column."""
        found = self._hidden.new_empty(len(at))
        width = self.shape[1]
        self._items.zero_()
        self._biases.zero_()
        for first in range(0, len(at), width):
            chosen = targets[first : first + width] - self.held.start
            self._items[: len(chosen)] = self._table[chosen]
            if self._bias is not None:
                self._biases[: len(chosen)] = self._bias[chosen]
            columns = torch.arange(len(chosen), device=self.device)
            found[first : first + width] = self._product(q)[at[first : first + width], columns]
        return found

    def _product(self, q: int) -> torch.Tensor:
        if self._loaded != q:
            queries = self._hidden[q * self.shape[0] : (q + 1) * self.shape[0]]
            self._queries[: len(queries)] = queries
            self._queries[len(queries) :] = 0
            self._loaded = q
        # ``out`` also keeps autocast away.
        if self._bias is None:
            return torch.mm(self._queries, self._items.T, out=self._tile)
        return torch.addmm(self._biases, self._queries, self._items.T, out=self._tile)


class DenseScores(LocalScores):
    """Scores that are already there: fp32 or fp64 ``[n, V + 1]``, also one expanded row.

    For small catalogues, and for scorers that are no product of hidden states and a table.
    """

    def __init__(self, scores: torch.Tensor) -> None:
        super().__init__(len(scores), scores.shape[1], scores.device)
        self.dtype = scores.dtype
        self._scores = scores
        self._tile = scores.new_empty(self.shape)

    def tile(self, q: int, i: int) -> torch.Tensor:
        """See ``Scores``."""
        queries, items = self.shape
        part = self._scores[q * queries : (q + 1) * queries, i * items : (i + 1) * items]
        if part.shape != self.shape:
            self._tile.zero_()
        self._tile[: part.shape[0], : part.shape[1]] = part
        return self._tile

    def guess(self, q: int, at: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """See ``Scores``: exact."""
        return self._scores[q * self.shape[0] + at, targets]


class SparseScores(LocalScores):
    """One score an item for all queries, and a few entries of each query that are added to it.

    base: floating point ``[V + 1]``. pairs: int64 ``[e]``, ascending, ``query * (V + 1) + item``;
    values ``[e]``, in the dtype of ``base``. For scorers that know something of few items only.
    """

    def __init__(
        self, rows: int, base: torch.Tensor, pairs: torch.Tensor, values: torch.Tensor
    ) -> None:
        super().__init__(rows, len(base), base.device)
        self.dtype = base.dtype
        self._base = base
        # One before all others, so that every search finds something.
        self._pairs = torch.cat([pairs.new_full((1,), -1), pairs])
        self._added = torch.cat([values.new_zeros(1), values])
        queries, items = self.shape
        row, column = pairs // self.columns, pairs % self.columns
        tile = (row // queries) * len(self.tiles) + column // items
        order = torch.sort(tile, stable=True).indices
        bounds = torch.arange(-(-rows // queries) * len(self.tiles) + 1, device=self.device)
        self._bounds = torch.searchsorted(tile[order], bounds).tolist()
        self._row, self._column = row[order] % queries, column[order] % items
        self._values = values[order]
        self._tile = base.new_zeros(self.shape)

    def tile(self, q: int, i: int) -> torch.Tensor:
        """See ``Scores``."""
        items = self.shape[1]
        base = self._base[i * items : (i + 1) * items]
        self._tile[:, : len(base)] = base
        self._tile[:, len(base) :] = 0
        number = q * len(self.tiles) + i
        part = slice(*self._bounds[number : number + 2])
        self._tile[self._row[part], self._column[part]] += self._values[part]
        return self._tile

    def guess(self, q: int, at: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """See ``Scores``: exact."""
        wanted = (q * self.shape[0] + at) * self.columns + targets
        place = torch.searchsorted(self._pairs, wanted, right=True) - 1
        added = torch.where(self._pairs[place] == wanted, self._added[place], 0)
        return self._base[targets] + added
