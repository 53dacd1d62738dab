"""Finds the best configuration of an LLM serving engine or an RL training run by running the real thing in short trials.

The command line is `autotune.cli`. From Python, `autotune.results.load(name, store)` reads a study as tables. CONTRIBUTING.md
says which module does what.
"""
