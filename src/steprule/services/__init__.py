"""What else a training step needs: clipping, a check for non-finite gradients, an EMA of the weights, telemetry, gradient release
(stepping in backward)."""

from steprule.names import seen as _seen
from steprule.services.average import Average
from steprule.services.clip import ClipAdaptive, ClipNorm, ClipQuantile, ClipValue
from steprule.services.qk_clip import QKClip
from steprule.services.telemetry import Telemetry

__all__ = ["Average", "ClipAdaptive", "ClipNorm", "ClipQuantile", "ClipValue", "QKClip", "Telemetry"]


def __getattr__(name: str) -> object:
    from steprule.settings import no_attribute

    raise no_attribute(__name__, name, __all__)


def __dir__() -> list[str]:
    return _seen(globals(), __all__)
