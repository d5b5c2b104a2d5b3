"""Say by how much rounding moves log-probs, from the arithmetic and the size of the numbers.

In other kernels, or in rows of other lengths, sums are taken in another order. Every log-prob has
an error of some units of the last place of the logits that it is made of, and errors of many tokens
add up by the root of their squares. Over tiny models of 17 architectures, Llamas of 12 and 24
layers and two trained models at most 9 units were seen in fp32, and less than one in bf16 where the
kernels are the same.
"""

_UNITS, _UNIT = 64, 2.0**-24
"""fp32 is allowed so many units of its last place."""
_LOW_UNITS, _LOW_UNIT = 8, 2.0**-9
"""bf16 is allowed fewer; rows of other lengths differed by 0.17 nats per root token on a GPU."""


def allowed(size: float, *, low: bool) -> float:
    """Return what a sum of log-probs may differ by, in nats; ``low``: in bf16.

    ``size`` is the root of the sum of squares of what is rounded, one number for each token.
    """
    return size * (_LOW_UNITS * _LOW_UNIT if low else _UNITS * _UNIT)
