"""The steps of tests/benchmarks/gpu.py: each gives rows, {"what", "method", ...}, one as soon as it is measured."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.nn.functional import linear

from harness.contract.decoder import Decoder, Row
from harness.contract.prepared import Prepared
from harness.contract.stack import parse
from harness.measure.energy import Windows
from harness.measure.this_host import Sizes as HostSizes
from harness.measure.this_host import measured_peaks
from harness.methods.routing.router import new_router
from harness.model.weights.computations import Computation, Layer
from harness.results.store import Store
from harness.run.session import Session
from harness.run.spec import CostPlan, Job
from tests.benchmarks.gpu_models import (
    LARGE,
    Sizes,
    attached,
    best_seconds,
    captured,
    decode_seconds,
    known,
    random_decoder,
    said,
)
from tests.silent import Silent

Rows = Iterator[dict[str, Any]]

WEIGHTS = ("int4-weight-only", "int8-weight-only", "fp8", "int8-dynamic")
SPARSE = (
    "wanda:pattern=2:4,samples=2,length=48",
    "magnitude:pattern=2:4",
    "block-sparse:sparsity=0.8,pattern=16x1,number=fp32,samples=2,length=48",
    "block-sparse:sparsity=0.8,pattern=64x1,number=fp32,samples=2,length=48",
    "block-sparse:sparsity=0.8,pattern=16x1,number=int8,samples=2,length=48",
)


def decoding(shape: str, sizes: Sizes, device: torch.device) -> Rows:
    """Batch 1: every kernel on every shape of a linear layer, then whole decode steps with the fastest of them."""
    small = None if sizes is LARGE else HostSizes(256, 2**20, 1)
    host = measured_peaks(device, torch.bfloat16, small)
    yield {"what": "this machine", "bytes per second": host.bandwidth, "flops": host.peaks["bfloat16"]}
    decoder = random_decoder(sizes, shape, device)
    dense, eager, how = decode_seconds(decoder, sizes)
    head = {"what": f"{shape} decode", "tokens/s": 1 / dense, "eager tokens/s": 1 / eager, "how": how}
    read = decoder.module.dtype.itemsize * weights(decoder)
    yield head | {"method": "dense bf16", "share of the machine's bytes/s": read / dense / host.bandwidth}
    for method in WEIGHTS:
        if (reason := known(method)) is not None:
            yield {"what": f"{shape} decode", "method": method, "left out": reason}
            continue
        try:
            yield from compressed(method, shape, decoder, sizes, dense, host.bandwidth)
        except Exception as error:  # a kernel may fail in any way, and the next one is still to be tried
            yield {"what": f"{shape} decode", "method": method, "failed": said(error)}


def weights(decoder: Decoder) -> int:
    """Weights that a decode step reads: all but the embedding's."""
    return sum(each.numel() for each in decoder.module.parameters()) - decoder.module.model.embed_tokens.weight.numel()


def compressed(method: str, shape: str, decoder: Decoder, sizes: Sizes, dense: float, bandwidth: float) -> Rows:
    """Each kernel on each shape of a linear layer, then the model with the fastest kernel of each shape."""
    (part,) = parse(method).parts
    layers = part.declared_layers(decoder, ())
    examples = {layer: site for site, layer in layers}
    fastest: dict[Layer, tuple[float, str]] = {}
    for layer, site in examples.items():
        ways = part.computations(layer, str(decoder.device))
        plain = gemv(None, site.weight, sizes)
        for kernel in ways.kernels:
            row = {
                "what": f"{shape} product of one token",
                "method": method,
                "layer": layer.label,
                "kernel": kernel.name,
            }
            if kernel.why_not is not None:
                yield row | {"left out": kernel.why_not}
                continue
            each, read, how = gemv(kernel, site.weight, sizes)
            fastest[layer] = min(fastest.get(layer, (each, kernel.name)), (each, kernel.name))
            yield row | {
                "microseconds": each * 1e6,
                "bytes per second": read / each,
                "share of the machine's bytes/s": read / each / bandwidth,
                "x of bf16": plain[0] / each,
                "how": how,
            }
    if not fastest:
        yield {"what": f"{shape} decode", "method": method, "left out": "no kernel runs here: nothing would be saved"}
        return
    kernels = {site.place: fastest[layer][1] for site, layer in layers if layer in fastest}
    with attached(method, decoder, kernels):
        graph, eager, how = decode_seconds(decoder, sizes)
    yield {
        "what": f"{shape} decode",
        "method": method,
        "tokens/s": 1 / graph,
        "eager tokens/s": 1 / eager,
        "x of bf16": dense / graph,
        "how": how,
        "kernels": sorted(set(kernels.values())),
    }


