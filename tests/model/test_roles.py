"""Where a block's queries, keys, values, gates and outputs are: what the model itself splits its projections into."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from harness.contract.linears import LINEAR
from harness.model.layouts import dissect
from harness.model.roles import roles_of
from harness.testing.tiny import FAMILIES, tiny_model

SIZES = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1, "vocab_size": 32}
WIDE = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "pad_token_id": 0}
FALCON = {**SIZES, "alibi": False, "bias": True}
# name -> model_type, configuration, attention and MLP by name in the layer
OTHERS = {
    "glm": ("glm", {**WIDE, "head_dim": 8}, "self_attn", "mlp"),
    "stablelm": ("stablelm", WIDE, "self_attn", "mlp"),
    "gpt_bigcode": ("gpt_bigcode", SIZES, "attn", "mlp"),
    "gpt_bigcode by head": ("gpt_bigcode", {**SIZES, "multi_query": False}, "attn", "mlp"),
    "falcon by group": (
        "falcon",
        {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
        "self_attention",
        "mlp",
    ),
    "falcon by head": ("falcon", {**FALCON, "multi_query": False}, "self_attention", "mlp"),
    "falcon of one key": ("falcon", FALCON, "self_attention", "mlp"),
    "codegen": ("codegen", {**SIZES, "rotary_dim": 4, "n_ctx": 64}, "attn", "mlp"),
    "bloom": ("bloom", SIZES, "self_attention", "mlp"),
    "mpt": ("mpt", SIZES, "attn", "ffn"),
    "gptj": ("gptj", {**SIZES, "rotary_dim": 4}, "attn", "mlp"),
    "persimmon": ("persimmon", WIDE, "self_attn", "mlp"),
    "phi": ("phi", WIDE, "self_attn", "mlp"),
}


class Multiplied(TorchDispatchMode):
    """The first factors of attention's products, which are queries."""

    def __init__(self):
        super().__init__()
        self.queries = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("bmm", "baddbmm") or "scaled_dot_product" in name:
            self.queries.append(args[name == "baddbmm"])
        return func(*args, **(kwargs or {}))


def built(name):
    """A model, and its second or only layer with the parts that have roles."""
    if name in OTHERS:
        kind, fields, attention, mlp = OTHERS[name]
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **fields)).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        stack = model.model.layers if hasattr(model, "model") else model.transformer
        layer = getattr(stack, "blocks", getattr(stack, "h", None))[0] if hasattr(model, "transformer") else stack[0]
        return model, layer, getattr(layer, attention), [getattr(layer, mlp)]
    model = tiny_model(name, layers=2)
    block = dissect(model).blocks[0]
    return model, block.module, block.attention.modules[0], list(block.mlp.modules)


def features(part, outputs):
    """What a role's linear layer gave, [tokens, features]."""
    given = outputs[part.module].flatten(0, -2)
    return given if part.outputs is None else given[:, part.outputs]


def of_heads(states, heads, width, norm):
    """[tokens, heads * width], through the norm of heads or of all of them, as [heads, tokens, width]."""
    if norm is not None and getattr(norm, "weight", states).shape[-1] == states.shape[-1]:
        states, norm = norm(states), None
    states = states.unflatten(-1, (heads, width)).transpose(0, 1)
    return states if norm is None else norm(states.transpose(0, 1)[None].transpose(1, 2))[0]


@pytest.mark.parametrize("name", [*FAMILIES, *OTHERS])
@torch.no_grad()
def test_roles_are_what_the_model_splits(name):
    """Queries as its products have them, keys and values as its cache does; rotation leaves position 0 alone."""
    model, layer, attention, mlp = built(name)
    config = model.config.get_text_config()
    roles, outputs = roles_of(layer, attention, mlp, config), {}
    for part in layer.modules():
        if isinstance(part, LINEAR):
            part.register_forward_hook(lambda module, args, output: outputs.update({module: output}))
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with Multiplied() as products:
        cache = model(ids, use_cache=True).past_key_values.layers[0]
    cached_heads, width = cache.keys.shape[1], cache.keys.shape[-1]  # [1, heads, tokens, width]

    def norm(letter):
        names = (f"{letter}_norm", f"{letter}_layernorm", "query_layernorm" if letter == "q" else "key_layernorm")
        return next((getattr(attention, n) for n in names if getattr(attention, n, None) is not None), None)

    values = features(roles["value"], outputs)
    values = of_heads(values, values.shape[1] // width, width, None)
    repeats = cached_heads // len(values)  # Falcon keeps a group's values once for each of its heads
    torch.testing.assert_close(values.repeat_interleave(repeats, 0), cache.values[0])
    keys = features(roles["key"], outputs)
    keys = of_heads(keys, keys.shape[1] // width, width, norm("k")).repeat_interleave(repeats, 0)
    torch.testing.assert_close(keys[:, 0], cache.keys[0, :, 0])
    queries = of_heads(features(roles["query"], outputs), config.num_attention_heads, width, norm("q"))
    first = next(each for each in products.queries if each.shape[-1] == width and each.numel() == queries.numel())
    first = first.reshape(-1, len(ids[0]), width)[:, 0]
    torch.testing.assert_close(queries[:, 0], first * queries[:, 0].norm() / first.norm())  # OPT scales them before


@pytest.mark.parametrize("name", [*FAMILIES, *OTHERS])
@torch.no_grad()
def test_every_linear_feature_of_a_layer_has_one_role(name):
    model, layer, attention, mlp = built(name)
    roles = roles_of(layer, attention, mlp, model.config.get_text_config())
    for linear in (part for part in layer.modules() if isinstance(part, LINEAR)):
        width = linear.nf if hasattr(linear, "nf") else linear.out_features
        seen = torch.zeros(width, dtype=torch.int)
        for part in roles.values():
            if part.module is linear:
                seen[slice(None) if part.outputs is None else part.outputs] += 1
        assert seen.tolist() == [1] * width


@pytest.mark.parametrize("name", [name for name in (*FAMILIES, *OTHERS) if name != "opt"])  # has no MLP module to call
@torch.no_grad()
def test_the_mlp_goes_up_and_down_through_its_gate(name):
    """The way down starts from the activated expansion, or gate times expansion, and ends in what the branch adds."""
    model, layer, attention, mlp = built(name)
    roles = roles_of(layer, attention, mlp, model.config.get_text_config())
    up, down = roles["up"], roles["down"]
    states = torch.randn(3, 32)
    entering = []
    down.module.register_forward_pre_hook(lambda module, args: entering.append(args[0]))
    mlp[0](states[None]) if name not in ("bloom", "mpt") else mlp[0](states[None], torch.zeros(1, 3, 32))
    expanded = up.module(states)
    expanded = expanded if up.outputs is None else expanded[:, up.outputs]
    if "gate" in roles:
        gate = roles["gate"].module(states)
        gate = gate if roles["gate"].outputs is None else gate[:, roles["gate"].outputs]
        act = next(getattr(mlp[0], n) for n in ("act_fn", "activation_fn", "act") if hasattr(mlp[0], n))
        torch.testing.assert_close(entering[0][0], act(gate) * expanded)
    else:
        assert entering[0][0].shape == expanded.shape
