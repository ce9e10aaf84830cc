"""How far a student's predictions are from its teacher's: the divergences of consistency.

Each takes logits of student and teacher, ``[images, classes]``, and returns a mean over the
images, 0 where the two agree (but for ``pseudo_label``). With s and t the logits, p_S and p_T
their softmax, C classes and n images. Gradients are those to one row of student logits, times n.
All are differentiable in both arguments; a teacher that does not learn is run without gradient.
The forward divergence KL(p_T ‖ p_S) is ``distillation`` at temperature 1.
"""

import math

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity, kl_div, mse_loss, nll_loss

Logits = Float[Tensor, "batch classes"]


def reverse_divergence(student_logits: Logits, teacher_logits: Logits) -> Float[Tensor, ""]:
    """KL(p_S ‖ p_T), in nats: the student is asked to keep to what the teacher holds possible.

    ∂/∂s = p_S·(log(p_S/p_T) − KL).

    Args:
        student_logits: One row per image, at least one; half types are widened first.
        teacher_logits: The same shape.

    Returns:
        A scalar in nats, 0 or more.
    """
    student, teacher = _log_probabilities(student_logits, teacher_logits)
    return kl_div(teacher, student, reduction="batchmean", log_target=True)


def jensen_shannon(student_logits: Logits, teacher_logits: Logits) -> Float[Tensor, ""]:
    """½·KL(p_T ‖ m) + ½·KL(p_S ‖ m) with m = ½(p_T + p_S), in nats.

    ∂/∂s = ½·p_S·(log(p_S/m) − ∑ p_S·log(p_S/m)). Symmetric.

    Args:
        student_logits: One row per image, at least one; half types are widened first.
        teacher_logits: The same shape.

    Returns:
        A scalar in nats, 0 to ln 2.
    """
    student, teacher = _log_probabilities(student_logits, teacher_logits)
    middle = student.logaddexp(teacher) - math.log(2)
    return sum(
        kl_div(middle, side, reduction="batchmean", log_target=True) / 2
        for side in (student, teacher)
    )


def probability_distance(student_logits: Logits, teacher_logits: Logits) -> Float[Tensor, ""]:
    """(1/C)·∑ (p_S − p_T)²: Mean Teacher's.

    ∂/∂s = (2/C)·p_S·((p_S − p_T) − ∑ p_S·(p_S − p_T)): small where p_S is, and by 1/C, so its
    weight is usually taken fifty to a hundred times that of a divergence.

    Args:
        student_logits: One row per image, at least one; half types are widened first.
        teacher_logits: The same shape.

    Returns:
        A scalar, 0 to 2/C.

    Source: Tarvainen & Valpola 2017, arXiv 1703.01780; 1/C as in the released code.
    """
    student, teacher = _log_probabilities(student_logits, teacher_logits)
    return mse_loss(student.exp(), teacher.exp())


def logit_distance(student_logits: Logits, teacher_logits: Logits) -> Float[Tensor, ""]:
    """(1/C)·∑ (s − t)².

    ∂/∂s = 2(s − t)/C. Of logits less their mean over the classes it is twice what
    T²·KL(softmax(t/T) ‖ softmax(s/T)) tends to as T grows.

    Args:
        student_logits: One row per image, at least one; half types are widened first.
        teacher_logits: The same shape.

    Returns:
        A scalar, 0 or more; not 0 where logits differ by a constant, though predictions agree.
    """
    return mse_loss(student_logits.float(), teacher_logits.float())


def pseudo_label(
    student_logits: Logits, teacher_logits: Logits, threshold: float = 0.95
) -> Float[Tensor, ""]:
    """−log p_S[argmax p_T] where the teacher is sure, max p_T ≥ κ; 0 for other images.

    ∂/∂s = p_S − onehot where it is sure. The mean is over all images, sure or not.

    Args:
        student_logits: One row per image, at least one; half types are widened first.
        teacher_logits: The same shape.
        threshold: κ, 0 to 1. Default: 0.95 (FixMatch).

    Returns:
        A scalar in nats, 0 or more.

    Source: Sohn et al. 2020 (FixMatch), arXiv 2001.07685, equation 4.
    """
    student, teacher = _log_probabilities(student_logits, teacher_logits)
    confidence, label = teacher.exp().max(1)
    return (nll_loss(student, label, reduction="none") * (confidence >= threshold)).mean()


def feature_distance(
    student_features: Float[Tensor, "batch features"],
    teacher_features: Float[Tensor, "batch features"],
) -> Float[Tensor, ""]:
    """1 − cos(h_S, h_T), of features instead of logits.

    Args:
        student_features: One row per image, at least one; half types are widened first.
        teacher_features: The same shape.

    Returns:
        A scalar, 0 to 2.
    """
    return (1 - cosine_similarity(student_features.float(), teacher_features.float())).mean()


def _log_probabilities(*logits: Logits) -> tuple[Tensor, ...]:
    return tuple(z.float().log_softmax(1) for z in logits)
