"""What this package costs, measured side by side with what a user would write or install instead.

``make bench`` runs all of it and stores the figures in ``docs/benchmarks.md``. Each benchmark holds what came out
against what is known to be true, and fails when it is wrong. Linux only: peak memory is read from ``/proc``.
"""
