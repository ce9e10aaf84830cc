"""Checks for the exercises: one file per notebook, one ``check_*`` per exercise."""

from qatviz.exercises.verdict import Verdict

__all__ = ["Verdict"]
