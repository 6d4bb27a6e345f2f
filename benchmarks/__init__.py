"""Measure this package side by side with what a user would write or install instead.

``make bench`` runs all of it and stores the figures in ``docs/benchmarks.md``. Each benchmark compares its
output with the exact figures, and fails if it is wrong. Linux only: peak memory is read from ``/proc``.
"""
