"""A job: from what was asked to finished records."""
