from dataclasses import replace

import pytest

from qatviz.evaluation import evaluate
from qatviz.studies import student, study
from qatviz.studies.building import data_of
from tests.studies.grids import BASE


@pytest.mark.parametrize("bits", [None, 2])
def test_a_student_is_the_network_that_was_tested(bits, tmp_path):
    experiment = replace(BASE, bits=bits)
    result = study([experiment], cache=tmp_path, progress=False)
    model = student(experiment, tmp_path)
    assert not any(module.training for module in model.modules())
    test = evaluate(model, data_of(BASE.data, BASE.root).test)
    assert test == result.cell(experiment).run.test


def test_without_weights_it_says_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match="not finished"):
        student(BASE, tmp_path)
    study([BASE], cache=tmp_path, progress=False)
    (tmp_path / BASE.hash / "weights.safetensors").unlink()
    with pytest.raises(ValueError, match="not promoted; run the study"):
        student(BASE, tmp_path)
