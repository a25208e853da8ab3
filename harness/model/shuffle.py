"""A model with its channels, values and neurons in another order: the same answers, up to the order of sums.

Three orders are free: that of the residual stream's channels, which norms follow; within a key-value head that of the
values, which attention averages one by one; and in an MLP that of the neurons. Nothing is rounded: each parameter keeps
its values and gives them other places.
"""

import torch
from torch import nn

from harness.contract.anatomy import Block
from harness.contract.decoder import Decoder
from harness.core.errors import UnsupportedModelError
from harness.model.basis import require_basis
from harness.model.roles import head_width, input_features, output_features
from harness.model.units import live_roles, neurons_of, positions
from harness.model.weights.linear import sites

_OF_QUERIES_AND_KEYS = ("q_", "k_", "query_", "key_")
"""What the names of norms begin with that are none of the values'."""


class Orders:
    """Which of the dense model's channels, and which output and input of a linear layer, is where.

    Attributes:
        channels: of the residual stream, an index tensor [width].
    """

    def __init__(self, channels: torch.Tensor) -> None:
        self.channels = channels
        self._rows: dict[nn.Module, torch.Tensor] = {}
        self._columns: dict[nn.Module, torch.Tensor] = {}

    def rows(self, linear: nn.Module) -> torch.Tensor:
        """Of its outputs, an index tensor [out]."""
        return self._rows.setdefault(linear, torch.arange(output_features(linear)))

    def columns(self, linear: nn.Module) -> torch.Tensor:
        """Of its inputs, an index tensor [in]."""
        return self._columns.setdefault(linear, torch.arange(input_features(linear)))


def new_orders(model: Decoder, seed: int) -> Orders:
    """A random order of the model's channels, values and neurons; no weight is read.

    Raises:
        UnsupportedModelError: the residual stream, the values of an attention or the neurons of an MLP have no other
            order, or see ``require_basis``.
        MethodError: a linear layer that another method computes.
    """
    stream = require_basis(model)
    generator = torch.Generator().manual_seed(seed)
    orders = Orders(torch.randperm(model.config.hidden_size, generator=generator))
    for norm in stream.norms:
        for site in norm.readers:
            orders.columns(site.module).copy_(orders.channels)
    for site in stream.writers:
        orders.rows(site.module).copy_(orders.channels)
    linears = {site.module for site in sites(model)}  # without those of branches that are out
    for block in model.live:
        roles = live_roles(model, block)
        if "output" in roles and roles["output"].module in linears:
            _order_values(model, block, orders, generator)
        if "down" in roles and roles["down"].module in linears:
            _order_neurons(model, block, orders, generator)
    return orders


def shuffled(model: Decoder, orders: Orders) -> dict[str, torch.Tensor]:
    """The model's parameters in other orders, by name."""
    stream = require_basis(model)
    values = {}
    for norm in stream.norms:
        for name, parameter in norm.module.named_parameters():
            values[f"{norm.name}.{name}"] = _taken(parameter, 0, orders.channels)
    for name, rows in stream.embeddings.items():
        values[name] = _taken(rows, 1, orders.channels)
    for site in sites(model, head=True):
        rows, columns = orders.rows(site.module), orders.columns(site.module)
        values[f"{site.name}.weight"] = site.stored(_taken(_taken(site.weight, 0, rows), 1, columns))
        if site.bias is not None:
            values[f"{site.name}.bias"] = _taken(site.bias, 0, rows)
    return values


def _taken(values: torch.Tensor, dimension: int, order: torch.Tensor) -> torch.Tensor:
    return values.detach().index_select(dimension, order.to(values.device))


def _order_values(model: Decoder, block: Block, orders: Orders, generator: torch.Generator) -> None:
    roles = live_roles(model, block)
    attention, output = block.attention.modules[0], roles["output"].module
    width = head_width(attention, model.config)
    places = positions(roles["value"]) if "value" in roles else torch.empty(0, dtype=torch.long)
    groups, heads = len(places) // width, input_features(output) // width
    if not groups or len(places) != groups * width or input_features(output) != heads * width or heads % groups:
        raise _unsupported(model, block, f"its values do not consist of heads of {width} features")
    of_linears = {id(weight) for part in roles.values() for weight in part.module.parameters()}
    for name, parameter in attention.named_parameters():
        if id(parameter) not in of_linears and not name.startswith(_OF_QUERIES_AND_KEYS):
            raise _unsupported(model, block, f"whether {name} belongs to the values is not known")
    order = torch.rand(groups, width, generator=generator).argsort()  # [kv heads, features]
    rows, columns = orders.rows(roles["value"].module), orders.columns(output)
    rows[places] = places.view(groups, width).gather(1, order).flatten()
    of_queries = order.repeat_interleave(heads // groups, 0)  # [heads, features]
    columns.copy_((torch.arange(heads)[:, None] * width + of_queries).flatten())


def _order_neurons(model: Decoder, block: Block, orders: Orders, generator: torch.Generator) -> None:
    neurons_of(model, block.index)  # refuses an MLP whose neurons hang together
    roles = live_roles(model, block)
    order = torch.randperm(input_features(roles["down"].module), generator=generator)
    for role in ("gate", "up"):
        if role in roles:
            rows, places = orders.rows(roles[role].module), positions(roles[role])
            rows[places] = places[order]
    orders.columns(roles["down"].module).copy_(order)


def _unsupported(model: Decoder, block: Block, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"{model.kind}: the values of layer {block.index} have no other order: {reason}")
