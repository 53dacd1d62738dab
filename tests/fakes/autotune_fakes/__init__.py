"""A small real server as an engine and a small real load as a workload, found as third parties' are: by entry points.

Put `tests/fakes` on PYTHONPATH and `engine: {kind: fake}`, `workload: {kind: count}` work like built-in ones.
"""
