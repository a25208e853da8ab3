"""Linear layers on a CUDA card by kernels in Triton, which is imported when a kernel runs and not before."""
