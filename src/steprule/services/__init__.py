"""What else a training step needs: clipping, a guard, an average of the weights, telemetry, gradient release."""

from steprule.services.average import Average
from steprule.services.clip import ClipAdaptive, ClipNorm, ClipQuantile, ClipValue
from steprule.services.telemetry import Telemetry

__all__ = ["Average", "ClipAdaptive", "ClipNorm", "ClipQuantile", "ClipValue", "Telemetry"]
