"""The search for the best settings under budgets: ``harness tune``."""
