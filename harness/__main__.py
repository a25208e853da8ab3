"""``python -m harness``, and the module that ``accelerate launch -m harness run ...`` starts in every process."""

from harness.cli import main

main()
