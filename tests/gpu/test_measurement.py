"""What is measured with on the card: counted attention under every back end, and a roofline that nothing beats."""

import itertools

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from harness.measure.audit import audit
from harness.measure.clock import clock_for, seconds
from harness.measure.this_host import measured_peaks
from harness.testing.serve import TEXTS, generate, score
from harness.testing.tiny import tiny_decoder

BACK_ENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


@pytest.mark.parametrize("heads", [4, 2, 1])
@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_the_audit_agrees_under_every_back_end(back_end: str, heads: int, device: str) -> None:
    """One text at a time, as the fused ones take no mask of padding; scored, and read and written with a cache."""
    shape = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "num_key_value_heads": heads}
    decoder = tiny_decoder("llama", device=device, **shape)
    decoder.module.to(torch.bfloat16)
    try:
        with sdpa_kernel(BACK_ENDS[back_end]):
            for serve in (score, generate):
                found = audit(
                    decoder, lambda serve=serve: itertools.chain.from_iterable(serve(decoder, TEXTS[:1]).segments)
                )
                assert found.counted == found.stated
    except RuntimeError as error:
        if "No available kernel" not in str(error) and "no viable backend" not in str(error).lower():
            raise
        pytest.skip(f"{back_end} has no kernel here: {str(error).splitlines()[0]}")


def test_no_product_beats_the_roofline_of_this_machine(card: str) -> None:
    device = torch.device(card)
    peaks = measured_peaks(device, torch.bfloat16)
    size = 8192
    square = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    rows = torch.randn(size * 4, size, device=device, dtype=torch.bfloat16)
    clock = clock_for(device)
    product = min(seconds(clock, lambda: square @ square) for _ in range(6))
    reading = min(seconds(clock, lambda: rows @ rows[0]) for _ in range(6))
    assert 2 * size**3 / product <= 1.03 * peaks.peaks["bfloat16"]
    assert rows.nbytes / reading <= 1.03 * peaks.bandwidth
