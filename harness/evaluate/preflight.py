"""What would end a run late, looked for before it: every request is built once, and none is answered.

Prompts are rendered and tokenized as lm-eval does it for the evaluation itself; beyond that, one token is generated for
each set of generation arguments, so that whatever transformers makes of them is known.
"""

import inspect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch
from lm_eval.api.instance import Instance
from lm_eval.evaluator_utils import get_sample_size
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from transformers import GenerationConfig

from harness.contract.decoder import Row
from harness.core.errors import Enough, HarnessError, ModelError, SpecError, TaskError, UnknownNameError
from harness.core.strangers import message_of, raising_module, refusal_of
from harness.evaluate.batches import ScoringRequest
from harness.evaluate.context_first import held_back
from harness.evaluate.evaluation import Settings
from harness.evaluate.generation import require_traceable, writing
from harness.evaluate.journal import Request
from harness.evaluate.positions import positions, refuse_longer, stated_tokens
from harness.evaluate.quiet import collected_warnings
from harness.evaluate.refusals import explained
from harness.evaluate.score_mode import ContextFirst
from harness.evaluate.tasks import LoadedTask
from harness.evaluate.vocabulary import Vocabulary
from harness.evaluate.workload import Workload

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder
    from harness.evaluate.lm import HarnessLM, Score

_OF_LM_EVAL: Final = ("until", "max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_SET_BY_LM_EVAL: Final = (
    *("input_ids", "inputs", "attention_mask", "stopping_criteria", "pad_token_id", "use_cache", "logits_processor"),
)


def check(lm: "HarnessLM", task: LoadedTask, settings: Settings, context_first: ContextFirst | None = None) -> Workload:
    """Build every request of a task, refuse what the model or its tokenizer cannot serve, and say what they come to.

    Args:
        context_first: see ``harness.evaluate.observed.Observed``.

    Raises:
        TaskError, ModelError, SpecError, UnknownNameError: with what would be right.
        HarnessError: the task's own files raised, or lm-eval or transformers refuses a request.
    """
    _refuse_positions(lm)
    workload = Workload()
    for name, leaf in task.tasks.items():
        _refuse_unsafe(name, leaf, settings)
        with explained(name, settings.batch_size), collected_warnings("lm_eval", "transformers"):
            requests: dict[str, list[Instance]] = defaultdict(list)
            for instance in _built(lm, name, leaf, settings):
                requests[instance.request_type].append(instance)
            for kind, instances in requests.items():
                _refuse_tokenizer(lm, name, kind)
                chosen = (settings.samples or {}).get(name, ())
                if kind == "loglikelihood_rolling":
                    _refuse_empty(lm, name, instances, chosen)
                whole = bool(stated_tokens(leaf.config.metadata))
                checked = _Checked(lm, name, workload, chosen, context_first, whole)
                with lm.answering(checked), _encoding(lm, name, instances, chosen):
                    getattr(lm, kind)(instances)
    return workload


def _built(lm: "HarnessLM", name: str, leaf: Any, settings: Settings) -> list[Instance]:
    """The requests of one task, built by lm-eval as for an evaluation on one process."""
    leaf.build_all_requests(
        limit=get_sample_size(leaf, settings.limit),
        samples=(settings.samples or {}).get(name),
        system_instruction=settings.system_instruction,
        apply_chat_template=bool(settings.apply_chat_template),
        fewshot_as_multiturn=settings.fewshot_as_multiturn and bool(settings.apply_chat_template),
        chat_template=lm.apply_chat_template if settings.apply_chat_template else None,
    )
    instances: list[Instance] = leaf.instances
    leaf._instances = None  # lm-eval builds them anew for each evaluation
    return instances


def learned_positions(model: "Decoder") -> int | None:
    """How many positions the model has an embedding for; None where positions are computed."""
    for name, module in model.anatomy.parent.named_children():
        if isinstance(module, torch.nn.Embedding) and (name == "wpe" or "pos" in name):
            return module.num_embeddings - getattr(module, "offset", 0)  # OPT's first two rows are no positions
    return None


def _refuse_positions(lm: "HarnessLM") -> None:
    positions = learned_positions(lm.decoder)
    if positions is not None and lm.max_length > positions:
        raise ModelError(
            f"max_length={lm.max_length} is more than the {positions} positions that the model has learned: "
            f"give --model_args max_length={positions} or less"
        )


