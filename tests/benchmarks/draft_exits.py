"""What the first layers of the bundled model guess right of its own answers, and what drafts by them would save.

    python -m tests.benchmarks.draft_exits --documents 30 --tokens 32

Sums of pocket_math are answered greedily, until the line ends. One forward over each text gives the states behind every
layer; the head makes of them what a draft with that exit would have guessed at each place, given what was written.
"""

import argparse
from itertools import takewhile

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.model.source import BUNDLED
from harness.model.speculation.choice import speedup
from harness.tasks.pocket import lm


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("documents", 30), ("tokens", 32), ("draft", 6)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED)
    layers = model.config.num_hidden_layers
    agreement: dict[int, list[torch.Tensor]] = {layer: [] for layer in range(1, layers)}
    for document in list(lm.math_data()["test"])[: args.documents]:
        prompt = tokenizer(f"Question: {document['question']}\nAnswer:")["input_ids"]
        ids = torch.tensor([prompt])
        text = model.generate(ids, max_new_tokens=args.tokens, do_sample=False, pad_token_id=0)  # [1, tokens]
        answer = text[0, len(prompt) :].tolist()
        length = 1 + sum(1 for _ in takewhile(lambda token: "\n" not in tokenizer.decode([token]), answer[:-1]))
        states = model.model(text[:, : len(prompt) + length], output_hidden_states=True).hidden_states
        whole = model.lm_head(states[-1])[0].argmax(-1)  # [tokens]
        for layer, texts in agreement.items():
            part = model.lm_head(model.model.norm(states[layer]))[0].argmax(-1)
            texts.append((part == whole)[len(prompt) : -1])
    for layer, texts in agreement.items():
        right = float(torch.cat(texts).double().mean())
        modelled = (speedup(texts, layer / layers, draft) for draft in range(1, args.draft + 1))
        print(f"exit {layer:>2}: {right:4.0%} right;", "  ".join(f"{ratio:.2f}" for ratio in modelled))


if __name__ == "__main__":
    main()
