"""A tiny random Llama as a GGUF file, written by the package ``gguf``."""

from pathlib import Path

import numpy as np

LAYERS, WIDTH, INNER, HEADS, KV_HEADS = 2, 32, 64, 4, 2


def write_gguf(
    path: Path,
    *,
    layers: str = "Q4_1",
    embeddings: str = "Q8_0",
    architecture: str = "llama",
    tokenizer: bool = True,
    without: str = "",
    split: int = 0,
) -> Path:
    """Write the file; ``without`` is a tensor that is left out."""
    import gguf
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    if split:
        writer.add_uint16("split.count", split)
    tokens = [*bytes_to_unicode().values(), "th", "the", "<|endoftext|>"]
    if tokenizer:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(tokens)
        writer.add_token_types([1] * 258 + [3])
        writer.add_token_merges(["t h", "th e"])
        writer.add_bos_token_id(258)
        writer.add_eos_token_id(258)
        writer.add_add_bos_token(False)
    rng = np.random.default_rng(0)

    def add(name: str, *shape: int, kind: str) -> None:
        if name == without:
            return
        values = rng.normal(size=shape).astype(np.float32) * 0.3 + (len(shape) == 1)
        number = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quantize(values, number), raw_dtype=number)

    add("token_embd.weight", len(tokens), WIDTH, kind=embeddings)
    for layer in range(LAYERS):
        for name, shape in {
            "attn_q": (WIDTH, WIDTH),
            "attn_k": (WIDTH // 2, WIDTH),
            "attn_v": (WIDTH // 2, WIDTH),
            "attn_output": (WIDTH, WIDTH),
            "ffn_gate": (INNER, WIDTH),
            "ffn_up": (INNER, WIDTH),
            "ffn_down": (WIDTH, INNER),
        }.items():
            add(f"blk.{layer}.{name}.weight", *shape, kind=layers)
        add(f"blk.{layer}.attn_norm.weight", WIDTH, kind="F32")
        add(f"blk.{layer}.ffn_norm.weight", WIDTH, kind="F32")
    add("output_norm.weight", WIDTH, kind="F32")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
