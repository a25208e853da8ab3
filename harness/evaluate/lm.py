"""lm-eval's Hugging Face model, whose requests are answered by a mode: observed, or noted and not run.

This is the only place that overrides HFLM. What each mode does with the requests is in ``observed`` and ``requests``.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from harness.contract.decoder import Decoder
from harness.core.errors import ModelError, UnknownNameError
from harness.core.strangers import message_of
from harness.evaluate.batches import ScoringRequest, request_keys
from harness.evaluate.journal import Request
from harness.model.layouts import dissect

Score = tuple[float, bool]
"""lm-eval's answer to a scoring request: the log-likelihood in nats, and whether greedy decoding would write it."""


class Mode(Protocol):
    """What happens to the requests of an evaluation."""

    def begin(self, keys: list[Request]) -> None:
        """An evaluation is about to ask for these requests of one kind, in this order."""

    def score(self, requests: Sequence[ScoringRequest]) -> list[Score]:
        """Score some of the requests, the next ones in their order."""

    def generate(self, instances: list[Instance]) -> list[str]:
        """Continue the prompts of all requests."""

    def generate_batch(
        self, prompts: torch.Tensor, max_length: int, stop: list[str], options: dict[str, Any]
    ) -> torch.Tensor:
        """Continue one batch of prompts, [rows, tokens], padded on the left; return prompts and continuations."""

    def end(self) -> None:
        """All requests of the kind are answered."""


class HarnessLM(HFLM):  # type: ignore[misc] # lm-eval has no type stubs
    """HFLM whose requests go to a mode for the duration of an evaluation (``answering``).

    Attributes:
        decoder: the model as methods see it.
        mode: what answers; None outside an evaluation.
    """

    decoder: Decoder

    def __init__(self, *args: Any, fingerprint: str, **kwargs: Any) -> None:
        self._fingerprint = fingerprint
        self.mode: Mode | None = None
        super().__init__(*args, **kwargs)
        self.decoder.autocast = self.mixed_precision_dtype
        if not isinstance(self.max_length, int) or self.max_length < 1:
            raise ModelError(f"model argument max_length={self.max_length!r} is not valid: expected a positive number")
        if accelerator := getattr(self, "accelerator", None):  # lm-eval sets these for several GPUs only
            self._rank, self._world_size = accelerator.process_index, accelerator.num_processes

    def _create_model(self, *args: Any, **kwargs: Any) -> None:
        super()._create_model(*args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs)
        self._model, loading = self._model  # type: ignore[has-type] # untyped lm-eval
        # transformers initialises such weights at random, and only logs it
        absent = sorted({*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])})
        if absent:
            raise ModelError(
                f"the checkpoint of {self._model.config.name_or_path!r} has no weights that fit {absent[0]}"
                + (f" and {len(absent) - 1} more" if absent[1:] else "")
            )
        self.decoder = Decoder(self._model, self.tokenizer, dissect(self._model), self._fingerprint)

    def _create_tokenizer(self, pretrained: Any, tokenizer: Any, *args: Any, **kwargs: Any) -> None:
        try:
            super()._create_tokenizer(pretrained, tokenizer, *args, **kwargs)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelError(
                f"the tokenizer of {tokenizer or pretrained!r} is missing or cannot be loaded: {reason}"
            ) from error

    def use_chat_template(self, wanted: bool | str) -> None:
        """Render prompts with the model's chat template, or with the one of that name.

        Raises:
            ModelError: the tokenizer has no chat template.
            UnknownNameError: it has none of that name.
        """
        templates = self.tokenizer.chat_template
        if not templates:
            raise ModelError("--apply_chat_template: the model's tokenizer has no chat template")
        if wanted is True and isinstance(templates, dict) and "default" not in templates:
            raise ModelError(
                "--apply_chat_template: the tokenizer has several chat templates, and none is the default: name one of "
                f"{', '.join(templates)}"
            )
        if isinstance(wanted, str):
            names = templates if isinstance(templates, dict) else ()
            if wanted not in names:
                see = f"The tokenizer has {', '.join(names) or 'one without a name: give the flag without a value'}."
                raise UnknownNameError("chat template", wanted, names, see=see)
            self.chat_template_args["chat_template"] = wanted  # lm-eval itself records the name and takes the default

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Render a conversation; see HFLM, which leaves the system message out where the template refuses it.

        Raises:
            ModelError: the template raised; it is the model's, and may raise anything.
        """
        try:
            return str(super().apply_chat_template(chat_history, add_generation_prompt))
        except Exception as error:
            roles = [message["role"] for message in chat_history]
            ways = ["leave --system_instruction out"] * ("system" in roles)
            ways += ["give --fewshot_as_multiturn false"] * (roles.count("user") > 1)
            raise ModelError(
                f"the model's chat template refuses a conversation of {', '.join(roles)}: {message_of(error)}; "
                f"{', or '.join([*ways, 'run without --apply_chat_template'])}"
            ) from error

    @contextmanager
    def answering(self, mode: Mode) -> Iterator[None]:
        """Let a mode answer what evaluations ask inside the ``with`` block."""
        self.mode = mode
        try:
            yield
        finally:
            self.mode = None

    @property
    def _mode(self) -> Mode:
        assert self.mode is not None, "an evaluation outside HarnessLM.answering"
        return self.mode

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Score]:
        """Score continuations; see HFLM."""
        self._mode.begin(request_keys(requests))
        answers: list[Score] = super().loglikelihood(requests, disable_tqdm=True)
        self._mode.end()
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Score whole texts window by window; see HFLM."""
        keys = zip(request_keys(requests), requests, strict=True)
        self._mode.begin(
            [
                key._replace(turn=window)
                for key, instance in keys
                for window in range(self._window_count(instance.args[0]))
            ]
        )
        answers: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=True)
        self._mode.end()
        return answers

    def _window_count(self, text: str) -> int:
        windows = utils.get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self.prefix_token_id,
            max_seq_len=self.max_length,
            context_len=1,
        )
        return sum(1 for _ in windows)

    def _loglikelihood_tokens(
        self, requests: Sequence[ScoringRequest], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Score]:
        return self._mode.score(requests)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generate until a stop string; see HFLM."""
        self._mode.begin(request_keys(requests))
        texts = self._mode.generate(requests)
        self._mode.end()
        return texts

    def _model_generate(
        self, context: torch.Tensor, max_length: int, stop: list[str], **generation_kwargs: Any
    ) -> torch.Tensor:
        return self._mode.generate_batch(context, max_length, stop, generation_kwargs)
