r"""The operator network: learned mixing of operators before each product, several products deep.

Blocks of operators (screened potential, overlap) between atoms i and j, coupled to irreps
:math:`b_{ij}^{kLM}` with a channel k for each operator and pair of shells, are mixed by learned
weights, :math:`\varphi_{ij}^{cLM} = \sum_k W^L_{kc}\, a_{Z_i Z_j k}\, b_{ij}^{kLM}`, and gated by
functions of their own scalars, :math:`g_c(b_{ij}^{k00})`. A layer multiplies this operator with
the features of the atoms and takes products of the result with itself,

.. math::
    A_i = \sum_j (g \varphi)_{ij} \otimes h_j + W b_{ii}, \qquad
    h_i' = W (A, A^2, A^3, A^4)_i, \qquad E = \sum_i e_{Z_i} + f(h_i, h_i', ...)

with Clebsch-Gordan products throughout. In the first layer h is the element alone, so A is a
learned, gated version of the rows of V, and two layers contain :math:`\sum_j V_{ij} V_{jk}` with
learned weights between the factors.

Relation to others: with spherical harmonics times radial functions in place of the blocks this
would be MACE (Batatia et al., arXiv:2206.07697); blocks bring the angular functions, the radial
shape of the basis, and the surroundings of each pair, since :math:`V_{ij}` holds the potential of
all atoms. Matrix function networks (Batatia et al., arXiv:2310.10434) learn the operator from
geometry and take functions of it; here the operator is physics, and what is learned is how its
blocks mix (Nigam, Smidt, Dusson, arXiv:2602.15345).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ..basis import AOLayout, layout_of
from ..errors import ConfigError, one_of, refusal
from ..features import PairFeatures, clebsch_gordan
from ..features.inputs import OPERATORS
from ..numerics import Array, einsum
from ..structures import Structure, StructureBatch
from .definition import Definition

Params = dict[str, Any]

REACH = 1e-8
"""Floor of squared overlaps: pairs weaker than its root are not lifted any further."""

BOUND = 4.0
"""Standardised inputs saturate here. Overlaps of tight functions span many orders of magnitude; one
unusually close pair would otherwise be raised to the fourth power by the products."""


@dataclasses.dataclass(frozen=True)
class OperatorNetworkConfig:
    """What the network is made of.

    Attributes:
      basis: basis set of the input operators.
      operators: which operators; ``"overlap"`` must be among them, it measures how close atoms are.
      channels: channels of every irrep.
      layers: products with the operator.
      lmax: highest irrep inside a layer (twice the basis's highest l if that is less).
      message_lmax: highest irrep that atoms send to each other.
      hidden: width of the gates and of the readout.
    """

    basis: str = "even-tempered"
    operators: tuple[str, ...] = ("screened_potential", "overlap")
    channels: int = 32
    layers: int = 2
    lmax: int = 3
    message_lmax: int = 1
    hidden: int = 64

    def __post_init__(self):
        for name in self.operators:
            one_of("model.operators", name, [*OPERATORS])
        if "overlap" not in self.operators:
            raise ConfigError(
                refusal("model.operators", got=self.operators, expected="'overlap' among them")
            )
        sizes = {k: getattr(self, k) for k in ("channels", "layers", "hidden")}
        if min(sizes.values()) < 1 or not 0 <= self.message_lmax <= self.lmax:
            raise ConfigError(
                refusal(
                    "model",
                    got=f"{sizes}, lmax {self.lmax}, message_lmax {self.message_lmax}",
                    expected="positive sizes and 0 <= message_lmax <= lmax",
                )
            )

    @property
    def members(self) -> int:
        """One network, no ensemble."""
        return 1

    @property
    def operator(self) -> str:
        """The first operator, for pictures."""
        return self.operators[0]


# irreps of natural parity (-1)^L only, components first: (2 L + 1, ..., channels)
Irreps = dict[int, Array]


@functools.lru_cache(maxsize=64)
def _products(l1s: tuple[int, ...], l2s: tuple[int, ...], ls: tuple[int, ...], square: bool):
    """Clebsch-Gordan products of two sets of irreps as one matrix.

    Returns:
      Matrix ``(sum of (2 L + 1) over paths, components of the outer product)``; number of paths
      to each L; for a square the index pairs of its outer product (upper triangle), else None.
    """
    starts = [np.cumsum([0] + [2 * l + 1 for l in row]) for row in (l1s, l2s)]
    rows, paths = [], {}
    for l in ls:
        paths[l] = 0
        for a, l1 in enumerate(l1s):
            for b, l2 in enumerate(l2s):
                natural = (l1 + l2 + l) % 2 == 0 and abs(l1 - l2) <= l <= l1 + l2
                if not natural or (square and l2 < l1):
                    continue
                c = np.zeros((starts[0][-1], starts[1][-1], 2 * l + 1))
                own = np.s_[starts[0][a] : starts[0][a + 1], starts[1][b] : starts[1][b + 1]]
                c[own] = clebsch_gordan(l1, l2, l)
                rows.append(c)
                paths[l] += 1
    matrix = np.concatenate(rows, axis=-1)
    if not square:
        return np.moveaxis(matrix, -1, 0).reshape(matrix.shape[-1], -1), paths, None
    i, j = np.triu_indices(len(matrix))
    both = matrix + np.swapaxes(matrix, 0, 1)
    upper = both[i, j] * np.where(i == j, 0.5, 1.0)[:, None]
    return upper.T, paths, (i, j)


def _split(x: Array, paths: dict[int, int]) -> Irreps:
    """Rows of a product to ``{L: (2 L + 1, ..., paths * channels)}``."""
    out, start = {}, 0
    for l, n in paths.items():
        part = x[start : start + n * (2 * l + 1)].reshape(n, 2 * l + 1, *x.shape[1:])
        start += n * (2 * l + 1)
        part = jnp.moveaxis(part, 0, -2)
        out[l] = part.reshape(*part.shape[:-2], -1)
    return out


def _multiply(x: Irreps, y: Irreps | None, ls: tuple[int, ...]) -> Irreps:
    """Products channel by channel, all paths to ``ls``; ``y=None`` squares x."""
    a = jnp.concatenate([*x.values()], axis=0)
    if y is None:
        matrix, paths, pairs = _products(tuple(x), tuple(x), ls, True)
        assert pairs is not None  # of a square
        i, j = pairs
        outer = a[i] * a[j]
    else:
        b = jnp.concatenate([*y.values()], axis=0)
        matrix, paths, _ = _products(tuple(x), tuple(y), ls, False)
        outer = (a[:, None] * b[None]).reshape(-1, *a.shape[1:])
    flat = einsum("pq,qr->pr", matrix.astype(a.dtype), outer.reshape(len(outer), -1))
    return _split(flat.reshape(-1, *a.shape[1:]), paths)


def _bounded(x: Array) -> Array:
    """Irreps ``(2 L + 1, ...)`` shortened to at most :data:`BOUND` a component, smoothly."""
    return x / jnp.sqrt(1.0 + jnp.mean(x**2, axis=0) / BOUND**2)


def _looked_up(hot: Array, table: Array) -> Array:
    """Rows ``(..., k)`` of a table ``(n_kinds, k)`` by one-hot vectors ``(..., n_kinds)``."""
    return einsum("...e,ek->...k", hot, jnp.asarray(table, hot.dtype))


class _Network(nn.Module):
    """The layers: weights in ``params``, fixed scales measured at initialisation in ``norms``."""

    config: OperatorNetworkConfig
    n_elements: int

    def normal(self, name: str, shape: tuple[int, ...], fan: int, gain: float = 1.0):
        def init(key):
            return jax.random.normal(key, shape, jnp.float32) * (gain / fan**0.5)

        return self.param(name, init)

    def level(self, name: str, x: Array) -> Array:
        """The values over the root mean square they had at initialisation."""
        norm = self.variable(
            "norms",
            f"norm_{name}",
            lambda: 1.0 / jnp.sqrt(jnp.mean(x**2) + 1e-12).astype(jnp.float32),
        )
        return x * norm.value.astype(x.dtype)

    def by_element(self, name: str, x: Array, n_out: int, hot: Array) -> Array:
        """Mixing of the last axis with weights of the atom's element."""
        w = self.normal(name, (x.shape[-1], self.n_elements * n_out), x.shape[-1])
        y = einsum("...k,kc->...c", x, w.astype(x.dtype)).reshape(
            *x.shape[:-1], self.n_elements, n_out
        )
        return einsum("mbnzc,bnz->mbnc", y, hot)

    def mixed(self, name: str, x: Array, n_out: int) -> Array:
        w = self.normal(name, (x.shape[-1], n_out), x.shape[-1])
        return einsum("...k,kc->...c", x, w.astype(x.dtype))

    @nn.compact
    def __call__(
        self, edges: Irreps, on_site: Irreps, scalars: Array, hot: Array, mask: Array
    ) -> tuple[Array, Array]:
        """Energies of atoms.

        Args:
          edges: ``{L: (2 L + 1, b, n, n, k)}`` standardised blocks, zero for i = j and padding.
          on_site: ``{L: (2 L + 1, b, n, k)}``.
          scalars: ``(b, n, n, s)`` standardised inputs of the gates.
          hot: ``(b, n, n_elements)``.
          mask: ``(b, n, n)`` 1 for pairs of different atoms.

        Returns:
          ``(b, n)`` energies in the units of the targets, and ``(b, n, features)`` the scalars
          they are made of.
        """
        cfg, e, c = self.config, self.n_elements, self.config.channels
        ls = tuple(edges)  # a basis of s and p functions has nothing above L = 2
        sent = tuple(l for l in ls if l <= cfg.message_lmax)
        dtype = scalars.dtype
        pair = einsum("biz,bjy->bijzy", hot, hot).reshape(*mask.shape, e * e)
        phi = {}
        for l in ls:
            gain = self.param(
                f"gain_{l}", lambda key, n=edges[l].shape[-1]: jnp.ones((e * e, n), jnp.float32)
            )
            own = edges[l] * _looked_up(pair, gain)
            phi[l] = self.mixed(f"mix_{l}", own, c)
        h: Irreps = {}
        collected, total = [], 0.0
        for t in range(cfg.layers):
            first, last = t == 0, t + 1 == cfg.layers
            bias = self.normal(f"gate_{t}_pair", (e * e, cfg.hidden), 1)
            g = jax.nn.silu(self.mixed(f"gate_{t}_0", scalars, cfg.hidden) + _looked_up(pair, bias))
            g = jax.nn.silu(self.mixed(f"gate_{t}_1", g, cfg.hidden))
            g = self.mixed(f"gate_{t}_2", g, c * len(ls)).reshape(*g.shape[:-1], len(ls), c)
            operator = [g[..., i, :] * phi[l] for i, l in enumerate(ls)]
            a: Irreps = {}
            if first:
                received = {l: part.sum(axis=3) for l, part in zip(ls, operator, strict=True)}
            else:
                # operator times vector: neighbours are summed before irreps are coupled
                whole = jnp.concatenate(operator, axis=0)
                vector = jnp.concatenate([h[l] for l in sent], axis=0)
                outer = einsum("mbijc,qbjc->mqbic", whole, vector)
                matrix, paths, _ = _products(ls, sent, ls, False)
                flat = einsum("pq,qr->pr", matrix.astype(dtype), outer.reshape(len(matrix[0]), -1))
                received = _split(flat.reshape(-1, *outer.shape[2:]), paths)
            for l in ls:
                a[l] = self.mixed(f"sum_{t}_{l}", self.level(f"sum_{t}_{l}", received[l]), c)
                if first:
                    a[l] += self.by_element(f"on_site_{l}", on_site[l], c, hot)
                elif l in sent:
                    a[l] += self.by_element(f"self_{t}_{l}", h[l], c, hot)
                a[l] = self.level(f"a_{t}_{l}", a[l])
            squares = _multiply(a, None, ls)
            a2 = {}
            for l in ls:
                x = self.level(f"square_{t}_{l}", squares[l])
                x = self.by_element(f"square_{t}_{l}", x, c, hot)
                a2[l] = self.level(f"a2_{t}_{l}", x)
            wanted = (0,) if last else sent
            cubes, fourths = _multiply(a2, a, wanted), _multiply(a2, None, wanted)
            h = {}
            for l in wanted:
                x = [
                    self.level(f"cube_{t}_{l}", cubes[l]),
                    self.level(f"fourth_{t}_{l}", fourths[l]),
                ]
                x = jnp.concatenate([a[l], a2[l], *x], axis=-1)
                if l == 0:
                    collected.append(x[0])
                h[l] = self.level(f"h_{t}_{l}", self.by_element(f"h_{t}_{l}", x, c, hot))
            total = total + einsum(
                "bnc,bnz,zc->bn",
                h[0][0],
                hot,
                self.normal(f"read_{t}", (e, c), c, 0.1).astype(dtype),
            )
        offset = self.param("read_bias", nn.initializers.zeros, (e, cfg.hidden // 2), jnp.float32)
        hidden = self.mixed("read_in", h[0][0], cfg.hidden // 2) + _looked_up(hot, offset)
        out = self.normal("read_out", (cfg.hidden // 2,), cfg.hidden // 2, 0.1)
        total = total + einsum("bnh,h->bn", jax.nn.silu(hidden), out.astype(dtype))
        return total, jnp.concatenate(collected, axis=-1)


@dataclasses.dataclass(frozen=True, eq=False)
class OperatorNetwork(Definition):
    """The network's pure functions."""

    config: OperatorNetworkConfig

    @functools.cached_property
    def recipe(self) -> PairFeatures:
        """The pair features this model reads."""
        powers = {name: (1,) for name in self.config.operators}
        return PairFeatures(self.basis.spec, powers, self.config.lmax)

    @functools.cached_property
    def _columns(self):
        """Where irreps of natural parity are among the features, by L, and the transposition.

        ``({L: (channels, 2 L + 1) columns of the inputs}, feature columns kept, columns of the
        reversed pair, channel objects by L)``.
        """
        start, first, kept, own, place = 0, 0, [], {}, {}
        for mul, ir in self.recipe.irreps:
            channels = self.recipe.channels[first : first + mul]
            first += mul
            if ir.p == (-1) ** ir.l:
                columns = len(kept) + np.arange(mul * ir.dim).reshape(mul, ir.dim)
                own[ir.l] = columns
                kept.extend(range(start, start + mul * ir.dim))
                for channel, row in zip(channels, columns, strict=True):
                    place[channel] = row
            start += mul * ir.dim
        reverse = np.zeros(len(kept), np.int64)
        for channel, row in place.items():
            other = dataclasses.replace(
                channel, l1=channel.l2, n1=channel.n2, l2=channel.l1, n2=channel.n1
            )
            reverse[row] = place[other]  # natural parity: transposition brings no sign
        return own, np.array(kept), reverse, list(place)

    @functools.cached_property
    def _scalars(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Columns of all scalars, of those between s functions, and of their overlaps."""
        scalars = [i for i, c in enumerate(self._columns[3]) if c.l == 0]
        channels = [self._columns[3][i] for i in scalars]
        column = self._columns[0][0][:, 0]
        s = np.array([c.l1 == c.l2 == 0 for c in channels])
        overlaps = np.array([c.operator == "overlap" for c in channels]) & s
        return column, column[s], column[overlaps]

    def descriptors(
        self, structure: Structure | StructureBatch, params: Params | None = None
    ) -> tuple[Array, dict]:
        """The :meth:`inputs`, which need no parameters, and no other irreps: for the cache."""
        return self.inputs(structure), {}

    def inputs(self, structure: Structure | StructureBatch) -> Array:
        """Irreps of the blocks of atom pairs i <= j, differentiable in positions.

        Returns:
          ``(n_pairs, n_columns)`` for the pairs of ``np.triu_indices(n_atoms)``; a batch adds a
          leading axis. No parameter enters them.
        """
        n = structure.n_atoms
        pairs = np.stack(np.triu_indices(n), axis=-1)
        operators = {k: OPERATORS[k](structure, self.basis) for k in self.config.operators}
        if isinstance(layout_of(structure, self.basis), AOLayout):
            found = self.recipe(operators, pairs).array
        else:
            where = jnp.broadcast_to(pairs, (len(structure.numbers), *pairs.shape))
            found = self.recipe(operators, where).array
        return found[..., self._columns[1]]

    def _full(self, inputs: Array, n: int) -> Array:
        """All ordered pairs ``(..., n, n, columns)``."""
        i, j = np.triu_indices(n)
        index = np.zeros((n, n), np.int64)
        index[i, j] = index[j, i] = np.arange(len(i))
        x = inputs[..., index, :]
        lower = np.tril(np.ones((n, n), bool), -1)[:, :, None]
        return jnp.where(lower, x[..., self._columns[2]], x)

    def _lift(self, x: Array) -> Array:
        """Inverse root of the overlap of s functions: makes far pairs visible, smoothly."""
        return (jnp.sum(x[..., self._scalars[2]] ** 2, axis=-1) + REACH) ** -0.25

    def _gate_inputs(self, x: Array) -> Array:
        """Scalars of pairs; those of s functions also compressed, to see far and near alike."""
        own = x[..., self._scalars[0]]
        s = x[..., self._scalars[1]] ** 2
        return jnp.concatenate([own, (s + 1e-12) ** 0.25, (s + 1e-16) ** 0.125], axis=-1)

    def fit_scaler(self, inputs: Array, one_hot: Array) -> Params:
        """Means and inverse spreads of the inputs of each pair of elements.

        Args:
          inputs: ``(n, n_pairs, n_columns)`` of a training set.
          one_hot: ``(n, n_atoms, n_elements)``.
        """
        n_atoms, e = one_hot.shape[1:]
        x = np.asarray(self._full(inputs, n_atoms))
        lift = np.asarray(self._lift(x))[..., None]
        gates = np.asarray(self._gate_inputs(x))
        off = ~np.eye(n_atoms, dtype=bool)
        k, s = x.shape[-1], gates.shape[-1]
        out = {
            "edges": np.zeros((e * e, k)),
            "on_site": np.zeros((e, k)),
            "on_site_mean": np.zeros((e, k)),
            "gates": np.zeros((e * e, s)),
            "gates_mean": np.zeros((e * e, s)),
        }
        groups = [rows for block in self._columns[0].values() for rows in block]
        for a in range(e):
            for b in range(e):
                real = one_hot[:, :, None, a] * one_hot[:, None, :, b] * off > 0
                if not real.any():
                    continue
                own, g = (x * lift)[real], gates[real]
                for rows in groups:
                    rms = np.sqrt(np.mean(own[:, rows] ** 2))
                    out["edges"][a * e + b, rows] = 1.0 / rms if rms > 1e-6 else 0.0
                out["gates_mean"][a * e + b] = g.mean(axis=0)
                # a floor, lest what hardly varies in training explodes elsewhere
                spread = np.maximum(g.std(axis=0), 1e-2 * np.abs(g).max(axis=0) + 1e-8)
                out["gates"][a * e + b] = 1.0 / spread
            i = np.arange(n_atoms)
            own = x[:, i, i][one_hot[..., a] > 0]
            for rows in groups:
                mean = own[:, rows].mean(axis=0) if len(rows) == 1 else 0.0
                rms = np.sqrt(np.mean((own[:, rows] - mean) ** 2))
                out["on_site_mean"][a, rows] = mean
                least = 1e-6 + 1e-4 * np.abs(own[:, rows]).max()
                out["on_site"][a, rows] = 1.0 / rms if rms > least else 0.0
        return out

    def _prepared(self, scaler: Params, inputs: Array, one_hot: Array):
        n, e = one_hot.shape[-2:]
        dtype = inputs.dtype
        hot = jnp.asarray(one_hot, dtype)
        pair = einsum("biz,bjy->bijzy", hot, hot).reshape(*hot.shape[:2], n, e * e)
        mask = pair.sum(axis=-1) * (1.0 - jnp.eye(n, dtype=dtype))
        of_pair = {k: _looked_up(pair, scaler[k]) for k in ("edges", "gates", "gates_mean")}
        of_atom = {k: _looked_up(hot, scaler[k]) for k in ("on_site", "on_site_mean")}
        x = self._full(inputs, n)
        scalars = (self._gate_inputs(x) - of_pair["gates_mean"]) * of_pair["gates"]
        scalars = BOUND * jnp.tanh(scalars / BOUND)
        edges = x * (self._lift(x) * mask)[..., None] * of_pair["edges"]
        on_site = (einsum("biik->bik", x) - of_atom["on_site_mean"]) * of_atom["on_site"]
        columns = self._columns[0]
        return (
            {l: _bounded(jnp.moveaxis(edges[..., rows.T], -2, 0)) for l, rows in columns.items()},
            {l: _bounded(jnp.moveaxis(on_site[..., rows.T], -2, 0)) for l, rows in columns.items()},
            scalars,
            hot,
            mask,
        )

    @property
    def module(self) -> _Network:
        """The Linen module."""
        return _Network(self.config, len(self.basis.elements))

    def init(self, key: jax.Array, scaler: Params, inputs: Array, one_hot: Array) -> Params:
        """Random weights, with scales measured on ``inputs`` (a few molecules)."""
        prepared = self._prepared(scaler, inputs, one_hot)
        return self.module.init(key, *prepared)  # pyright: ignore[reportReturnType]  # a plain dict

    def atoms(self, params: Params, inputs: Array, one_hot: Array) -> tuple[Array, Array]:
        """Energies of atoms in units of the scale, and their features; batches only."""
        variables = {"params": params["network"], "norms": params["norms"]}
        prepared = self._prepared(params["scaler"], inputs, one_hot)
        # no mutable state beside it
        return self.module.apply(variables, *prepared)  # pyright: ignore[reportReturnType]

    def readout(self, params: Params, inputs: Array, one_hot: Array) -> Array:
        """Energies ``(n,)`` in Hartree of a batch, from :meth:`inputs` and :meth:`one_hot`."""
        hot = jnp.asarray(one_hot, inputs.dtype)
        local, features = self.atoms(params, inputs, hot)
        if "readout" in params:
            w = jnp.asarray(params["readout"], inputs.dtype)
            local = local + einsum("bnf,zf,bnz->bn", features, w, hot)
        energy = params["scale"] * jnp.sum(local * hot.sum(axis=-1), axis=-1)
        return energy + einsum("bnz,z->b", jnp.asarray(one_hot), params["offsets"])

    def apply(self, params: Params, structure: Structure | StructureBatch) -> dict[str, Array]:
        """Energy in Hartree, ``()``; a batch adds a leading axis.

        The network runs in the precision of the positions; parameters are float32.
        """
        single = not isinstance(structure, StructureBatch)
        inputs, one_hot = self.inputs(structure), self.one_hot(structure)
        if single:
            inputs, one_hot = inputs[None], one_hot[None]
        energy = self.readout(params, inputs, one_hot)
        return {"energy": energy[0] if single else energy}