def _refuse_unsafe(name: str, leaf: Any, settings: Settings) -> None:
    if getattr(leaf, "UNSAFE_CODE", False) and not settings.confirm_run_unsafe_code:
        raise TaskError(f"{name} executes code that the model writes: give --confirm_run_unsafe_code if it may")
    if getattr(leaf, "MULTIMODAL", False):
        raise TaskError(f"{name} has images or sound in its questions, and only text models can be evaluated here")


def _refuse_tokenizer(lm: "HarnessLM", name: str, kind: str) -> None:
    """Refuse a tokenizer without the special tokens that requests of this kind need."""
    where = "in the tokenizer's tokenizer_config.json, or give another one with --model_args tokenizer=FOLDER"
    if kind == "generate_until" and lm.eot_token_id is None:
        raise ModelError(f"{name} has answers written, and the tokenizer has no end token: name an eos_token {where}")
    if lm.prefix_token_id is None:
        raise ModelError(
            f"{name}: the tokenizer has neither a begin nor an end token, and texts without a prompt need one before "
            f"them: give --model_args prefix_token_id=NUMBER, name a bos_token {where}"
        )


def _refuse_empty(lm: "HarnessLM", name: str, instances: Sequence[Instance], chosen: Sequence[int]) -> None:
    for instance in instances:
        text = str(instance.args[0])
        if not text.strip() and not lm.tok_encode(text):
            raise TaskError(f"{name}: document {_document(instance, chosen)} has a text that gives the model no token")


@contextmanager
def _encoding(lm: "HarnessLM", name: str, instances: Sequence[Instance], chosen: Sequence[int]) -> Iterator[None]:
    """Name the document that the tokenizer cannot encode.

    Raises:
        ModelError: the tokenizer raised.
    """
    try:
        yield
    except HarnessError:
        raise
    except Exception as error:
        if refusal_of(error) or not raising_module(error).startswith(("transformers.", "tokenizers.")):
            raise
        document = next((f" document {_document(each, chosen)}" for each in instances if not _encodes(lm, each)), "")
        raise ModelError(f"{name}: the tokenizer cannot encode{document}: {message_of(error)}") from error


def _document(instance: Instance, chosen: Sequence[int]) -> int:
    """The document's number in the task; of those of --samples, lm-eval gives the place in the list."""
    return chosen[instance.doc_id] if chosen else int(instance.doc_id)


def _encodes(lm: "HarnessLM", instance: Instance) -> bool:
    try:
        for text in instance.args:
            if isinstance(text, str):
                lm.tok_encode(text)
    except Exception:
        return False
    return True


