"""What a student's predictions lack of its teacher's."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import kl_div


def distillation(
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    temperature: float = 4.0,
) -> Float[Tensor, ""]:
    """Knowledge distillation: the divergence of softened predictions.

    With s and t the logits of student and teacher, T the temperature and n images::

        L = T²·(1/n) ∑ KL(softmax(t/T) ‖ softmax(s/T))
        ∂L/∂s = (T/n)·(softmax(s/T) − softmax(t/T))

    in nats. T² keeps the gradient of one size while T changes: as T grows it tends to
    (s − t)/(n·classes), of logits less their mean. The paper minimises the cross-entropy with
    softmax(t/T) as targets, which differs by the entropy of the targets: a constant.

    Differentiable in both arguments; a teacher that is not trained is run without gradient.

    Args:
        student_logits: One row per image, at least one; half types are widened first.
        teacher_logits: The same shape.
        temperature: T > 0. Default: 4 (SQAKD, arXiv 2403.11106; RepDistiller's released code).

    Returns:
        A scalar in nats, 0 where the predictions agree.

    Source: Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network",
    arXiv 1503.02531, sections 2 and 2.1.
    """
    student, teacher = (
        (logits.float() / temperature).log_softmax(1) for logits in (student_logits, teacher_logits)
    )
    return kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2
