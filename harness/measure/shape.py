"""The shape of the model that ran: what a token costs in each layer, by the modules that are in place.

Taken after a method is attached, so that replaced linears, narrower branches and lighter weights show. It is
all that FLOPs, bytes and modelled times need besides a trace.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Self, cast

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.contract.anatomy import Branch
    from harness.contract.decoder import Decoder


class Linears(BaseModel):
    """Linear layers that run together.

    Attributes:
        macs: multiply-accumulates per token; for dense layers, their parameters (biases left out).
        bytes: bytes of their weights, read once per pass.
        more: where another product reads other bytes, from how many tokens of a pass on, and how many more.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    macs: int
    bytes: int
    more: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, modules: Iterable["nn.Module"]) -> Self:
        """The linear layers among the modules and inside them."""
        linears = [linear for module in modules for linear in _linears(module)]
        return cls(macs=sum(map(_macs, linears)), bytes=sum(map(_weight_bytes, linears)), more=_more(linears))

    def read(self, tokens: float) -> int:
        """Bytes of weights that a pass over so many tokens reads."""
        return self.bytes + sum(more for start, more in self.more if tokens >= start)

    @property
    def least(self) -> int:
        """Bytes that a pass over any number of tokens reads at the least."""
        return min(self.read(tokens) for tokens in (1, *(start for start, _ in self.more)))


class Routed(BaseModel):
    """Experts of which each token runs some.

    Attributes:
        count: how many there are.
        per_token: how many of them each token runs.
        bytes: bytes of one expert's weights, read once per pass in which a token runs it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int
    per_token: int
    bytes: int

    def hit_bytes(self, tokens: int) -> int:
        """Bytes of the experts that so many tokens hit at most, in one pass: exact for one token."""
        return min(self.count, self.per_token * tokens) * self.bytes


class LayerShape(BaseModel):
    """One dense layer.

    Attributes:
        attention: the linears of attention that run on the queries: the projections to queries, keys and values, and
            back.
        expansion: those that run on every position that attention meets: latent attention keeps a compressed cache and
            makes keys and values of it anew in each forward.
        mlp: the MLP's projections; where there are experts, the multiply-accumulates of those that a token runs and the
            bytes of what every pass reads: routers and shared experts.
        experts: the experts of the MLP, if it has any.
        pair_macs: multiply-accumulates of a query-key pair, H (dk + dv) for H heads with keys of width dk and values of
            width dv.
        cache_width: numbers that a token adds to the cache, Hk (dk + dv) for Hk key-value heads.
        window: positions that a sliding-window layer attends to; None for full attention.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    attention: Linears
    expansion: Linears = Linears(macs=0, bytes=0)
    mlp: Linears
    pair_macs: int
    cache_width: int
    window: int | None
    experts: Routed | None = None

    def attention_read(self, tokens: int) -> int:
        """Bytes of attention's weights that a pass over so many tokens reads."""
        return self.attention.read(tokens) + self.expansion.read(tokens)

    def mlp_read(self, tokens: int) -> int:
        """Bytes of the MLP's weights that a pass over so many tokens reads at most: each expert's where it is hit."""
        return self.mlp.read(tokens) + (0 if self.experts is None else self.experts.hit_bytes(tokens))

    def mlp_read_alike(self, tokens: int) -> int:
        """The same where all tokens are sent to the same experts."""
        return self.mlp.read(tokens) + (0 if self.experts is None else self.experts.hit_bytes(1))


