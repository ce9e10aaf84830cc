"""qatviz: see what quantization does to a neural network.

The rooms, each a question a student asks:

* ``quantizers``: what is the mathematics?
* ``layers``, ``quantize``, ``calibration``: how does it get into a model?
* ``methods``, ``training``: how is a low-bit network trained?
* ``analysis``, ``plots``: what is true of the result, and what does it look like?
* ``widgets``: what if?

Nothing is imported until a room is entered, so ``import qatviz`` costs nothing.
"""

import sys

__version__ = "0.1.0"

if "IPython" in sys.modules:
    # A quantized model is an ordinary nn.Module of the user's own class: teach the notebook
    # to show its summary, by name, so that torch is not imported here.
    from qatviz._display import register

    register()
