"""Quality, through lm-eval: the model adapter, task lookup and calibration text."""
