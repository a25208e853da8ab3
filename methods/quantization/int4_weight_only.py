"""Int4, weights only: round to nearest in groups of inputs."""

from dataclasses import dataclass

from harness.contract.families import Family
from harness.model.weights.computing import ComputesLinears
from harness.model.weights.in_groups import NEUTRAL, InGroups


@dataclass(frozen=True, kw_only=True)
class Int4WeightOnly(InGroups, ComputesLinears):
    """Round the weights of the linear layers to four bits in groups, without training or calibration.

    How: a group of neighbouring inputs of an output shares a scale and a zero point. The scale is the group's range,
    which holds zero, over 15, as a float16; the zero point is the code of zero. Each weight becomes the nearest of the
    16 values. A weight takes 4 bits, and a group of 128 takes 20 more: 4.16 bits a weight. Activations stay.

    Paper: none of its own: round to nearest, the floor that "GPTQ: Accurate Post-Training Quantization for Generative
    Pre-trained Transformers", Frantar et al., arXiv:2210.17323, and all after it are measured against.

    Limits: it multiplies what dense multiplies, so that what it can save is the time of few tokens and memory. A
    product over packed weights is taken for the numbers of tokens at which it is faster here than the model's own; for
    others a CPU makes floats of them as it goes, so that memory and decoding are real and a prompt takes dense's time.
    Where none is faster, the rounded weights are multiplied as floats: the same answers, in dense's time and memory,
    and the record calls the saving simulated. Products are for four and eight bits: the harness's own on a CPU, for
    groups of whole eights of inputs, and torch's for four bits and models in bfloat16. A model whose file was in
    Q4_1 (GGUF) loses what another loses: its offsets were floats, and these zero points are codes. Q4_0 has zero as a
    code too, and what was in it loses about a quarter less than another model in groups of 32, which is no comparison.

    Reference: rounded weights equal the formula, each within half a scale; a weight on a grid of the format comes back
    as it was; every product agrees with the dense one over the same numbers.
    """

    name = "int4-weight-only"
    family = Family.QUANTIZATION
    paper = "arXiv:2210.17323"
    examples = ({"group": 16}, {"group": 16, "symmetric": True}, {"bits": 3, "group": 16})
    neutral = {"bits": NEUTRAL}
