"""What a card must show before a release: ``make gpu``, or ``pytest -m gpu --device cuda``; docs/gpu.md."""