@torch.no_grad()
def gemv(kernel: Computation | None, weight: torch.Tensor, sizes: Sizes) -> tuple[float, int, str]:
    """Seconds of one token's product, bytes of the weights that it reads, and how it was launched.

    Copies of the weight are read in turn: more than the caches hold, as in a model.
    """
    x = torch.randn(1, weight.shape[1], device=weight.device, dtype=weight.dtype)  # [1, in]
    first = None if kernel is None else kernel.make(weight, None)
    read = weight.nbytes if first is None else first.weight_bytes
    count = max(2, min(64, sizes.cold // read))
    if kernel is None:
        copies: list[Any] = [partial(linear, weight=weight.clone()) for _ in range(count)]
    else:
        copies = [kernel.make(weight, None) for _ in range(count)]
    turn, how = captured(weight.device, lambda: [copy(x) for copy in copies])
    return best_seconds(weight.device, turn) / count, read, how


def prefill(sizes: Sizes, device: torch.device) -> Rows:
    """A batch of prompts through four layers of the large shape: zeros that a kernel skips."""
    decoder = random_decoder(sizes, "7B", device, num_hidden_layers=4, vocab_size=2048)
    ids = torch.randint(3, 259, (sizes.batch, sizes.prompt), generator=torch.Generator().manual_seed(0)).to(device)
    what = f"prefill of {sizes.batch} x {sizes.prompt} tokens, 4 layers"

    @torch.no_grad()
    def read() -> None:
        decoder.module(ids, use_cache=False, logits_to_keep=1)

    dense = best_seconds(device, read)
    yield {"what": what, "method": "dense bf16", "milliseconds": dense * 1e3}
    for method in SPARSE:
        if (reason := known(method)) is not None:
            yield {"what": what, "method": method, "left out": reason}
            continue
        (part,) = parse(method).parts
        layers = part.declared_layers(decoder, ()) if hasattr(part, "computations") else []
        kernels = {each.name: each for _, layer in layers for each in part.computations(layer, str(device)).kernels}
        able = [name for name, each in kernels.items() if each.why_not is None]
        if not able:
            reasons = [each.why_not for each in kernels.values()] or ["it has no kernels"]
            yield {"what": what, "method": method, "left out": reasons[0]}
        for kernel in able:
            row = {"what": what, "method": method, "kernel": kernel}
            try:
                with attached(method, decoder, {site.place: kernel for site, _ in layers}):
                    each = best_seconds(device, read)
                yield row | {"milliseconds": each * 1e3, "x of bf16": dense / each}
            except Exception as error:  # a kernel may fail in any way, and the next one is still to be tried
                yield row | {"failed": said(error)}


def routing(sizes: Sizes, device: torch.device) -> Rows:
    """Scoring with routers that skip half of the layers, always the same ones: one text, read in one forward."""
    decoder = random_decoder(sizes, "1.1B", device)
    layers, width = len(decoder.anatomy.blocks), decoder.config.hidden_size
    skipped = tuple(range(layers // 4, layers // 4 + layers // 2))
    ids = torch.randint(3, 259, (1, sizes.prompt), generator=torch.Generator().manual_seed(0)).to(device)
    row = Row("text", 0, (0,), sizes.prompt - 5, sizes.prompt)

    @torch.no_grad()
    def score() -> None:
        with decoder.serving([row], "score"):
            decoder.module(ids, use_cache=False)

    def routers() -> Prepared:
        tensors = {}
        for layer in range(layers):
            router = new_router(width, 128, torch.Generator().manual_seed(layer))
            router[2].bias.copy_(torch.tensor([100.0, 0, 0] if layer in skipped else [0, 100.0, 0]))
            tensors |= {f"router.{layer}.{name}": tensor for name, tensor in router.state_dict().items()}
        return Prepared(tensors, {})

    what = "1.1B scoring of one text"
    dense = best_seconds(device, score, 4)
    yield {"what": what, "method": "dense bf16", "milliseconds": dense * 1e3}
    drop = "layer-drop:layers=" + "/".join(map(str, skipped))
    for method, state in (("dr-llm", routers()), ("random-skip:executed=0.5", Prepared()), (drop, Prepared())):
        (part,) = parse(method).parts
        state = part.prepare(decoder, None) if method == drop else state
        with part.attach(decoder, state):
            each = best_seconds(device, score, 4)
        yield {"what": what, "method": method, "milliseconds": each * 1e3, "x of dense's time": each / dense}
    again = best_seconds(device, score, 4)
    yield {"what": what, "method": "dense again", "milliseconds": again * 1e3, "x of dense's time": again / dense}


def dropping(sizes: Sizes, device: torch.device) -> Rows:
    """Layer-drop in a run of its own: the memory and the energy that the record has, beside dense."""
    decoder = random_decoder(sizes, "1.1B", device, vocab_size=512)
    layers = len(decoder.anatomy.blocks)
    method = "layer-drop:layers=" + "/".join(map(str, range(layers // 4, layers // 4 + layers // 2)))
    long, short = Windows(window_s=4, idle_s=3, cooldown_s=1, rounds=2), Windows(window_s=0.1, idle_s=0.1, rounds=1)
    costs = CostPlan(
        measure={"flops", "latency", "memory", "energy"},
        prompts=4,
        rounds=3,
        warmup=1,
        windows=long if sizes is LARGE else short,
    )
    with TemporaryDirectory() as place:
        decoder.module.save_pretrained(Path(place) / "model")
        decoder.tokenizer.save_pretrained(Path(place) / "model")
        del decoder
        if device.type == "cuda":
            torch.cuda.empty_cache()
        job = Job(
            methods=(method,),
            tasks=("pocket_choice",),
            pretrained=str(Path(place) / "model"),
            device=str(device),
            limit=8,
            costs=costs,
        )
        for record in Session(job, Store(Path(place) / "runs"), Silent()).execute():
            memory, energy, time = record.memory, record.energy, record.time
            gpu = energy.parts.get("gpu") if energy else None
            yield {
                "what": "1.1B layer-drop, half of the layers",
                "method": record.method.label,
                "weights, bytes": memory.weights,
                "peak on the device, bytes": memory.cuda_allocated or memory.peak,
                "joules a request, the card's counter": gpu.joules if gpu else None,
                "energy is": energy.label if energy else record.missing.get("energy"),
                "latency, ms": time.latency.end_to_end.median * 1e3 if time and time.latency else None,
            }


STEPS: Sequence[tuple[str, int, Any]] = (
    ("7B", 210, lambda sizes, device: decoding("7B", sizes, device)),
    ("layer-drop", 80, dropping),
    ("prefill", 70, prefill),
    ("routing", 40, routing),
    ("1.1B", 80, lambda sizes, device: decoding("1.1B", sizes, device)),
)
"""Name, limit in seconds, and the step; the most valuable first."""
