import pytest

from qatviz.exercises import Verdict
from qatviz.exercises.verdict import UNANSWERED


@pytest.mark.parametrize(
    ("right", "mark"), [(True, "✓ right"), (False, "✗ not yet"), (None, "… unanswered")]
)
def test_says_its_mark_in_words_in_text_and_html(right, mark):
    verdict = Verdict(right, "because.")
    assert repr(verdict) == f"{mark}: because."
    assert f"{mark}:</b> because." in verdict._repr_html_()


def test_is_true_only_if_right():
    assert [bool(Verdict(right, "")) for right in (True, False, None)] == [True, False, False]


def test_html_is_escaped():
    assert "a &lt; b &amp; c" in Verdict(False, "a < b & c")._repr_html_()


def test_unanswered_says_what_to_do():
    assert UNANSWERED.right is None
    assert "replace the None (or the three dots)" in UNANSWERED.message
