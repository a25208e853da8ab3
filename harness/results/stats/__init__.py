"""Statistics of comparisons: paired differences, cost ratios, sample summaries, Pareto fronts.

Everything is seeded and works on plain arrays, so that stored runs can be compared again anywhere.
"""
