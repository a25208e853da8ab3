"""Which int8 product is in use on this machine: what is right is decided when the module is loaded."""

from harness.contract.facts import Savings
from harness.model.weights.int8 import int8_product

PRODUCT = int8_product("cpu")
KERNEL = PRODUCT.name if PRODUCT else "dense product over int8 values"
SAVINGS = Savings.REAL if PRODUCT else Savings.SIMULATED
WEIGHT_BYTES = 1 if PRODUCT else 4
"""Of one weight of a float32 model."""
