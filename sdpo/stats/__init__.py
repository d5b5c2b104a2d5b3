"""Compute statistics of measured log-probs: intervals, paired differences, estimates of KL.

The functions take numbers and return numbers: they read and write no file and know no model. They
import numpy alone.
"""
