"""The hash of the code behind a result."""

import sys

import pytest

from qatviz.quantizers import LSQ
from qatviz.studies import sources
from qatviz.studies.experiment import Experiment
from qatviz.studies.sources import code_hash, reached

FILES = {
    "mine/__init__.py": "from mine.a import make\nfrom mine.unused import other\n",
    "mine/a.py": '"""Old."""\nfrom mine import b\n\ndef make():\n    """Doc."""\n    return b.x\n',
    "mine/b.py": "import numpy\nx = 1\n",
    "mine/unused.py": "other = 1\n",
    "mine/sub/__init__.py": "from ..a import make as again\n",
    "mine/sub/deep.py": "from . import again\nfrom .. import b\n",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of its own that can be edited: ``edit(path, text)``, and its hash."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sources, "ROOTS", ("mine.a",))

    def forget():
        for function in (sources._hash_of, sources._file, sources._parsed):
            function.cache_clear()

    def hashed(path="mine/b.py", text=None):
        if text is not None:
            (tmp_path / path).write_text(text)
        forget()
        return code_hash({"model": {"part": "mine.a:make", "with": {}}})

    yield hashed
    forget()
    for name in [n for n in sys.modules if n.split(".")[0] == "mine"]:
        del sys.modules[name]


def test_words_comments_and_layout_do_not_count(package):
    before = package()
    assert before == package()
    new = '"""New."""\n\n# why\nfrom mine import b\n\n\ndef make():\n    return (b.x)\n'
    assert package("mine/a.py", new) == before


def test_code_counts_where_imports_lead_and_nowhere_else(package):
    before = package()
    assert package("mine/b.py", "import numpy\nx = 2\n") != before
    package("mine/b.py", FILES["mine/b.py"])
    assert package("mine/unused.py", "other = 2\n") == before
    assert package("mine/__init__.py", FILES["mine/__init__.py"] + "more = 1\n") == before


def test_a_name_in_a_package_leads_to_the_module_that_defines_it(package):
    assert reached(["mine.sub.deep"], {"mine"}) == {"mine.sub.deep", "mine.a", "mine.b"}


def test_a_part_that_is_gone_is_missing():
    for part in ("qatviz.no_such:thing", "no_such_package_at_all:thing"):
        assert code_hash({"model": {"part": part, "with": {}}}) == "missing"


def test_what_draws_and_what_schedules_cells_does_not_count():
    found = reached((*sources.ROOTS, "qatviz.quantizers.lsq"), {"qatviz"})
    needed = {"training", "schedule", "datasets", "quantize", "calibration", "quantizers.lsq"}
    assert {f"qatviz.{name}" for name in needed} <= found
    assert "qatviz.studies.building" in found
    rooms = ("plots", "widgets", "notebook", "studies.cells", "studies.study", "analysis")
    assert not [n for n in found for room in rooms if n.startswith(f"qatviz.{room}")]
    assert "qatviz.quantizers.nipq" not in found, "no other quantizer makes this one stale"


def test_the_parts_of_an_experiment_count():
    plain, other = Experiment(bits=2, weights=LSQ), Experiment(bits=2)
    assert code_hash(plain.describe()) == code_hash(other.describe())
    with_method = Experiment(start="float_small_resnet", method=_taught())
    assert code_hash(with_method.describe()) != code_hash(plain.describe())


def _taught():
    from tests.studies.grids import Taught

    return Taught
