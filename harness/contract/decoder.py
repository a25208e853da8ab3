"""A loaded decoder language model: the module, its tokenizer, its parts, and what the current forward serves.

Whoever runs the model publishes one ForwardContext for every batch (``Decoder.serving``): the evaluation, the cost
pass, the cost profile and the conformance kit alike. Routers read it to decide from prompt tokens alone, and the
tracer reads it to charge work to documents.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from harness.contract.anatomy import Anatomy, Block
from harness.core.errors import MethodError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Row:
    """One row of a batch.

    Attributes:
        task: the lm-eval task's name.
        document: index of the document in the task (``doc_id``).
        requests: indices of the document's requests that this row answers; several where answer choices of one token
            share a forward.
        prompt_length: tokens of the row that belong to the prompt; a decision may look at these and no others.
        length: tokens of the row without padding.
    """

    task: str
    document: int
    requests: tuple[int, ...]
    prompt_length: int
    length: int


@dataclass(frozen=True)
class Manner:
    """How the methods that are attached want a text scored whose context is read first.

    Attributes:
        whole: all of the context is read before the continuation, as decisions look at all of it; else its last token
            is read with the continuation, so that all of a continuation is read against the cache.
        stepwise: a continuation is read token by token, as text is written.
        alone: the continuations of a context are read one after the other.
    """

    whole: bool = False
    stepwise: bool = False
    alone: bool = False


@dataclass
class ForwardContext:
    """The batch that the model is working on.

    Attributes:
        rows: the batch's rows, in order.
        kind: "score" reads a given text, in one forward or context first; "generate" is a prefill and decode steps.
        width: tokens of each row when it came, padding included; shorter rows of a "score" are padded on the right,
            those of a "generate" on the left. Texts whose contexts are read first have no padding.
        processed: tokens of each row that finished forwards of the batch have run, counted again where they ran again.
        decoding: False while prompts are read, also in parts; True in the decode steps after that, and while what
            follows a context that was read first is read.
        active: indices of the rows in the module that is running now, where an engine runs a part of the batch; None
            where all of them run.
        speculating: what the forwards are for where tokens are guessed first: "draft" guesses them, and counts as
            nothing processed; "verify" looks at what was guessed; None for all other forwards.
        read: tokens of each row of a "score" that are read first; None where texts are scored in one forward.
        ends_in_guess: the text ended in a guessed token that was right.
    """

    rows: tuple[Row, ...]
    kind: Literal["score", "generate"]
    width: int
    processed: int = 0
    decoding: bool = False
    active: tuple[int, ...] | None = field(default=None)
    speculating: Literal["draft", "verify"] | None = field(default=None)
    read: int | None = field(default=None)
    ends_in_guess: bool = field(default=False)

    @property
    def padding(self) -> Literal["left", "right"]:
        """The side on which shorter rows are padded."""
        return "left" if self.kind == "generate" else "right"

    def advance(self, tokens: int) -> None:
        """Count tokens of each row that a forward has processed; a text that is scored is decoded after its context."""
        if self.speculating == "draft":
            return
        self.processed += tokens
        prompt = self.width if self.kind == "generate" else self.read
        if prompt is not None:
            self.decoding = self.processed >= prompt

    @contextmanager
    def only(self, rows: tuple[int, ...]) -> Iterator[None]:
        """Declare that the modules called inside the ``with`` block see these rows alone."""
        outer, self.active = self.active, rows if len(rows) < len(self.rows) else None
        try:
            yield
        finally:
            self.active = outer

    @contextmanager
    def speculation(self, part: Literal["draft", "verify"]) -> Iterator[None]:
        """Declare what forwards inside the ``with`` block are for (``Decoder.drafting``, ``Decoder.verifying``)."""
        outer, self.speculating = self.speculating, part
        try:
            yield
        finally:
            self.speculating = outer


@dataclass(frozen=True)
class Auxiliary:
    """A module that a method adds and runs, whose work is charged in addition to the model's own.

    Attributes:
        kind: what for, by a name of the method's choice: a "router" and an "exit" decide what runs; a "fill" projects
            keys and values alone, for a layer that a token does not run.
        layer: index of the dense layer that a "fill" belongs to.
    """

    module: "nn.Module"
    kind: str
    layer: int | None = None


@dataclass(frozen=True)
class Charge:
    """Work of the running forward that no module's call shows, as ``Decoder.charge`` is told of it.

    Attributes:
        kind: what for, by a name of the method's choice: "predictor", "selection". Two kinds stand in place of the
            layer's own work in this forward: "attention", of its products of queries with keys and of probabilities
            with values, projections left out; "mlp", of all of its MLP.
        layer: index of the dense layer; None outside of the layers.
        macs: multiply-accumulates, over all rows that are running.
        bytes: bytes of weights that were read for it.
        tokens: tokens that it was done for, over these rows.
        rows: the rows of the batch; None: all of them.
    """

    kind: str
    layer: int | None
    macs: int
    bytes: float
    tokens: int
    rows: tuple[int, ...] | None


Added = Literal["decision", "fill"]
"""What methods do beside the model's own work: decide what runs; give the cache keys and values of what does not."""