class ModelShape(BaseModel):
    """A decoder's layers and what surrounds them.

    Attributes:
        layers: the layers of the dense model, in order; a removed layer keeps its entry, it just never
            appears in a trace.
        head: the language-model head.
        other: linears around the layers that run on every token, such as OPT's embedding projections.
        embedding_bytes: bytes of one row of the embedding.
        kv_element_bytes: bytes of one number in the KV cache.
        parameters: the model's parameters, tied ones once, and the weights of replaced linear layers.
        active_parameters: those that one token runs, without the experts that it is not sent to; None in older
            shapes, and where layers are not seen.
        bytes: bytes of all parameters and buffers, each storage once, and of weights packed outside of tensors.
        packed: the same if the weights that methods rounded were packed, of which floats are multiplied; None where
            there are none of these.
        uncounted: why FLOPs, traffic and cache of such a model are not known; None where they are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: tuple[LayerShape, ...]
    head: Linears
    other: Linears
    embedding_bytes: int
    kv_element_bytes: int
    parameters: int
    bytes: int
    active_parameters: int | None = None
    packed: int | None = None
    uncounted: str | None = None

    @classmethod
    def of(cls, model: "Decoder") -> Self:
        """The shape of the model as it stands now."""
        anatomy, module = model.anatomy, model.module
        outside = [part for name, part in anatomy.parent.named_children() if name != anatomy.layers_name]
        embedding = cast("Tensor", anatomy.embedding.weight)
        parameters, modules = list(module.parameters()), set(module.modules())
        in_place = [block for block in anatomy.blocks if modules.issuperset(block.mlp.modules)]
        count = sum(parameter.numel() for parameter in parameters) + _sum_of("weight_count", module)
        nbytes = _storage_bytes([*parameters, *module.buffers()]) + _sum_of("opaque_bytes", module)
        return cls(
            layers=tuple(_layer(block.attention, block.mlp, model.config) for block in anatomy.blocks),
            head=Linears.of([anatomy.head]),
            other=Linears.of(part for part in outside if part is not anatomy.head),
            embedding_bytes=embedding.shape[1] * embedding.element_size(),
            kv_element_bytes=module.dtype.itemsize,
            parameters=count,
            active_parameters=None
            if anatomy.opaque
            else count - sum(_idle(block.mlp, model.config) for block in in_place),
            bytes=nbytes,
            packed=_packed(module, nbytes),
            uncounted=anatomy.opaque,
        )

    def kv_bytes(self, layer: int) -> int:
        """Bytes that one token adds to the KV cache in a layer."""
        return self.layers[layer].cache_width * self.kv_element_bytes


def _layer(attention: "Branch", mlp: "Branch", config: Any) -> LayerShape:
    from harness.model.roles import expansion

    module = attention.modules[0]
    config = getattr(module, "config", config)  # where heads were taken out, it has the numbers of this layer's own
    linears, expanding = Linears.of(attention.modules), Linears.of(expansion(module))
    return LayerShape(
        attention=Linears(
            macs=linears.macs - expanding.macs,
            bytes=linears.bytes - expanding.bytes,
            more=_sums([*linears.more, *((start, -more) for start, more in expanding.more)]),
        ),
        expansion=expanding,
        **_mlp(mlp, config),
        pair_macs=_pair_macs(module, config),
        cache_width=_cache_width(module, config),
        window=window_of(module, config),
    )


def _mlp(branch: "Branch", config: Any) -> dict[str, Any]:
    linears, experts = Linears.of(branch.modules), branch.experts
    if experts is None:
        return {"mlp": linears}
    from harness.contract.experts import routed_to

    per_token = routed_to(branch.modules, config)
    routers = [cast("Tensor", router.weight) for router in experts.routers]
    return {
        "mlp": Linears(
            macs=linears.macs + per_token * experts.macs + sum(weight.numel() for weight in routers),
            bytes=linears.bytes + sum(weight.nbytes for weight in routers),
            more=linears.more,
        ),
        "experts": Routed(count=experts.count, per_token=per_token, bytes=experts.bytes),
    }


def _idle(branch: "Branch", config: Any) -> int:
    """Parameters of the experts that a token is not sent to."""
    experts = branch.experts
    if experts is None:
        return 0
    from harness.contract.experts import routed_to

    held = sum(parameter.numel() for parameter in experts.module.parameters())
    return held - held // experts.count * routed_to(branch.modules, config)


def _pair_macs(attention: Any, config: Any) -> int:
    """By the modules that are in place; differential attention (arXiv:2410.05258) attends twice."""
    heads = config.num_attention_heads
    if hasattr(attention, "qk_head_dim"):  # latent attention: values are not as wide as keys
        return int(heads * (attention.qk_head_dim + attention.v_head_dim))
    width = _width(attention, "q_proj", heads * _head_width(config))
    values = width
    if hasattr(attention, "v_head_dim"):
        values = getattr(getattr(attention, "o_proj", None), "in_features", width)
    return (width + values) * (2 if hasattr(attention, "lambda_q1") else 1)


def _cache_width(attention: Any, config: Any) -> int:
    from harness.model.roles import expansion, fused_attention

    if expansion(attention):
        return int(attention.kv_lora_rank + attention.qk_rope_head_dim)
    if hasattr(attention, "qk_head_dim"):
        return int(config.num_attention_heads * (attention.qk_head_dim + attention.v_head_dim))
    if getattr(attention, "new_decoder_architecture", False):  # Falcon caches a group's keys once for each of its heads
        return int(2 * attention.num_heads * attention.head_dim)
    if (fused := fused_attention(attention, config)) is not None:
        return fused.groups * (fused.widths["key"] + fused.widths["value"])
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    dense = kv_heads * _head_width(config)
    return _width(attention, "k_proj", dense) + _width(attention, "v_proj", dense)


def _head_width(config: Any) -> int:
    width: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return width


def _width(attention: "nn.Module", projection: str, dense: int) -> int:
    """The output width of a projection where the layer has it apart, else that of the configuration."""
    width: int = getattr(getattr(attention, projection, None), "out_features", dense)
    return width


def window_of(attention: "nn.Module", config: Any) -> int | None:
    """The layer's own sliding window where it keeps one, else the model's if all layers slide."""
    every = None if getattr(config, "layer_types", None) else getattr(config, "sliding_window", None)
    window: int | None = getattr(attention, "sliding_window", every)
    return window


def _linears(module: "nn.Module") -> Iterator["nn.Module"]:
    from harness.contract.linears import LINEAR

    if isinstance(module, LINEAR) or hasattr(module, "macs_per_token"):
        yield getattr(module, "computed_by", module)
        return
    for child in module.children():
        yield from _linears(child)


def _macs(linear: Any) -> int:
    """Multiply-accumulates per token: as a replaced linear layer declares them, else the number of its weights."""
    macs: int | None = getattr(linear, "macs_per_token", None)
    return int(linear.weight.numel()) if macs is None else macs


def _weight_bytes(linear: Any) -> int:
    """Bytes of the weights: as a replaced linear layer declares them, else those of its tensors."""
    declared: int | None = getattr(linear, "weight_bytes", None)
    tensors = [*linear.named_parameters(), *linear.named_buffers()]
    return sum(tensor.nbytes for name, tensor in tensors if name != "bias") if declared is None else declared


def _packed(module: "nn.Module", nbytes: int) -> int | None:
    """Bytes of the model if what methods rounded, and multiply as floats, were packed."""
    rounded = [part for part in module.modules() if getattr(part, "format_bytes", None) is not None]
    saved = sum(_weight_bytes(part) - cast("Any", part).format_bytes for part in rounded)
    return nbytes - saved if rounded else None


def _more(linears: Iterable[Any]) -> tuple[tuple[int, int], ...]:
    return _sums([linear.more_bytes for linear in linears if hasattr(linear, "more_bytes")])


def _sums(more: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """The bytes that each number of tokens adds, in order; none where they cancel out."""
    sums: dict[int, int] = {}
    for start, count in more:
        sums[start] = sums.get(start, 0) + count
    return tuple((start, count) for start, count in sorted(sums.items()) if count)


def _sum_of(attribute: str, module: "nn.Module") -> int:
    """A number that replaced linear layers declare, over all of them."""
    return sum(getattr(part, attribute, 0) for part in module.modules())


def _storage_bytes(tensors: Iterable["Tensor"]) -> int:
    # not by data_ptr, which is 0 for every storage on the meta device
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
