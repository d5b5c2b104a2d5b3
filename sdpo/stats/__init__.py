"""Statistics of measured log-probs: intervals, paired differences, estimates of KL.

Numbers in, numbers out: nothing is read or written here, and no model is known. It imports numpy.
"""
