"""Teach a running notebook to show quantized models, without importing torch for it."""

import sys


def register() -> None:
    """Let IPython show a model that has quantizers as its summary table; other models as text."""
    shell = sys.modules["IPython"].get_ipython()
    if shell is not None:
        html = shell.display_formatter.formatters["text/html"]
        html.for_type_by_name("torch.nn.modules.module", "Module", _model_html)


def _model_html(model: object) -> str | None:
    own = getattr(model, "_repr_html_", None)
    if own is not None:
        return own()
    from qatviz.quantize import quantized_layers, summary

    return summary(model)._repr_html_() if quantized_layers(model) else None