@dataclass
class Decoder:
    """What a method is given to work on.

    Attributes:
        module: the Hugging Face causal language model, in eval mode.
        tokenizer: its tokenizer.
        anatomy: the parts of the dense model; engines change the modules, never this description.
        fingerprint: digest of weights, configuration and tokenizer; keys every cache.
        autocast: number format in which matrix products run where it is not the weights' (lm-eval's
            ``mixed_precision_dtype``).
        context: the batch that the running forward serves; None outside an evaluation.
        auxiliaries: the modules that attached methods add and run (``assisted``).
        timer: times what methods add, while a cost profile asks for it (``adding``).
        charged: takes what methods charge, while somebody counts (``charge``).
        manner: how texts are scored context first with the methods that are attached.
        kernels: what computes linear layers of which methods have kernels, by the layer's place, as the plan of a run
            settled it; a layer without an entry gets what is fastest.
    """

    module: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    anatomy: Anatomy
    fingerprint: str
    autocast: "torch.dtype | None" = None
    context: ForwardContext | None = None
    auxiliaries: list[Auxiliary] = field(default_factory=list)
    timer: "Callable[[Added], AbstractContextManager[None]] | None" = None
    charged: "Callable[[Charge], None] | None" = None
    manner: Manner = Manner()
    kernels: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """What refusals call the model: its class and its ``model_type``."""
        return f"{type(self.module).__name__} (model_type {self.module.config.model_type!r})"

    @property
    def config(self) -> Any:
        """The text part of the model's configuration."""
        return self.module.config.get_text_config()

    @property
    def device(self) -> "torch.device":
        """Where the model's inputs go."""
        device: torch.device = self.module.device
        return device

    @property
    def devices(self) -> "list[torch.device]":
        """Where the model's weights are: several, of one that is spread over cards; the inputs' first."""
        return list(dict.fromkeys((self.device, *(parameter.device for parameter in self.module.parameters()))))

    @property
    def live(self) -> list[Block]:
        """The dense model's layers that are in the model now, in the order in which they run."""
        if self.anatomy.opaque is not None:
            return []
        blocks = {block.module: block for block in self.anatomy.blocks}
        layers = getattr(self.anatomy.parent, self.anatomy.layers_name)
        return [blocks[layer] for layer in layers if layer in blocks]

    @contextmanager
    def serving(
        self,
        rows: Sequence[Row],
        kind: Literal["score", "generate"],
        width: int | None = None,
        processed: int = 0,
        read: int | None = None,
    ) -> Iterator[ForwardContext]:
        """Serve a batch inside the ``with`` block: publish its context, and keep count of what forwards have processed.

        Args:
            width: tokens of each row, padding included; the longest row's where none is given.
            processed: tokens of each row that are in the cache already.
            read: see ``ForwardContext``.
        """
        import torch

        width = max(row.length for row in rows) if width is None else width
        context = ForwardContext(tuple(rows), kind, width, read=read)
        context.advance(processed)

        def count(module: "nn.Module", args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            context.advance(input_shape(args, kwargs)[1])

        outer, self.context = self.context, context
        counting = self.module.register_forward_hook(count, with_kwargs=True)
        try:
            with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
                yield context
        finally:
            counting.remove()
            self.context = outer

    @contextmanager
    def assisted(self, auxiliaries: Sequence[Auxiliary]) -> Iterator[None]:
        """Charge the work of these modules to the rows for the duration of a ``with`` block."""
        before = list(self.auxiliaries)
        self.auxiliaries += auxiliaries
        try:
            yield
        finally:
            self.auxiliaries[:] = before

    @contextmanager
    def standing_in(self, model: "Decoder") -> Iterator[None]:
        """Be another model inside the ``with`` block: its module, its parts and its fingerprint."""
        before = self.module, self.anatomy, self.fingerprint
        self.module, self.anatomy, self.fingerprint = model.module, model.anatomy, model.fingerprint
        try:
            yield
        finally:
            self.module, self.anatomy, self.fingerprint = before

    def charge(self, kind: str, *, macs: int, layer: int | None = None, bytes: float = 0.0, tokens: int = 0) -> None:  # noqa: A002
        """Charge work that depends on the input and runs inside a module, where no hook sees how much it is.

        See ``Charge``. The rows that are running share it equally. What is charged is audited like all other work.
        Matrix products that torch is asked for in a module which is not the dense model's own count without it.

        Raises:
            MethodError: a negative amount, or work of a layer's own branch without the layer.
        """
        if min(macs, bytes, tokens) < 0:
            raise MethodError(f"charged work {kind!r} is negative: {macs} multiply-accumulates, {bytes} bytes")
        layers = range(len(self.anatomy.blocks))
        if (kind in ("attention", "mlp") or layer is not None) and layer not in layers:
            raise MethodError(
                f"charged work {kind!r} is of layer {layer}; give the layer's index in the dense model, 0 to "
                f"{layers[-1]}"
            )
        if self.charged is not None:
            rows = None if self.context is None else self.context.active
            self.charged(Charge(kind, layer, int(macs), float(bytes), int(tokens), rows))

    def drafting(self) -> AbstractContextManager[None]:
        """Declare that forwards inside the ``with`` block guess tokens, with the model itself or a part of it.

        Their work is charged and their depth counts; nothing that they see counts as processed. Does nothing outside
        an evaluation.
        """
        return nullcontext() if self.context is None else self.context.speculation("draft")

    def verifying(self) -> AbstractContextManager[None]:
        """Declare that forwards inside the ``with`` block look at guessed tokens, of which the cache may lose some."""
        return nullcontext() if self.context is None else self.context.speculation("verify")

    def adding(self, what: "Added") -> AbstractContextManager[None]:
        """Around a whole decision or fill: its modules and what goes with them, such as pooling and reading results.

        An engine that declares neither has the calls of its ``auxiliaries`` timed, and nothing around them.
        """
        return nullcontext() if self.timer is None else self.timer(what)

    @contextmanager
    def scored(self, manner: Manner) -> Iterator[None]:
        """Score texts context first in this manner inside the ``with`` block."""
        before, self.manner = self.manner, manner
        try:
            yield
        finally:
            self.manner = before

    @contextmanager
    def computed_by(self, kernels: Mapping[str, str]) -> Iterator[None]:
        """Let methods that are attached inside the ``with`` block take these kernels."""
        before, self.kernels = self.kernels, kernels
        try:
            yield
        finally:
            self.kernels = before


def input_shape(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int, int]:
    """Rows and tokens of a forward's input: ``input_ids``, [rows, tokens], or ``inputs_embeds``, with a width."""
    given = args[0] if args else kwargs.get("input_ids")
    if given is None:
        given = kwargs["inputs_embeds"]
    return given.shape[0], given.shape[1]


def only(model: "Decoder", rows: tuple[int, ...]) -> AbstractContextManager[None]:
    """``ForwardContext.only`` on the model's context; does nothing outside an evaluation."""
    return nullcontext() if model.context is None else model.context.only(rows)
