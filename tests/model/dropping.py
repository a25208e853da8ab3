"""A reference for surgery that shares nothing with it: hooks that undo a unit's output on the dense model."""

from contextlib import contextmanager

import torch


@contextmanager
def bypassed(decoder, *, blocks=(), attention=(), mlp=()):
    """Compute everything, then return a dropped block's input, or zeros for a dropped branch. No cache."""
    handles = []

    def give_input(module, args, kwargs, output):
        stream = args[0] if args else kwargs["hidden_states"]
        return (stream, *output[1:]) if isinstance(output, tuple) else stream

    def give_zeros(module, args, output):
        if isinstance(output, tuple):
            return (torch.zeros_like(output[0]), *output[1:])
        return torch.zeros_like(output)

    for block in decoder.anatomy.blocks:
        if block.index in blocks:
            handles.append(block.module.register_forward_hook(give_input, with_kwargs=True))
        if block.index in attention:
            handles.append(block.attention.output.register_forward_hook(give_zeros))
        if block.index in mlp:
            handles.append(block.mlp.output.register_forward_hook(give_zeros))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def logits(decoder, ids, **options):
    """Logits of one forward, without a cache unless asked."""
    return decoder.module(input_ids=ids, **{"use_cache": False, **options}).logits


def snapshot(decoder):
    """Everything of a model that surgery could leave changed."""
    module = decoder.module
    parts = list(module.named_modules())
    return {
        "modules": [(name, id(part), type(part)) for name, part in parts],
        "numbers": [
            (name, getattr(part, key))
            for name, part in parts
            for key in ("layer_idx", "layer_id")
            if hasattr(part, key)
        ],
        "hooks": [
            (list(part._forward_hooks), list(part._forward_pre_hooks), list(part._backward_hooks)) for _, part in parts
        ],
        "forwards": [name for name, part in parts if "forward" in vars(part)],
        "state": {name: tensor.clone() for name, tensor in module.state_dict().items()},
        "config": module.config.to_dict(),
        "config attributes": {name: id(value) for name, value in vars(decoder.config).items()},
        "anatomy": [id(block.module) for block in decoder.anatomy.blocks],
        "random": torch.get_rng_state(),
    }


def assert_same(before, after):
    """Equal bit for bit, in the same order."""
    for tensors in ("random", "state"):
        old, new = before.pop(tensors), after.pop(tensors)
        if tensors == "random":
            old, new = {"": old}, {"": new}
        assert list(old) == list(new)
        assert all(torch.equal(old[name], new[name]) for name in old)
    assert before == after
