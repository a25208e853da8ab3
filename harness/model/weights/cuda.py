"""Whether torch's operators for NVIDIA cards can run where a model is, in words where they cannot."""

import torch

Capability = tuple[int, int]
"""What a card can do, as CUDA numbers it: 8.0 is A100's, 8.9 L4's and L40S's, 9.0 H100's."""


def why_not(device: str, least: Capability = (0, 0)) -> str | None:
    """Why an operator cannot run on a device; None where it can.

    Args:
        least: the compute capability that it needs.
    """
    if not device.startswith("cuda"):
        return f"it is for CUDA, and the model is on {device}"
    if not torch.cuda.is_available():
        return f"the model is on {device}, and torch sees no CUDA device"
    if torch.version.hip is not None:
        return "it is for NVIDIA's cards, and this torch is built for AMD's"
    capability = torch.cuda.get_device_capability(device)
    if capability < least:
        needed, has = (".".join(map(str, each)) for each in (least, capability))
        return f"it needs a card of compute capability {needed}, and {torch.cuda.get_device_name(device)} has {has}"
    return None
