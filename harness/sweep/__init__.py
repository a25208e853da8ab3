"""Grids of runs: what is asked resolved to jobs, and jobs carried out by workers, here or on other machines."""