@dataclass
class _Checked:
    """The mode that looks at requests and answers none."""

    lm: "HarnessLM"
    task: str
    workload: Workload
    chosen: Sequence[int]  # documents of --samples, which lm-eval numbers by their place in the list
    context_first: ContextFirst | None = None
    whole: bool = False  # whether a context that would be cut is refused
    _keys: list[Request] = field(default_factory=list)
    _arguments: list[dict[str, Any]] = field(default_factory=list)  # that were tried already
    _document: int = 0  # whose prompt is continued

    def __post_init__(self) -> None:
        self._vocabulary = Vocabulary.of(self.lm.decoder)
        self._room = positions(self.lm.decoder.config, self.lm.max_length) if self.whole else None

    def begin(self, keys: list[Request]) -> None:
        self._keys = [key._replace(document=self.chosen[key.document]) for key in keys] if self.chosen else keys

    def end(self) -> None:
        """Nothing is left to do."""

    def score(self, requests: Sequence[ScoringRequest]) -> list["Score"]:
        before: list[int] = []  # the context that is in the cache, where contexts come first
        for key, request in zip(self._keys, requests, strict=False):  # rolling asks in parts
            _, context, continuation = request
            what = f"{self.task}: document {key.document}"
            self._vocabulary.refuse(context + continuation, what)
            if not context or not continuation:
                part = "answer" if context else "prompt"
                raise TaskError(f"{what} has {'an' if context else 'a'} {part} that gives the model no token")
            if len(continuation) > self.lm.max_length:
                raise TaskError(
                    f"{what} has an answer of {len(continuation)} tokens, which is longer than the model allows "
                    f"(max_length={self.lm.max_length})"
                )
            refuse_longer(what, len(context) + len(continuation) - 1, self._room)  # the last token is not read
            if self.context_first is not None:
                held_back(self.lm, request, self.context_first.suffix, what)
            is_read = self.context_first is not None and context == before
            self.workload.add(read=(0 if is_read else len(context)) + len(continuation))
            before = context
        self._keys = self._keys[len(requests) :]
        return [(0.0, False)] * len(requests)

    def generate(self, instances: list[Instance]) -> list[str]:
        prompts = [self.lm.tok_encode(instance.args[0]) for instance in instances]
        longest = max(map(len, prompts))
        for key, prompt, instance in zip(self._keys, prompts, instances, strict=True):
            what = f"{self.task}: document {key.document}"
            self._vocabulary.refuse(prompt, what)
            if not prompt:
                raise TaskError(f"{what} has a prompt that gives the model no token")
            if instance.args[1] not in self._arguments:
                self._arguments.append(instance.args[1])
                self._document = key.document
                self._try(instance, longest)
            written = normalize_gen_kwargs(instance.args[1], self.lm.max_gen_toks)["max_gen_toks"]
            refuse_longer(what, len(prompt) + written, self._room)
            self.workload.add(read=len(prompt), written=written)
        if self.lm.batch_size > 1:  # shorter prompts are filled up
            self._vocabulary.refuse([self.lm.tokenizer.pad_token_id], f"{self.task}: the padding of a batch")
        return [""] * len(instances)

    def _try(self, instance: Instance, longest: int) -> None:
        """Generate a token with an instance's arguments, after those that can be judged by themselves."""
        arguments = instance.args[1]
        self._refuse_arguments(arguments, longest)
        try:
            HFLM.generate_until(self.lm, [instance], disable_tqdm=True)
        except (HarnessError, torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:  # nothing is attached yet, so it is transformers or the model that cannot
            if refusal_of(error) or raising_module(error).startswith("harness."):
                raise
            given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
            raise SpecError(f"{self.task}: transformers cannot generate with {given}: {message_of(error)}") from error

    def _refuse_arguments(self, arguments: dict[str, Any], longest: int) -> None:
        lm, where = self.lm, f"generation argument of {self.task}"
        signatures = (inspect.signature(function) for function in (lm.model.generate, lm.model.forward))
        known = {*_OF_LM_EVAL, *vars(GenerationConfig()), *(name for each in signatures for name in each.parameters)}
        for name in arguments:
            if name in _SET_BY_LM_EVAL:
                raise SpecError(f"{where} {name!r}: lm-eval sets it itself; leave it out")
            if name not in known:
                raise UnknownNameError(where, str(name), known, see="It is in --gen_kwargs or in the task's YAML.")
        until = arguments.get("until")
        texts = until if isinstance(until, list) else [until]
        if "until" in arguments and not all(isinstance(text, str) for text in texts):
            raise SpecError(f"{where} until={until!r}: expected a text or a list of texts that end an answer")
        try:
            most = normalize_gen_kwargs(arguments, lm.max_gen_toks)["max_gen_toks"]
        except (TypeError, ValueError, OverflowError) as error:
            raise SpecError(f"{self.task}: a generation argument is no number: {error}") from error
        longest_text = arguments.get("max_length")
        if isinstance(longest_text, int) and longest_text <= longest:
            raise SpecError(
                f"{where} max_length={longest_text}: the longest prompt has {longest} tokens, which leaves none to "
                "write; give max_gen_toks in its place"
            )
        if most < 1:
            raise SpecError(f"{where} max_gen_toks={most}: expected at least 1")
        if most >= lm.max_length:
            room = lm.max_length - longest
            fit = room if room > 0 else lm.max_length // 2
            raise SpecError(
                f"{self.task} asks for up to {most} new tokens (max_gen_toks), and the model takes {lm.max_length} "
                f"with the prompt, of which the longest has {longest}: give --gen_kwargs max_gen_toks={fit}"
            )

    def generate_batch(
        self, prompts: torch.Tensor, max_length: int, stop: list[str], options: dict[str, Any]
    ) -> torch.Tensor:
        """Generate until a token is chosen: all that transformers checks and builds comes before."""
        lm = self.lm
        require_traceable(lm.model.generation_config, options)
        positions = learned_positions(lm.decoder)
        if positions is not None and max_length > positions:
            raise SpecError(
                f"generation argument of {self.task} max_length={max_length}: the model has learned {positions} "
                "positions; give max_gen_toks in its place"
            )
        forwards = 0

        def stop_at_the_second(*_: Any) -> None:
            nonlocal forwards
            forwards += 1
            if forwards > 1:
                raise Enough

        hook = lm.model.register_forward_pre_hook(stop_at_the_second)
        length = prompts.shape[1]
        try:
            with writing(lm.decoder, [Row(self.task, self._document, (0,), length, length)], length) as watch:
                HFLM._model_generate(lm, prompts, max_length, stop, **options, logits_processor=watch.processors)
        except Enough:
            pass
        finally:
            hook.remove()
        return prompts
