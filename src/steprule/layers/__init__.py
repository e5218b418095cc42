"""Which parameters of a model are matrices for rules like Muon, and how each is seen as such.

`roles` decides it for a model, and returns `Roles`, a table of `Role`s. `View` maps a tensor to its matrices.
"""

from steprule.layers.roles import ROLES, Role, Roles, roles
from steprule.layers.view import WORDS, View
from steprule.names import seen as _seen

__all__ = ["ROLES", "WORDS", "Role", "Roles", "View", "roles"]


def __dir__() -> list[str]:
    return _seen(globals(), __all__)
