/* How activations become whole numbers, for a set's vectors. */

/* What x [n] is multiplied by to lie within -levels..levels, and as result what a whole number then stands for: NaN where
   a value is not finite. */
INLINE float step_of(const float *x, long n, float levels, float *by) {
    Floats most = {0}, rest = {0}; /* max drops NaN, a sum of x - x does not */
    for (long k = 0; k < n; k += LANES) {
        Floats v = load_some(x + k, n - k);
        most = larger(most, magnitudes(v));
        rest += v - v;
    }
    float top = largest_of(most), sum = 0;
    for (int i = 0; i < LANES; i++) sum += rest[i];
    int finite = sum == 0;
    top = top < 1e-30f ? 1e-30f : top; /* its inverse is finite */
    *by = finite ? levels / top : 0;
    return finite ? top / levels : NAN;
}
