"""The text that is being written, and forwards over what its cache does not have yet."""

from collections.abc import Sequence
from typing import Any

import torch


class Text:
    """A text of one row: its tokens, padding on the left included, and the cache that has all but the last of them.

    Attributes:
        ids: [1, tokens].
        outputs: of the model's latest forward over the text.
    """

    def __init__(self, module: Any, ids: torch.Tensor, outputs: Any, inputs: dict[str, Any]) -> None:
        self._module, self._inputs = module, inputs
        self.ids, self.outputs = ids, outputs

    @property
    def cache(self) -> Any:
        """Keys and values of the text."""
        return self.outputs.past_key_values

    def write(self, ids: torch.Tensor) -> int:
        """Take the text with what was written, [1, tokens]; the number of new tokens."""
        written = ids.shape[1] - self.ids.shape[1]
        self.ids = ids
        self._inputs = self._module._update_model_kwargs_for_generation(
            self.outputs, self._inputs, num_new_tokens=written
        )
        return written

    def read(self, guesses: Sequence[int], unread: int) -> Any:
        """One forward over the last tokens of the text and guesses after it, whose keys and values go into the cache.

        Args:
            unread: how many tokens; the cache has those before.
        """
        ids, inputs = self.ids, dict(self._inputs)
        if guesses:
            inputs = self._module._update_model_kwargs_for_generation(self.outputs, inputs, num_new_tokens=len(guesses))
            ids = torch.cat([ids, torch.tensor([list(guesses)], device=ids.device)], -1)
        arguments = self._module.prepare_inputs_for_generation(ids, next_sequence_length=unread, **inputs)
        if "logits_to_keep" in arguments:
            arguments["logits_to_keep"] = unread
        return self._module(**arguments, return_dict=True)
