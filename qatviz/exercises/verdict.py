"""What a check says: right, wrong and why, or nothing there yet."""

import html
from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """The answer to an answer.

    Args:
        right: Whether the exercise is solved; None if nothing was answered yet.
        message: One or two sentences: what the answer shows, or a hint.
    """

    right: bool | None
    message: str

    def __bool__(self) -> bool:
        return bool(self.right)

    def __repr__(self) -> str:
        return f"{_MARKS[self.right]}: {self.message}"

    def _repr_html_(self) -> str:
        # A dark colour on its own mark: the verdict must not depend on telling colours apart.
        mark, colour = _MARKS[self.right], _COLOURS[self.right]
        return f'<b style="color:{colour}">{mark}:</b> {html.escape(self.message)}'


UNANSWERED = Verdict(None, "replace the None (or the three dots) by your answer, then run again.")

_MARKS = {True: "✓ right", False: "✗ not yet", None: "… unanswered"}
_COLOURS = {True: "#01665e", False: "#8c510a", None: "#4d4d4d"}
