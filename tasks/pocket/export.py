"""Write the trained network as a plain Hugging Face model that any tool loads."""

import json
from pathlib import Path
from typing import Any

import torch

from .network import Network
from .tokenizer import END


def export(network: Network, codec: Any, folder: Path) -> None:
    """Write config, weights rounded to bfloat16, tokenizer and generation config of a ``LlamaForCausalLM``."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    end: int = codec.token_to_id(END)
    weights = {
        name if name.startswith("lm_head") else f"model.{name}": weight.to(torch.bfloat16)
        for name, weight in network.state_dict().items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    codec.save(str(folder / "tokenizer.json"))
    marks = dict.fromkeys(("bos_token", "eos_token", "pad_token"), END)
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": network.shape.max_position_embeddings,
        "clean_up_tokenization_spaces": False,
    }
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), end)
    _write(folder / "tokenizer_config.json", about | marks)
    _write(folder / "config.json", network.shape.config(end=end))
    _write(folder / "generation_config.json", {"do_sample": False, **ends})


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
